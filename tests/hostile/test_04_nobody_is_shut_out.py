"""One caller cannot shut the others out: not by bodies that dribble, not by answers it does not take, not by numbers.

Shares of what all have in common are max-min fair by identity (:mod:`tlsproxy.proxy.limits.fair_shares`): whoever waits
for its own client with more than its fair share gives way, and whoever works is left alone. Whoever is too slow is
ended, whatever came before.
"""

from __future__ import annotations

import gzip
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TypeVar

import grpc
import pytest
from hyperframe.frame import DataFrame, Frame, HeadersFrame, WindowUpdateFrame
from qdrant_client import grpc as pb
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcCall, GrpcUpstream, never, replying
from support.h2_raw_client import SEARCH as GRPC_SEARCH
from support.h2_raw_client import H2Client, fields, h2, message, raw
from support.polling import until
from support.raw_connection import GET, SEARCH, UPLOAD, RawClient, Response, Truncated, connected
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

from tlsproxy.wire.protobuf import delimited

LENGTH = b"content-length: %d\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"

# Upstream connections, by REST: a pool of 4 in each worker

PLACES = 4
LARGE = 64 << 20
DRIBBLES = SEARCH + b"content-length: 8000000\r\n\r\n{"
SCROLL = b"GET /collections/large/points/1 HTTP/1.1\r\nhost: h\r\n\r\n"


