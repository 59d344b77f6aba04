"""One caller cannot shut the others out: not by bodies that dribble, not by answers it does not take, not by numbers.

Shares of what all have in common are max-min fair by identity (:mod:`tlsproxy.authz.shares`): whoever waits for its own
client with more than its fair share gives way, and whoever works is left alone. Whoever is too slow is ended, whatever
came before.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.gateway import DEADLINE, Gateway
from support.raw import GET, SEARCH, UPLOAD, RawClient, Response, connected
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

# Upstream connections, by REST: a pool of 4 in each worker

PLACES = 4
LARGE = 64 << 20
DRIBBLES = b"POST /collections/docs/points/search HTTP/1.1\r\nhost: h\r\ncontent-length: 8000000\r\n\r\n{"
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
    while f'tlsproxy_upstream_connections{{state="busy"}} {gateway.places}.0' not in gateway.ask_admin("/metrics")[1]:
        pass


def told(clients: list[RawClient]) -> Response:
    """What the first of them is told that is told something."""
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


# Rates: what has come before buys no time

WINDOW = 0.5
"""Seconds."""
LIMITS = {"body_timeout": WINDOW, "head_timeout": WINDOW, "min_data_rate": 1024, "idle_timeout": 5.0}
LENGTH = b"content-length: %d\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
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
    "inspected query": ("ingest", SEARCH + LENGTH % (len(MUCH) + 40), MUCH),
    "chunked and inspected": ("ingest", SEARCH + CHUNKED, b"%x\r\n" % (4 << 20) + MUCH),
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


def test_a_body_at_the_lowest_rate_is_waited_for(site: Site, slow_gateway: Gateway) -> None:
    """Four times as long as the window, in pieces of a tenth of it."""
    with connected(slow_gateway, site.client("search")) as client:
        client.send(SEARCH, LENGTH % 4000)
        for _ in range(40):
            client.send(bytes(100))
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
            client.send(SEARCH, LENGTH % size, bytes(size - 40))
        other = stack.enter_context(connected(gateway, site.client("search")))
        began = time.monotonic()
        with ExitStack() as dripping:
            for client in hostile:
                thread = threading.Thread(target=drips, args=(client, b""))
                thread.start()
                dripping.callback(thread.join)
            while True:
                other.send(SEARCH, LENGTH % 2, b"{}")
                if other.response().status != 503 and time.monotonic() - began > WINDOW / 4:
                    break
        assert time.monotonic() - began < WINDOW + 2
