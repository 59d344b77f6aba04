"""However much one client sends at once, others have their turns in between.

What a callback of the event loop does is counted, not timed: a turn is so many requests, chunks, frames and steps.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from support.gateway import Gateway
from support.h2_harness import Ends
from support.h2_harness import in_memory as grpc_in_memory
from support.raw_connection import RawClient, connected
from support.relay_generation import KEYS, asked, relay_generation
from support.rest_harness import RestEnds, Stream, in_memory, rest_generation
from support.site import Site
from support.upstream import ScriptedUpstream
from support.workers import status

from tlsproxy.proxy.core import scheduler
from tlsproxy.proxy.grpc import client as grpc
from tlsproxy.proxy.rest import connection
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire import chunked

UNKNOWN = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"
INFO = b"GET /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n"
HOSTILE, OTHER = "192.0.2.1", "192.0.2.2"
CONNECTIONS = 16


def query(role: str, body: bytes, *lines: bytes) -> bytes:
    fields = [b"host: h", b"api-key: " + KEYS[role].encode(), *lines, b"", b""]
    return b"POST /collections/docs/points/query HTTP/1.1\r\n" + b"\r\n".join(fields) + body


REFUSED = UNKNOWN * 300
WHOAMI = b"GET /_tlsproxy/whoami HTTP/1.1\r\nhost: h\r\napi-key: %b\r\n\r\n" % KEYS["plain"].encode()
EMPTY_BODIES = query("tenant", b"", b"content-length: 0") * 300
SMALL_BODIES = query("tenant", b"{", b"content-length: 1") * 300
CHUNKS = query("plain", b"1\r\nx\r\n" * 20_000, b"transfer-encoding: chunked")
CHUNKS_READ = CHUNKS.replace(KEYS["plain"].encode(), KEYS["limited"].encode())
BOMB = gzip.compress(b'{"query":[%b{}]}' % (b'{"a":"b"},' * 40_000))
BOMBS = query("limited", BOMB, b"content-encoding: gzip", b"content-length: %d" % len(BOMB))


@pytest.fixture(scope="module")
def generation(site: Site) -> Generation:
    return rest_generation(site)


@pytest.fixture
def ends(generation: Generation) -> Iterator[RestEnds]:
    """All in memory: a callback of the loop runs when the test says so, and no time passes."""
    ends = RestEnds(generation)
    with pytest.MonkeyPatch.context() as patch:
        for module in (scheduler, connection):
            patch.setattr(module, "SLICE", 1_000)
        for _ in in_memory(ends):
            yield ends


def send(stream: Stream, data: bytes) -> None:
    if stream.reading and not stream.closed:
        stream.handler.data_received(data)


def answered(stream: Stream) -> int:
    return stream.written.count(b"HTTP/1.1 ")


@pytest.mark.plain  # compiled code calls directly what the harness takes the place of
@pytest.mark.parametrize("hostile", [REFUSED, EMPTY_BODIES, SMALL_BODIES], ids=["refused", "empty", "small"])
def test_no_callback_takes_up_more_requests_than_a_turn_has(ends: RestEnds, hostile: bytes) -> None:
    most = 0
    before = 0

    def ran() -> None:
        nonlocal most, before
        most, before = max(most, len(ends.records) - before), len(ends.records)

    ends.loop.ran = ran
    streams = [ends.connect(HOSTILE) for _ in range(4)]
    for stream in streams:
        send(stream, hostile)
        ran()
    ends.quiet()
    assert most <= connection.TURN
    assert [answered(stream) for stream in streams] == [300] * 4
    assert len(ends.audit.lines) == 300 * 4


@pytest.mark.plain  # compiled code calls directly what the harness takes the place of
def test_what_a_turn_answers_goes_out_as_one(ends: RestEnds) -> None:
    stream = ends.connect()
    send(stream, REFUSED)
    ends.quiet()
    assert stream.writes <= -(-300 // connection.TURN) + 1


@pytest.mark.plain  # compiled code calls directly what the harness takes the place of
def test_others_have_every_second_turn(ends: RestEnds) -> None:
    """However many connections the one has, and the other a single one that asks much, too."""
    for stream in [ends.connect(HOSTILE) for _ in range(CONNECTIONS)]:
        send(stream, REFUSED)
    send(ends.connect(OTHER), WHOAMI * 200)
    ends.quiet()
    whose = [json.loads(line)["remote"] for line in ends.audit.lines]
    mine = [number for number, remote in enumerate(whose) if remote == OTHER]
    assert len(mine) == 200
    between = max(later - earlier - 1 for earlier, later in itertools.pairwise(mine))
    assert between <= connection.TURN


@pytest.mark.plain  # compiled code calls directly what the harness takes the place of
def test_who_asks_little_waits_for_nobody(ends: RestEnds) -> None:
    """It is answered in the callback in which it is heard, before what the others have left."""
    for stream in [ends.connect(HOSTILE) for _ in range(CONNECTIONS)]:
        send(stream, REFUSED)
    other = ends.connect(OTHER)
    for count in range(1, 20):
        ends.loop.run()
        send(other, WHOAMI)
        assert answered(other) == count
    assert ends.gateway.scheduler.waiting


@pytest.mark.plain  # compiled code calls directly what the harness takes the place of
@pytest.mark.parametrize("hostile", [CHUNKS, CHUNKS_READ], ids=["relayed", "read"])
def test_no_callback_follows_more_chunks_than_a_turn_has(ends: RestEnds, hostile: bytes) -> None:
    stream = ends.connect(HOSTILE)
    pieces = connection.TURN + 1  # the one with which it begins at its upstream
    turn = pieces * chunked.CHUNKS * len(b"1\r\nx\r\n") + 200
    left = 0

    def ran() -> None:
        nonlocal left
        now = len(stream.handler.inbox)
        assert left - now <= turn
        left = now

    ends.loop.ran = ran
    send(stream, hostile[:200])
    left = len(stream.handler.inbox) + len(hostile) - 200
    send(stream, hostile[200:])
    ran()
    assert left, "not all at once"
    assert not stream.reading, "nor is more taken before"
    ends.quiet()
    for up in ends.ups:  # of what is relayed, once so much has come that it begins
        up.established = up.reading = True
        up.handler.connected()
        ran()
    ends.quiet()
    assert not left
    assert stream.reading


@pytest.mark.plain  # compiled code calls directly what the harness takes the place of
def test_nor_does_an_upstream_that_dribbles(ends: RestEnds) -> None:
    stream = ends.connect()
    send(stream, INFO.replace(b"host: h", b"host: h\r\napi-key: " + KEYS["plain"].encode()))
    up = ends.ups[0]
    up.established = up.reading = True
    up.handler.connected()
    most = before = 0

    def ran() -> None:
        nonlocal most, before
        most, before = max(most, len(stream.written) - before), len(stream.written)

    ends.loop.ran = ran
    body = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    up.handler.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body)
    ran()
    ends.quiet()
    assert stream.written.endswith(body)
    assert most <= chunked.CHUNKS * 6 + 200


@pytest.mark.plain  # compiled code calls directly what the harness takes the place of
def test_no_callback_makes_more_steps_than_fit(ends: RestEnds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding, reading, and whatever else a body asks for: by a clock on which each step takes a millisecond."""
    clock, steps = itertools.count(), 5
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(monotonic=lambda: next(clock) / 1000))
    monkeypatch.setattr(scheduler, "SLICE", (steps - 2) / 1000)
    looked = 0

    def ran() -> None:
        nonlocal looked
        now = next(clock)
        assert now - looked <= steps + 1
        looked = now

    ends.loop.ran = ran
    others, streams = ends.connect(OTHER), [ends.connect(HOSTILE) for _ in range(4)]
    for stream in streams:
        send(stream, BOMBS)
        ran()
    served = 0
    while ends.loop.run():
        send(others, WHOAMI)
        served += 1
    assert answered(others) == served > 20