def answer(connection: Connection, request: Received) -> None:
    """A large one for what is large, and a body that never comes is waited for."""
    if "large" in request.line:
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % LARGE)
        for _ in range(LARGE >> 20):
            connection.sock.sendall(bytes(1 << 20))
        return
    request.body = connection.read_body(request)
    connection.sock.sendall(OK)


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def crowded(request: pytest.FixtureRequest, site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    shared_upstream.answer = answer
    upstream = {"rest": shared_upstream.url, "max_connections": PLACES, "connect_timeout": 15}
    with Gateway(site.write_config(shared_upstream.url, upstream=upstream, workers=request.param)) as running:
        running.places = PLACES * request.param
        yield running


def many(stack: ExitStack, gateway: Gateway, site: Site, name: str, count: int) -> list[RawClient]:
    context = site.client(name)
    return [stack.enter_context(connected(gateway, context)) for _ in range(count)]


def took_what_there_is(gateway: Gateway) -> None:
    """All places of all workers are in use."""
    busy = f'tlsproxy_upstream_connections{{state="busy"}} {gateway.places}.0'
    until(lambda: busy in gateway.ask_admin("/metrics")[1])


def told(clients: list[RawClient]) -> Response:
    """The first answer that any of them gets."""
    readable, _, _ = select.select([client.sock for client in clients], [], [], DEADLINE)
    return next(client for client in clients if client.sock in readable).response()


@pytest.mark.parametrize("asked", [DRIBBLES, SCROLL], ids=["bodies that dribble", "answers that nobody takes"])
def test_who_waits_for_its_own_client_gives_way(crowded: Gateway, site: Site, asked: bytes) -> None:
    with ExitStack() as stack:
        hostile = many(stack, crowded, site, "search", 3 * crowded.places)
        for one in hostile:
            one.send(asked)
        took_what_there_is(crowded)
        for client in many(stack, crowded, site, "admin", 4):
            client.send(GET, GET)
            assert [client.response().status for _ in range(2)] == [200, 200]
        assert crowded.audited(reason="gave_way")["role"] == "search"
        if asked is DRIBBLES:
            response = told(hostile)
            assert (response.status, response.fields["retry-after"]) == (503, "1")
            assert b"fair share" in response.body


# Upstream connections: none waits for a small body

BEGUN = {
    "a small body": LENGTH % 12_000 + b"{" * 11_000,
    "none of it": LENGTH % 12_000,
    "as much as is read first": LENGTH % 65_536 + b"{" * 65_535,
    "chunks": CHUNKED + b"2ee0\r\n" + b"{" * 11_000,
    "a chunk in pieces": CHUNKED + b"1\r\n{\r\n" * 1000 + b"1",
    "an invitation": b"expect: 100-continue\r\n" + LENGTH % 12_000,
    "invited chunks": b"expect: 100-continue\r\n" + CHUNKED,
}


@pytest.fixture(scope="module")
def small_pool(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    upstream = {"rest": shared_upstream.url, "max_connections": 2}
    with Gateway(site.write_config(shared_upstream.url, upstream=upstream)) as running:
        yield running


@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN)
def test_a_body_that_has_begun_takes_no_connection(site: Site, small_pool: Gateway, begun: bytes) -> None:
    """A reader has global rights, and no decision depends on its bodies."""
    with ExitStack() as stack:
        hostile = many(stack, small_pool, site, "search", 8)
        for client in hostile:
            client.send(SEARCH, begun)
        other = stack.enter_context(connected(small_pool, site.client()))
        for _ in range(15):
            other.send(GET)
            assert other.response().status == 200
        assert 'tlsproxy_upstream_connections{state="busy"} 0.0' in small_pool.ask_admin("/metrics")[1]


@pytest.mark.parametrize("pieces", [[2, 40], [40, 40, 1], [1] * 40], ids=len)
@pytest.mark.parametrize("size", [40, 65_000, 65_536, 70_000, 300_000])
def test_what_comes_in_pieces_goes_up_whole(
    site: Site, small_pool: Gateway, shared_upstream: ScriptedUpstream, size: int, pieces: list[int]
) -> None:
    body = bytes(range(1, 256)) * (size // 255 + 1)
    fixed, chunked = body[:size], b"%x\r\n%b\r\n0\r\n\r\n" % (size, body[:size])
    with connected(small_pool, site.client("search")) as client:
        for head, sent in ((LENGTH % size, fixed), (CHUNKED, chunked)):
            client.send(SEARCH, head)
            left = sent
            for piece in pieces:
                client.send(left[: piece * len(sent) // 50])
                left = left[piece * len(sent) // 50 :]
            client.send(left, GET)
            assert [client.response().status for _ in range(2)] == [200, 200]
            searches = [request for request in shared_upstream.requests if "search" in request.line]
            assert searches[-1].body == fixed


# Inspection memory, by REST and gRPC: 16 MiB in each worker

MEMORY = 16 << 20
ROLES = {
    "admin": {"access": "m"},
    "ingest": {"access": [{"collection": "docs", "access": "rw"}]},
    "search": {"access": [{"collection": "docs", "access": "rw"}], "filter": {"tenant": "acme"}},
}
BODY = b"POST /collections/docs/points/query HTTP/1.1\r\nhost: h\r\n"
NEARLY = (8 << 20) - 200


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def inspecting(request: pytest.FixtureRequest, site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    shared_upstream.answer = answer
    limits = {"inspection_memory_mb": MEMORY >> 20, "max_message_size_mb": 8}
    service = {"max_request_size_mb": 8, "grpc_port": 0}
    with GrpcUpstream() as messages:
        config = site.write_config(
            shared_upstream.url,
            grpc=messages.url,
            service=service,
            limits=limits,
            roles=ROLES,
            workers=request.param,
        )
        with Gateway(config) as running:
            running.memory = MEMORY * request.param
            yield running


def use_up(gateway: Gateway, begin: Callable[[], None]) -> None:
    """Begins until all workers have no room for one more."""
    for _ in range(40):
        begin()
        with suppress(AssertionError):  # it was one at a worker that has others already
            return until(lambda: gateway.inspection_memory() >= gateway.memory * 0.8, deadline=0.5)
    raise AssertionError(gateway.inspection_memory())


def test_bodies_that_nearly_came_give_way(inspecting: Gateway, site: Site) -> None:
    """All but some bytes of each, and then nothing: the memory that they hold is for whoever has less."""
    with ExitStack() as stack:

        def begin() -> None:
            (client,) = many(stack, inspecting, site, "ingest", 1)
            with suppress(OSError):  # it was one too many
                client.send(BODY, LENGTH % (8 << 20), b" " * NEARLY)

        use_up(inspecting, begin)
        for client in many(stack, inspecting, site, "search", 4):
            for _ in range(3):
                client.send(BODY, LENGTH % 20_013, b" " * 20_000, b'{"query":[1]}')
                assert client.response().status == 200
        assert inspecting.audited(reason="gave_way")["role"] == "ingest"


def begin_message(client: H2Client, size: int) -> None:
    """A call with so many bytes of a message of 8 MB, as its windows allow, unless it is refused."""
    stream = client.open(fields())
    content = message(delimited(1, b"docs") + delimited(2, bytes((8 << 20) - 100)))[:size]
    room, sent = {0: 65_535, stream: 65_535}, 0
    while sent < size:
        part = content[sent : sent + min(16_000, *room.values())]
        if not part:
            frame = client.until(Frame, lambda frame: frame.stream_id in room)
            if isinstance(frame, HeadersFrame):
                return
            if isinstance(frame, WindowUpdateFrame):
                room[frame.stream_id] += frame.window_increment
            continue
        client.send(DataFrame(stream, part))
        sent += len(part)
        for of in room:
            room[of] -= len(part)


def test_messages_that_nearly_came_give_way(inspecting: Gateway, site: Site) -> None:
    compressed = message(gzip.compress(SMALL), flag=1)
    with ExitStack() as stack:

        def begin() -> None:
            hostile = stack.enter_context(h2(inspecting, site, "search"))
            begin_message(hostile, NEARLY)

        use_up(inspecting, begin)
        for _ in range(4):
            client = stack.enter_context(h2(inspecting, site, "ingest"))
            stream = client.open(fields(GRPC_SEARCH, ("grpc-encoding", "gzip")))
            client.send(DataFrame(stream, compressed, flags=["END_STREAM"]))
            assert client.status(stream) == 0
        audited = inspecting.audited(reason="gave_way", role="search")
        assert audited["grpc_status"] == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


# Rates: what has come before buys no time

WINDOW = 0.5
"""Seconds."""
TIMES = dict.fromkeys(("linger_timeout", "body_timeout", "head_timeout"), WINDOW)
LIMITS = TIMES | {"min_data_rate": 1024, "idle_timeout": 5.0}
INSPECTED = b"POST /collections/docs/points/query HTTP/1.1\r\nhost: h\r\n"
AUDIT_LOGS = b"POST /audit/logs HTTP/1.1\r\nhost: h\r\n"
MUCH = bytes(3 << 20)


@pytest.fixture(scope="module")
def slow_gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(shared_upstream.url, limits=LIMITS)) as running:
        yield running


def pace(seconds: float) -> None:
    """Slowness is what is tested here."""
    threading.Event().wait(seconds)


def drips(
    client: RawClient, told: bytes = b"408", piece: bytes = b"x", every: float = 0.05, most: float = 10.0
) -> float:
    """Sends a piece now and then until it is told that this is too slow: after how many seconds."""
    client.sock.settimeout(every)
    began = time.monotonic()
    while time.monotonic() - began < most:
        client.send(piece)
        try:
            assert client.receive().startswith(b"HTTP/1.1 " + told)
        except TimeoutError:
            continue
        return time.monotonic() - began
    raise AssertionError(f"still there after {most} s")


BODIES = {
    "upload": ("admin", UPLOAD + LENGTH % (1 << 30), MUCH),
    "chunked": ("admin", UPLOAD + CHUNKED, b"%x\r\n" % (1 << 30) + MUCH),
    "query": ("search", SEARCH + LENGTH % (len(MUCH) + 40), MUCH),
    "small query": ("search", SEARCH + LENGTH % 500, b"{"),
    "inspected query": ("ingest", INSPECTED + LENGTH % (len(MUCH) + 40), MUCH),
    "chunked and inspected": ("ingest", INSPECTED + CHUNKED, b"%x\r\n" % (4 << 20) + MUCH),
    "question about the audit log": (
        "admin",
        AUDIT_LOGS + LENGTH % 50_000,
        b"{" * 40_000,
    ),
}


@pytest.mark.parametrize(("name", "head", "early"), BODIES.values(), ids=BODIES)
def test_a_body_that_comes_in_drops_after_a_quick_start_is_ended(
    site: Site, slow_gateway: Gateway, name: str, head: bytes, early: bytes
) -> None:
    with connected(slow_gateway, site.client(name)) as client:
        client.send(head, early)
        assert drips(client) < WINDOW + 2
    assert slow_gateway.audited(status=408)["reason"] == "client_timeout"


REFUSED = {
    "what is skipped": LENGTH % 60_000,
    "what is not": LENGTH % 600_000,
    "chunks": CHUNKED + b"%x\r\n" % 600_000,
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_so_is_the_rest_of_a_refused_one(site: Site, slow_gateway: Gateway, body: bytes) -> None:
    """Dropped, or left unread behind the answer."""
    with connected(slow_gateway, site.client("search")) as client:
        client.send(b"DELETE /collections/docs HTTP/1.1\r\nhost: h\r\n" + body)
        assert client.response().status == 403
        client.sock.settimeout(0.05)
        began = time.monotonic()
        with suppress(ConnectionError, Truncated):
            while time.monotonic() - began < WINDOW + 3:
                client.send(b"x")
                with suppress(TimeoutError):
                    if not client.receive():
                        break
        assert time.monotonic() - began < WINDOW + 2


def test_a_steady_body_is_waited_for(site: Site, slow_gateway: Gateway) -> None:
    """Four times as long as the window, in pieces of a tenth of it."""
    with connected(slow_gateway, site.client("search")) as client:
        client.send(SEARCH, LENGTH % 40_000)
        for _ in range(40):
            client.send(bytes(1000))
            pace(WINDOW / 10)
        assert client.response().status == 200


def test_each_head_of_a_pipeline_has_its_time(site: Site, slow_gateway: Gateway) -> None:
    with connected(slow_gateway, site.client()) as client:
        client.send(GET, GET, GET[:-2])
        assert [client.response().status for _ in range(2)] == [200, 200]
        assert drips(client) < WINDOW + 2


def test_bodies_that_fill_the_memory_for_inspection_do_so_for_a_window(
    site: Site, shared_upstream: ScriptedUpstream
) -> None:
    """Eight nearly whole bodies of one caller, then a byte now and then: the other is heard again."""
    limits = LIMITS | {"inspection_memory_mb": 8}
    config = site.write_config(shared_upstream.url, service={"max_request_size_mb": 1}, limits=limits)
    roles = {"admin": {"access": "m"}, "ingest": {"access": [{"collection": "docs", "access": "rw"}]}}
    site.edit_config(config, roles=roles | {"search": {"access": [{"collection": "docs", "access": "r"}]}})
    size = 1 << 20
    with Gateway(config) as gateway, ExitStack() as stack:
        hostile = [stack.enter_context(connected(gateway, site.client("ingest"))) for _ in range(8)]
        for client in hostile:
            client.send(INSPECTED, LENGTH % size, bytes(size - 40))
        other = stack.enter_context(connected(gateway, site.client("search")))
        began = time.monotonic()
        with ExitStack() as dripping:
            for client in hostile:
                thread = threading.Thread(target=drips, args=(client, b""))
                thread.start()
                dripping.callback(thread.join)
            while True:
                other.send(INSPECTED, LENGTH % 4000, b"{" + b" " * 3998 + b"}")
                if other.response().status != 503 and time.monotonic() - began > WINDOW / 4:
                    break
        assert time.monotonic() - began < WINDOW + 2


# Rates, over gRPC: what has begun ends


@pytest.fixture(scope="module")
def rate_upstream() -> Iterator[GrpcUpstream]:
    with GrpcUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def slow_grpc(site: Site, shared_upstream: ScriptedUpstream, rate_upstream: GrpcUpstream) -> Iterator[Gateway]:
    docs = [{"collection": "docs", "access": "rw"}]
    tenant = {"access": docs, "filter": {"tenant": "acme"}}
    roles = {"admin": {"access": "m"}, "ingest": {"access": docs}, "search": tenant}
    limits = LIMITS | {"write_timeout": WINDOW, "idle_timeout": 2.0}
    upstream = {"response_timeout": 3.0}
    path = site.write_config(shared_upstream.url, grpc=rate_upstream.url, limits=limits, roles=roles, upstream=upstream)
    with Gateway(path) as running:
        yield running


SWEEPS = 3
"""Seconds: the waits of a connection are looked at once in each, and there is one look before the first that counts."""
DEADLINE_EXCEEDED = 4
QUERY = message(pb.SearchPoints(collection_name="docs", vector=[0.0] * 15_500).SerializeToString())
SMALL = pb.SearchPoints(collection_name="docs", vector=[0.0]).SerializeToString()
T = TypeVar("T")
K = TypeVar("K")


def dripping(client: H2Client, drop: bytes, until: Callable[[], T]) -> T:
    """What it is told while it sends a drop now and then."""
    client.sock.settimeout(0.1)
    while True:
        with suppress(OSError):
            client.send(drop)
        try:
            return until()
        except TimeoutError:
            continue


def at_once(run: Callable[[K], T], of: Iterable[K]) -> dict[K, T]:
    """What each comes to: waiting takes its time, so they all do at the same time."""
    keys = list(of)
    with ThreadPoolExecutor(len(keys)) as threads:
        return dict(zip(keys, threads.map(run, keys), strict=True))


def test_a_message_that_comes_in_drops_is_ended_and_its_connection_goes_on(site: Site, slow_grpc: Gateway) -> None:
    """One that is relayed, read on its way, or taken whole; a frame of a byte each time, soon or after much."""

    def ended(case: tuple[str, int]) -> tuple[int, int, bool]:
        name, early = case
        with h2(slow_grpc, site, name) as client:
            stream = client.open()
            for start in range(0, early, 10_000):
                client.send(DataFrame(stream, QUERY[start : min(early, start + 10_000)]))
            drop = DataFrame(stream, b"\0").serialize()
            began = time.monotonic()
            status = dripping(client, drop, lambda: client.status(stream))
            soon = time.monotonic() - began < WINDOW + SWEEPS
            client.sock.settimeout(DEADLINE)
            return status, client.status(client.call(SMALL)), soon

    cases = [(name, early) for name in ("admin", "ingest", "search") for early in (20, 60_000)]
    assert at_once(ended, cases) == dict.fromkeys(cases, (DEADLINE_EXCEEDED, 0, True))
    assert slow_grpc.audited(reason="client_timeout")["grpc_status"] == DEADLINE_EXCEEDED


def test_a_frame_that_comes_in_drops_is_no_way_round_it(site: Site, slow_grpc: Gateway) -> None:
    with h2(slow_grpc, site) as client:
        stream = client.open()
        client.send(raw(0, 0, stream, QUERY[:10], length=16_000))
        began = time.monotonic()
        assert dripping(client, b"\0", lambda: client.status(stream)) == DEADLINE_EXCEEDED
        assert time.monotonic() - began < WINDOW + SWEEPS


def test_nor_is_room_that_nobody_needs(site: Site, slow_grpc: Gateway, rate_upstream: GrpcUpstream) -> None:
    """An upstream that does not answer is not waited for longer because its client grants it more."""
    rate_upstream.answer = never
    try:
        with h2(slow_grpc, site) as client:
            stream = client.call()
            drop = WindowUpdateFrame(stream, 1).serialize()
            assert dripping(client, drop, lambda: client.status(stream)) == DEADLINE_EXCEEDED
    finally:
        rate_upstream.answer = replying(b"")
    assert slow_grpc.audited(reason="upstream_timeout")["grpc_status"] == DEADLINE_EXCEEDED


def test_a_steady_message_is_waited_for(site: Site, slow_grpc: Gateway) -> None:
    """Six times as long as the window, beside a call that does not go on, and is ended."""
    with h2(slow_grpc, site) as client:
        steady, slow = client.open(), client.open()
        for start in range(0, 40_000, 1000):
            client.send(DataFrame(steady, QUERY[start : start + 1000]))
            pace(WINDOW / 7)
        client.send(*(DataFrame(steady, QUERY[start : start + 10_000]) for start in range(40_000, len(QUERY), 10_000)))
        client.send(DataFrame(steady, b"", flags=["END_STREAM"]))
        assert client.statuses([steady, slow]) == {steady: 0, slow: DEADLINE_EXCEEDED}


HALVES: dict[str, Callable[[int], tuple[bytes, bytes]]] = {
    "a field block": lambda stream: (raw(1, 0, stream, b"\x83"), raw(9, 0, stream)),
    "a continuation": lambda stream: (raw(1, 0, stream, b"\x83") + raw(9, 4, stream, length=9000), b"\x83"),
    "HEADERS": lambda stream: (raw(1, 4, stream, length=9000), b"\x83"),
    "the header of a frame": lambda _: (b"\0\0", b""),
    "SETTINGS": lambda _: (raw(4, 0, 0, length=600), b"\0"),
    "a ping": lambda _: (raw(6, 0, 0, b"1234", length=8), b""),
    "DATA that is nobody's": lambda stream: (raw(0, 0, stream, length=16_000), b"\0"),
}


@pytest.mark.parametrize("calling", [False, True], ids=["on an idle connection", "beside a call"])
def test_half_of_something_has_the_time_of_a_head(
    site: Site, slow_grpc: Gateway, rate_upstream: GrpcUpstream, *, calling: bool
) -> None:
    def ended(name: str) -> tuple[int, bool]:
        with h2(slow_grpc, site) as client:
            if calling:
                client.call()
            began = time.monotonic()
            first, drop = HALVES[name](client.next())
            client.send(first)
            return dripping(client, drop, client.goaway), time.monotonic() - began < WINDOW + SWEEPS

    rate_upstream.answer = never if calling else replying(b"")
    try:
        assert at_once(ended, HALVES) == dict.fromkeys(HALVES, (0, True))
    finally:
        rate_upstream.answer = replying(b"")


def test_frames_alone_keep_no_connection(site: Site, slow_grpc: Gateway) -> None:
    """Pings, room, and what nobody knows: it is calls that a connection is kept for."""

    def ended(drop: bytes) -> tuple[int, bool]:
        with h2(slow_grpc, site) as client:
            began = time.monotonic()
            return dripping(client, drop, client.goaway), time.monotonic() - began < 2.0 + 2

    drops = [raw(6, 0, 0, b"12345678"), raw(8, 0, 0, b"\0\0\0\1"), raw(0x20, 0, 0, b"x")]
    assert at_once(ended, drops) == dict.fromkeys(drops, (0, True))


async def by_method(call: GrpcCall) -> None:
    """Large for a listing."""
    found = [pb.CollectionDescription(name="docs")] * 5000
    large = pb.ListCollectionsResponse(collections=found).SerializeToString()
    await replying(large if call.method.endswith("List") else b"")(call)


def test_an_answer_that_its_client_does_not_take_is_ended_while_others_go_on(
    site: Site, slow_grpc: Gateway, rate_upstream: GrpcUpstream
) -> None:
    """One that is relayed, and a listing that is reduced; without any room, and with a little now and then."""

    def ended(case: tuple[str, int]) -> tuple[int, int, bool]:
        name, room = case
        with h2(slow_grpc, site, name, INITIAL_WINDOW_SIZE=1000) as client:
            stream = client.call(b"", fields("/qdrant.Collections/List"))
            began = time.monotonic()
            drop = WindowUpdateFrame(stream, room).serialize() if room else b""
            status = dripping(client, drop, lambda: client.status(stream))
            soon = time.monotonic() - began < WINDOW + SWEEPS
            client.sock.settimeout(DEADLINE)
            return status, client.status(client.call(SMALL)), soon

    rate_upstream.answer = by_method
    try:
        cases = [(name, room) for name in ("admin", "ingest") for room in (0, 10)]
        assert at_once(ended, cases) == dict.fromkeys(cases, (DEADLINE_EXCEEDED, 0, True))
    finally:
        rate_upstream.answer = replying(b"")
    assert slow_grpc.audited(reason="client_stalled")["grpc_status"] == DEADLINE_EXCEEDED


def test_so_is_one_that_has_used_up_the_room_of_its_connection(
    site: Site, slow_grpc: Gateway, rate_upstream: GrpcUpstream
) -> None:
    rate_upstream.answer = replying(bytes(100_000))
    try:
        with h2(slow_grpc, site, INITIAL_WINDOW_SIZE=1 << 20) as client:
            stream = client.call()
            assert dripping(client, WindowUpdateFrame(0, 1).serialize(), lambda: client.status(stream)) == 4
    finally:
        rate_upstream.answer = replying(b"")
    while slow_grpc.audited(reason="client_stalled")["bytes_out"] < 65_535:
        pass  # that of another test
