"""One caller cannot shut the others out: not by bodies that dribble, not by answers it does not take, not by numbers.

Shares of what all have in common are max-min fair by identity (:mod:`tlsproxy.authz.shares`): whoever waits for its own
client with more than its fair share gives way, and whoever works is left alone.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.gateway import DEADLINE, Gateway
from support.raw import GET, RawClient, Response, connected
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
