"""A REST connection as a state machine: whatever comes, in whatever pieces, and whatever fails at whichever step, each
request has one line and gives back once what it took.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.relay_generation import KEYS
from support.rest_harness import RestEnds, Stream, in_memory, rest_generation
from support.site import Site

from tlsproxy.proxy.core import scheduler
from tlsproxy.proxy.rest import buffered_response, connection
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire import chunked

pytestmark = pytest.mark.plain  # compiled code calls directly what the harness takes the place of

QUERY = "POST /collections/docs/points/query"
BODY = b'{"limit":1}'


def head(line: str, role: str, *lines: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "host: h", f"api-key: {KEYS.get(role, role)}", *lines, "", ""]).encode()


def sized(line: str, role: str, body: bytes, *lines: str) -> bytes:
    return head(line, role, "content-type: application/json", f"content-length: {len(body)}", *lines) + body


def in_chunks(line: str, role: str, body: bytes, size: int = 3) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head(line, role, "transfer-encoding: chunked") + framed + b"0\r\n\r\n"


REQUESTS = {
    "allowed": head("GET /collections/docs", "plain"),
    "allowed with a body": sized(QUERY, "plain", BODY),
    "allowed in chunks": in_chunks(QUERY, "plain", BODY * 9, 1),
    "allowed, not read again": sized("PUT /collections/docs/points", "plain", b'{"points":[]}'),
    "allowed, expecting": sized(QUERY, "plain", BODY, "expect: 100-continue"),
    "no such route": head("GET /nothing/here", "plain"),
    "no such route, with a body": sized("POST /nothing/here", "plain", BODY),
    "no such route, in chunks": in_chunks("POST /nothing/here", "plain", BODY),
    "no such key": head("GET /collections", "wrong"),
    "read": sized(QUERY, "limited", BODY),
    "read in chunks": in_chunks(QUERY, "limited", BODY),
    "read, expecting": sized(QUERY, "limited", BODY, "expect: 100-continue"),
    "read and empty": sized(QUERY, "limited", b""),
    "read and empty, in chunks": in_chunks(QUERY, "limited", b""),
    "read and refused": sized(QUERY, "limited", b'{"lookup_from":{"collection":"other"},"query":1}'),
    "read, and no JSON": sized(QUERY, "limited", b"{"),
    "read, with bad chunks": head(QUERY, "limited", "transfer-encoding: chunked") + b"x\r\n",
    "written anew": sized(QUERY, "tenant", BODY),
    "a listing": head("GET /collections", "limited"),
    "whoami": head("GET /_tlsproxy/whoami", "plain"),
    "the audit log": sized("POST /audit/logs", "plain", b"{}"),
    "the audit log, unreadable": sized("POST /audit/logs", "plain", b"["),
    "too large": head(QUERY, "plain", "content-length: 999999999"),
    "too large, read": head(QUERY, "limited", "content-length: 999999999"),
    "unreadable": b"NONSENSE\r\n\r\n",
    "the last": head("GET /collections/docs", "plain", "connection: close"),
}
ANSWERS = {
    "whole": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a listing": b'HTTP/1.1 200 OK\r\ncontent-length: 31\r\n\r\n{"result":{"collections":[ ] }}',
    "in chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    "until its end": b"HTTP/1.1 200 OK\r\n\r\n{}",
    "coded, until its end": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n",
    "denied, until its end": b"HTTP/1.1 403 Forbidden\r\n\r\n",
    "half": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{",
    "an interim one": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "half a head": b"HTTP/1.1 200",
    "nonsense": b"\0\r\n\r\n",
}


class Run:
    """What each step does, by its name. ``one`` chooses among what there is."""

    def __init__(self, ends: RestEnds, pipelines: list[list[str]], generations: tuple[Generation, Generation]) -> None:
        self.ends = ends
        self.generations = generations
        self.streams = [ends.connect() for _ in pipelines]
        for stream, names in zip(self.streams, pipelines, strict=True):
            stream.coming += b"".join(REQUESTS[name] for name in names)

    def _stream(self, one: int) -> Stream:
        return self.streams[one % len(self.streams)]

    def _up(self, one: int) -> Stream | None:
        live = [stream for stream in self.ends.ups if not stream.closed]
        return live[one % len(live)] if live else None

    def arrive(self, one: int) -> None:
        """Some of what was asked."""
        stream = self._stream(one)
        size = one // len(self.streams) % 200 + 1
        self._deliver(stream, size if one % 3 else len(stream.coming))

    @staticmethod
    def _deliver(stream: Stream, size: int) -> None:
        if stream.reading and not stream.closed and stream.coming:
            piece = bytes(stream.coming[:size])
            del stream.coming[:size]
            stream.handler.data_received(piece)

    def turn(self, _: int) -> None:
        self.ends.loop.run()

    def elapse(self, _: int) -> None:
        self.ends.loop.elapse()

    def stand(self, one: int) -> None:
        """An upstream connection does."""
        if (up := self._up(one)) and not up.established:
            up.established = up.reading = True
            up.handler.connected()

    def answer(self, one: int) -> None:
        names = list(ANSWERS)
        if (up := self._up(one // len(names))) and up.established and up.reading:
            up.handler.data_received(ANSWERS[names[one % len(names)]])

    def lose(self, one: int) -> None:
        """An upstream connection, be it before it stands."""
        if up := self._up(one):
            up.abort(OSError("lost") if one % 2 else None)

    def congest(self, one: int) -> None:
        if up := self._up(one):
            up.stall(stalled=not up.stalled)

    def no_socket(self, one: int) -> None:
        self.ends.no_socket = bool(one % 2)

    def stall(self, one: int) -> None:
        """A client takes its answers no more, or again."""
        stream = self._stream(one)
        stream.stall(stalled=not stream.stalled)

    def audit(self, one: int) -> None:
        if one % 2:
            self.ends.audit.full = True
        else:
            self.ends.audit.empty()

    def overdue(self, one: int) -> None:
        streams = [*self.streams, *self.ends.ups]
        streams[one % len(streams)].overdue()

    def go(self, one: int) -> None:
        self._stream(one).abort(None if one % 2 else OSError("reset"))

    def expel(self, one: int) -> None:
        stream = self._stream(one)
        if not stream.closed:
            (stream.handler.expel if one % 2 else lambda _: stream.handler.drain())("role_changed")

    def publish(self, one: int) -> None:
        """The same again, or another upstream: what was not sent to the one goes to the other (see the support)."""
        self.ends.publish(self.generations[one % 2])

    def finish(self) -> None:
        """All that waits comes to its end."""
        ends = self.ends
        ends.no_socket = False
        for _ in range(100):
            ends.audit.empty()
            ends.quiet()
            for stream in self.streams:
                stream.stall(stalled=False)
                self._deliver(stream, len(stream.coming))
            for up in ends.ups:
                up.stall(stalled=False)
                if not (up.closed or up.established):
                    up.established = up.reading = True
                    up.handler.connected()
                if not up.closed and up.handler.request is not None:
                    up.reading = True
                    up.handler.data_received(ANSWERS["a listing"])
            ends.quiet()
            if not ends.loop.elapse() and not any(stream.coming and not stream.closed for stream in self.streams):
                break
        for stream in self.streams:
            stream.abort()
        ends.pool.close()
        ends.quiet()
        while ends.loop.elapse():
            ends.quiet()

    def check(self) -> None:
        ends = self.ends
        lines = [json.loads(line) for line in ends.audit.lines if '"request_id"' in line]
        assert Counter(line["request_id"] for line in lines) == Counter(record.id for record in ends.records)
        answered = [one for stream in self.streams for one in re.findall(rb"x-request-id: (\w+)", stream.written)]
        assert len(answered) == len(set(answered)), "one is answered twice"
        assert ends.audit.promised == 0
        assert (ends.gateway.memory.held, ends.gateway.memory.waiting) == (0, 0)
        assert (ends.gateway.places.held, ends.gateway.places.waiting) == (0, 0)
        assert not any(ends.table._own), "requests in flight; one that is given back twice is a ValueError"
        assert ends.pool.counts == (0, 0, 0)
        assert ends.gateway.scheduler.waiting == {}
        assert ends.ended == len(self.streams)


STEPS: dict[Callable[[Run, int], None], int] = {
    Run.arrive: 8,
    Run.turn: 4,
    Run.stand: 3,
    Run.answer: 6,
    Run.lose: 1,
    Run.congest: 1,
    Run.no_socket: 1,
    Run.stall: 1,
    Run.audit: 2,
    Run.overdue: 1,
    Run.elapse: 1,
    Run.go: 1,
    Run.expel: 1,
    Run.publish: 1,
}
"""Each with how often it is chosen."""
PIPELINES = st.lists(st.lists(st.sampled_from(list(REQUESTS)), min_size=1, max_size=12), min_size=1, max_size=3)
SCENARIOS = st.lists(
    st.tuples(st.sampled_from([step for step, often in STEPS.items() for _ in range(often)]), st.integers(0, 1 << 10)),
    max_size=80,
)

CODED = [
    *((step, 0) for step in (Run.arrive, Run.turn, Run.turn, Run.stand)),
    (Run.answer, list(ANSWERS).index("coded, until its end")),
    *((step, 0) for step in (Run.lose, Run.turn)),
]


@pytest.fixture(scope="module")
def made(site: Site) -> Callable[[str], tuple[Generation, Generation]]:
    """By what the audit log does when it is full: two that differ in their upstream."""

    @cache
    def generations(on_full: str) -> tuple[Generation, Generation]:
        return rest_generation(site, on_full), rest_generation(site, on_full, "http://127.0.0.2:1")

    return generations


@contextmanager
def running(generations: tuple[Generation, Generation], pipelines: list[list[str]], *, stepwise: bool) -> Iterator[Run]:
    ends = RestEnds(generations[0])
    with pytest.MonkeyPatch.context() as patch:
        if stepwise:
            for module in (scheduler, connection):
                patch.setattr(module, "SLICE", 0.0)
            patch.setattr(connection, "TURN", 1)
            patch.setattr(chunked, "CHUNKS", 2)
            patch.setattr(buffered_response, "PIECE", 7)
        for _ in in_memory(ends):
            yield Run(ends, pipelines, generations)


@pytest.mark.fuzz
@pytest.mark.parametrize("on_full", ["refuse", "block"])
@pytest.mark.parametrize("stepwise", [False, True], ids=["at once", "step by step"])
@given(pipelines=PIPELINES, steps=SCENARIOS)
@example([["allowed"], ["written anew"], ["allowed"]], [(Run.arrive, 284), (Run.stall, 500)])  # gives way as it ends
@example([["written anew"]], CODED)  # is refused as its upstream ends well
def test_each_request_ends_once(
    made: Callable[[str], tuple[Generation, Generation]],
    on_full: str,
    pipelines: list[list[str]],
    steps: list[tuple[Callable[[Run, int], None], int]],
    *,
    stepwise: bool,
) -> None:
    with running(made(on_full), pipelines, stepwise=stepwise) as run:
        for step, one in steps:
            step(run, one)
        run.finish()
        run.check()


def test_a_large_answer_is_sent_in_turns_to_a_client_that_takes_all_of_it(
    made: Callable[[str], tuple[Generation, Generation]],
) -> None:
    with running(made("refuse"), [[]], stepwise=True) as run:
        loop, stream = run.ends.loop, run.ends.connect()
        stream.handler.data_received(REQUESTS["the audit log"])
        run.ends.quiet()
        loop.elapse()
        writes = [stream.writes]
        while loop.run():
            writes.append(stream.writes)
        assert max(after - before for before, after in itertools.pairwise(writes)) == 1
        assert stream.writes >= len(b'{"result":{"entries":[]},"status":"ok","time":0.0}') // 7


@pytest.mark.parametrize("kind", REQUESTS)
def test_hundreds_of_a_kind_at_once(made: Callable[[str], tuple[Generation, Generation]], kind: str) -> None:
    """However they end, none ends from inside another."""
    with running(made("refuse"), [[kind] * 160], stepwise=False) as run:
        run.arrive(0)
        run.finish()
        run.check()