# gRPC


@pytest.fixture
def calls(site: Site) -> Iterator[Ends]:
    for _ in grpc_in_memory():
        yield Ends(relay_generation(site))


@pytest.mark.plain  # compiled code calls directly what the harness takes the place of
def test_no_callback_opens_more_calls_than_a_turn_has(calls: Ends) -> None:
    """300 fields without a message, refused: 20 KB."""
    refused = 300
    for _ in range(refused):
        calls.client.open(asked("/qdrant.Points/Nothing", "plain"))
    data, lines, most = calls.client.connection.data_to_send(), calls.audit.lines, 0
    calls.session.data_received(data)
    turns: list[Callable[[], bool]] = [lambda: True, calls.loop.run]
    before = 0
    while turns.pop(0)() or turns:
        most, before = max(most, len(lines) - before), len(lines)
        turns.append(calls.loop.run)
        if len(lines) == refused:
            break
    assert len(lines) == refused
    assert most <= grpc.TURN
    assert not calls.gateway.scheduler.waiting


# A process


def test_sixteen_connections_and_two_workers(own_site: Site, upstream: ScriptedUpstream) -> None:
    """No worker is replaced, every answer has its line, and others are answered meanwhile."""
    many = 100
    with Gateway(own_site.write_config(upstream.url, workers=2)) as gateway, ExitStack() as stack:
        before = [worker["pid"] for worker in status(gateway)["workers"]]
        hostile = [stack.enter_context(connected(gateway, own_site.client("stranger"))) for _ in range(CONNECTIONS)]
        other = stack.enter_context(connected(gateway, own_site.client()))
        for client in hostile:
            client.send(UNKNOWN * many)
        for _ in range(5):
            ask(other)
        answers = Counter(client.response().status for client in hostile for _ in range(many))
        assert answers == {403: CONNECTIONS * many}
        assert [worker["pid"] for worker in status(gateway)["workers"]] == before
        lines = Counter(record.get("status") for record in gateway.stop() if "request_id" in record)
    assert lines == {403: CONNECTIONS * many, 200: 5}


def ask(client: RawClient) -> None:
    client.send(INFO)
    assert client.response().status == 200
