"""Many calls on one connection between two strict ends, in any order and in any pieces: each gets its own answer.

Calls that pass, that are followed, written anew, reduced, refused and given up, while windows and tables change.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.h2_harness import ANSWERED, End, Ends, Sent, in_memory, prefixed
from support.relay_generation import COUNT, LIST, SEARCH, asked, collections, count, relay_generation
from support.site import Site
from support.tenant_roles import confinement

from tlsproxy.proxy.core import scheduler
from tlsproxy.proxy.grpc import client
from tlsproxy.qdrant.grpc_decision import confine_message, operation_of
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire import http2
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.http2 import FIRST_WINDOW
from tlsproxy.wire.protobuf import delimited, integer

pytestmark = pytest.mark.plain  # compiled code calls directly what the harness takes the place of

LARGEST = 90_000
"""Bytes of a message: more than any window that is not made larger."""
MOST_SETTINGS = 8
"""Of one end; a client that has more to say is flooding."""
OK, FORBIDDEN, UNAUTHENTICATED, UNKNOWN = 0, 7, 16, 12


@pytest.fixture(scope="module")
def made(site: Site) -> Callable[[Callable[[int], int], int], Run]:
    """With two generations that differ in where the upstream is."""
    generations = relay_generation(site), relay_generation(site, upstream="http://127.0.0.2:1")
    return lambda pieces, largest: Run(Ends(generations[0], dialled=False), pieces, largest, generations)


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    yield from in_memory()


def confined(message: bytes) -> bytes:
    operation = operation_of(COUNT)
    assert operation is not None
    return at_once(confine_message(operation, "docs", message, confinement(tenant="acme"))).content


def bounded(message: bytes) -> bytes:
    """With the fields that the policy adds: no exact count (3), and its timeout (6)."""
    return message + integer(6, 30) + integer(3, 0)


def exact(size: int) -> bytes:
    return count(size=size) + integer(3, 1)


@dataclass(frozen=True, slots=True)
class Kind:
    """``upstream``: what of a message is seen there; None where it may not be seen whole."""

    path: str
    role: str
    message: Callable[[int], bytes]
    status: int = OK
    upstream: Callable[[bytes], bytes] | None = bytes
    compressed: bool = False


KINDS = [
    Kind(SEARCH, "plain", bytes),
    Kind(COUNT, "limited", lambda size: count(size=size)),
    Kind(COUNT, "tenant", lambda size: count(size=size), upstream=confined),
    Kind(COUNT, "limited", lambda size: gzip.compress(count(size=size)), compressed=True),
    Kind(
        COUNT,
        "tenant",
        lambda size: gzip.compress(count(size=size)),
        upstream=lambda message: confined(gzip.decompress(message)),
        compressed=True,
    ),
    Kind(COUNT, "bounded", lambda size: count(size=size), upstream=bounded),
    Kind(
        COUNT,
        "bounded",
        lambda size: gzip.compress(count(size=size)),
        upstream=lambda message: bounded(gzip.decompress(message)),
        compressed=True,
    ),
    Kind(COUNT, "bounded", exact, FORBIDDEN, None),
    Kind(LIST, "limited", lambda _: b""),
    Kind(COUNT, "limited", lambda size: count("other", size), FORBIDDEN, None),
    Kind(COUNT, "tenant", lambda size: count("other", size), FORBIDDEN, None),
    Kind(COUNT, "limited", lambda size: gzip.compress(count("other", size)), FORBIDDEN, None, compressed=True),
    Kind(SEARCH, "nobody", bytes, UNAUTHENTICATED, None),
    Kind("/qdrant.Points/Nothing", "plain", bytes, UNKNOWN, None),
]


class Run:
    """What each step does, by its name. ``one`` and ``two`` choose among what there is."""

    def __init__(
        self,
        ends: Ends,
        pieces: Callable[[int], int],
        largest: int,
        generations: tuple[Generation, Generation],
    ) -> None:
        self.ends = ends
        self.generations = generations
        self.pieces = pieces
        self.largest = largest
        self.kinds: dict[int, Kind] = {}
        self.left: dict[int, bytes] = {}
        self.messages: dict[int, bytes] = {}
        self.disturbed: set[int] = set()
        self.said = 0
        self.ends.made = self.made
        self.made(ends.upstream)

    def made(self, upstream: End) -> None:
        upstream.on_request = partial(self.answer, upstream)

    def answer(self, upstream: End, stream: int, sent: Sent) -> None:
        path = dict(sent.fields)[":path"]
        upstream.connection.send_headers(stream, ANSWERED)
        upstream.say(stream, prefixed(self.answer_to(path, sent.data, shown=False)), [("grpc-status", "0")])

    def answer_to(self, path: str, data: bytes, *, shown: bool) -> bytes:
        """As long as what was asked, about; a listing's length is the largest."""
        if path == LIST:
            names = [name for n in range(self.largest // 40) for name in ("docs", f"secret-{n:020}")]
            return collections(*[name for name in names if name == "docs" or not shown])
        return delimited(1, hashlib.sha256(path.encode() + data).digest() * (len(data) // 32 + 1))

    def open(self, one: int, two: int) -> None:
        kind = KINDS[one % len(KINDS)]
        coding = [("grpc-encoding", "gzip")] if kind.compressed else []
        stream = self.ends.client.open(asked(kind.path, kind.role) + coding)
        self.kinds[stream] = kind
        self.messages[stream] = kind.message(two % self.largest)
        self.left[stream] = prefixed(self.messages[stream], compressed=kind.compressed)

    def stream(self, one: int) -> int:
        return list(self.kinds)[one % len(self.kinds)] if self.kinds else 0

    def say(self, one: int, two: int) -> None:
        stream = self.stream(one)
        if not self.left.get(stream):
            return
        sent = self.ends.client.streams[stream]
        if sent.over or sent.ended or sent.reset is not None:
            self.left[stream] = b""
            return
        size = two % LARGEST + 1
        piece, self.left[stream] = self.left[stream][:size], self.left[stream][size:]
        self.ends.client.say(stream, piece, None if self.left[stream] else [])

    def cancel(self, one: int, _: int) -> None:
        stream = self.stream(one)
        if stream:
            self.ends.client.cancel(stream)
            self.disturbed.add(stream)

    def upstream_cancels(self, one: int, _: int) -> None:
        stream = self.stream(one)
        upstream = self.ends.at(stream)
        if stream in upstream.streams and not upstream.streams[stream].over:
            upstream.cancel(stream)
            self.disturbed.add(stream)

    def flush(self, one: int, two: int) -> None:
        self.ends.flush(one, two, self.pieces)

    def client_grants(self, one: int, two: int) -> None:
        self.ends.client.grant(self.stream(one), two % 1000 + 1)

    def upstream_grants(self, one: int, two: int) -> None:
        self.ends.at(self.stream(one)).grant(self.stream(one), two % 1000 + 1)

    def client_reads(self, _one: int, _two: int) -> None:
        self.ends.client.read()

    def upstream_reads(self, one: int, _two: int) -> None:
        self.ends.at(self.stream(one)).read()

    def client_settings(self, one: int, two: int) -> None:
        self._settings(self.ends.client, one, two)

    def upstream_settings(self, one: int, two: int) -> None:
        self._settings(self.ends.at(self.stream(two)), one, two)

    def _settings(self, end: End, one: int, two: int) -> None:
        self.said += 1
        if self.said <= MOST_SETTINGS:
            if one % 3:
                end.settings(INITIAL_WINDOW_SIZE=(0, self.largest // 50 + 1, two % self.largest, 1 << 30)[one % 4])
            else:
                end.settings(HEADER_TABLE_SIZE=(0, 100, 4096, 65_536)[two % 4])

    def audit(self, one: int, _: int) -> None:
        self.ends.audit.full = bool(one % 2)
        if not self.ends.audit.full:
            self.ends.audit.empty()

    def stall(self, one: int, two: int) -> None:
        stream = self.ends.up if two % 2 else self.ends.down
        if stream is not None:
            stream.stall(stalled=bool(one % 2))

    def connect(self, _one: int, _two: int) -> None:
        self.ends.connect()

    def move(self, one: int, _: int) -> None:
        """The upstream is elsewhere, or where it was before."""
        self.ends.publish(self.generations[one % 2])

    def lose(self, one: int, _: int) -> None:
        """An upstream goes away, where that does not end the client's connection."""
        open_ones = [up for up, _ in self.ends.ups if up.established and not up.closed]
        if not open_ones or not self.ends.session.formers:
            return
        up = open_ones[one % len(open_ones)]
        self.disturbed |= set(up.handler.relay.calls)
        up.abort()
        up.handler.connection_lost(None)

    def ping(self, one: int, _: int) -> None:
        (self.ends.client if one % 2 else self.ends.upstream).connection.ping(b"12345678")

    def finish(self) -> None:
        """Everybody says the rest and reads all: whatever stood still goes on, and ends."""
        ends = self.ends
        ends.connect()
        ends.audit.empty()
        for stream in (*(up for up, _ in ends.ups), ends.down):
            stream.stall(stalled=False)
        for index in range(len(self.kinds)):
            for _ in range(2):
                self.say(index, LARGEST - 1)
        self._read_all()
        for stream in self.kinds:
            ends.client.grant(stream, 1 << 20)
            if stream in ends.at(stream).streams:
                ends.at(stream).grant(stream, 1 << 20)
        self._read_all()

    def _read_all(self) -> None:
        moving = True
        while moving:
            self.ends.client.read()
            for _, end in self.ends.ups:
                end.read()
            moving = self.ends.flush(pieces=self.pieces)

    def check(self) -> None:
        ends = self.ends
        for stream, kind in self.kinds.items():
            sent, seen = ends.client.streams[stream], ends.at(stream).streams.get(stream)
            assert sum(stream in end.streams for _, end in ends.ups) <= 1
            if kind.upstream is None:
                assert seen is None or not seen.ended
            if stream in self.disturbed:
                continue
            assert sent.status == kind.status, (kind, sent, seen)
            if kind.upstream is not None:
                assert seen is not None
                passes = kind.compressed and kind.role == "limited"
                said = prefixed(kind.upstream(self.messages[stream]), compressed=passes)
                assert seen.data == said
                assert sent.data == prefixed(self.answer_to(kind.path, said, shown=True))
        assert not ends.relay.calls
        assert not ends.session.formers
        assert not ends.gateway.former["grpc"]
        assert not ends.relay.wanting
        assert (ends.relay.pending_size, ends.gateway.memory.held) == (0, 0)
        assert len(ends.audit.lines) == len(self.kinds)
        assert ends.gateway.places.held == 0
        if {kind.status for kind in self.kinds.values()} <= {UNAUTHENTICATED, UNKNOWN}:
            assert ends.up is None
        if ends.up is None:
            assert ends.client.window_out() == FIRST_WINDOW
            return
        if ends.up.closed:  # it was left, and there was no call since
            return
        assert ends.client.window_out() == ends.upstream.window_in() + ends.relay.to_upstream.debt
        assert ends.upstream.window_out() == ends.client.window_in() + ends.relay.to_client.debt


STEPS: dict[Callable[[Run, int, int], None], int] = {
    Run.open: 6,
    Run.say: 6,
    Run.flush: 8,
    Run.cancel: 1,
    Run.upstream_cancels: 1,
    Run.client_grants: 1,
    Run.upstream_grants: 1,
    Run.client_reads: 1,
    Run.upstream_reads: 1,
    Run.client_settings: 2,
    Run.upstream_settings: 2,
    Run.audit: 1,
    Run.stall: 1,
    Run.connect: 2,
    Run.move: 2,
    Run.lose: 1,
    Run.ping: 1,
}
"""Each with how often it is chosen."""
NUMBERS = st.integers(0, 30) | st.integers(0, LARGEST)
SCENARIOS = st.lists(
    st.tuples(st.sampled_from([step for step, often in STEPS.items() for _ in range(often)]), NUMBERS, NUMBERS),
    max_size=60,
)
PIECES: dict[str, Callable[[], Callable[[int], int]]] = {
    "whole": lambda: lambda size: size,
    "byte by byte": lambda: lambda _: 1,
    "in pieces": lambda: cycle((1, 8, 1, 9, 16_384, 3, 100, 40_000)),
}


def cycle(sizes: tuple[int, ...]) -> Callable[[int], int]:
    endless = itertools.cycle(sizes)
    return lambda _: next(endless)


@pytest.fixture(params=[scheduler.SLICE, 0.0], ids=["at once", "step by step"])
def slice_(request: pytest.FixtureRequest) -> Iterator[None]:
    """For how long a message may be worked on before others are served, and how much of a read is one turn."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (scheduler, client):
            patch.setattr(module, "SLICE", request.param)
        if not request.param:
            patch.setattr(client, "TURN", 1)
            patch.setattr(http2, "MOST_FRAMES", 3)
        yield


@pytest.mark.fuzz
@pytest.mark.usefixtures("slice_")
@pytest.mark.parametrize("pieces", PIECES)
@given(steps=SCENARIOS)
def test_each_call_has_its_own_answer(
    made: Callable[[Callable[[int], int], int], Run],
    pieces: str,
    steps: list[tuple[Callable[[Run, int, int], None], int, int]],
) -> None:
    """No end ever sees an error of the protocol or of a window: it would raise it."""
    run = made(PIECES[pieces](), 300 if pieces == "byte by byte" else LARGEST)
    for step, one, two in steps:
        step(run, one, two)
    run.finish()
    run.check()
