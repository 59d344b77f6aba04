"""Connections to Qdrant: never more than configured, kept for reuse, let go before Qdrant would."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack

import orjson
from support.gateway import Gateway
from support.polling import until
from support.raw_connection import GET, UPSERT, RawClient, connected
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream


class Gate:
    """An upstream that answers when the test lets it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self, connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        self.entered.release()
        assert self.let.acquire(timeout=20)
        connection.sock.sendall(OK)


def config(site: Site, upstream: ScriptedUpstream, **settings: float) -> Gateway:
    return Gateway(site.write_config(upstream.url, upstream={"rest": upstream.url, **settings}))


def test_requests_beyond_wait_their_turn(site: Site, upstream: ScriptedUpstream) -> None:
    upstream.answer = gate = Gate()
    with config(site, upstream, max_connections=2) as gateway, ExitStack() as stack:
        clients = [stack.enter_context(connected(gateway, site.client())) for _ in range(6)]
        for client in clients:
            client.send(GET)
        for served in range(6):
            assert gate.entered.acquire(timeout=10)
            if served >= 1:
                gate.let.release()
        gate.let.release()
        assert [client.response().status for client in clients] == [200] * 6
    assert upstream.connections == 2


def test_the_next_place_is_for_the_caller_that_has_least(site: Site, upstream: ScriptedUpstream) -> None:
    """One caller may have all of them while nobody else wants any, and what is at work is left alone."""
    upstream.answer = gate = Gate()
    with config(site, upstream, max_connections=2) as gateway, ExitStack() as stack:
        many = [stack.enter_context(connected(gateway, site.client("search"))) for _ in range(6)]
        for client in many:
            client.send(GET)
        assert all(gate.entered.acquire(timeout=10) for _ in range(2))
        last = stack.enter_context(connected(gateway, site.client()))
        last.send(b"GET /telemetry HTTP/1.1\r\nhost: h\r\n\r\n")
        until(lambda: "tlsproxy_upstream_waiting 5.0" in gateway.ask_admin("/metrics")[1])
        gate.let.release()
        assert gate.entered.acquire(timeout=10)
        assert upstream.requests[-1].line.startswith("GET /telemetry")
        gate.let.release(6)
        assert [client.response().status for client in [*many, last]] == [200] * 7


def test_one_that_waits_too_long_is_told(site: Site, upstream: ScriptedUpstream) -> None:
    upstream.answer = gate = Gate()
    with (
        config(site, upstream, max_connections=1, connect_timeout=0.4) as gateway,
        connected(gateway, site.client()) as first,
        connected(gateway, site.client()) as second,
    ):
        first.send(GET)
        assert gate.entered.acquire(timeout=10)
        second.send(UPSERT, b"content-length: 5\r\n\r\nhello", GET)
        response = second.response()
        assert response.status == 504
        text = orjson.loads(response.body)["status"]["error"]
        assert text == "No connection to the upstream became free in time"
        gate.let.release(2)
        assert first.response().status == 200
        assert second.response().status in {200, 504}
    assert [request.line for request in upstream.requests if "PUT" in request.line] == []


def test_one_whose_client_leaves_gives_up_its_place(site: Site, upstream: ScriptedUpstream) -> None:
    upstream.answer = gate = Gate()
    with (
        config(site, upstream, max_connections=1) as gateway,
        connected(gateway, site.client()) as first,
        connected(gateway, site.client()) as last,
    ):
        first.send(GET)
        assert gate.entered.acquire(timeout=10)
        with connected(gateway, site.client()) as leaving:
            leaving.send(UPSERT, b"content-length: 5\r\n\r\nhello")
            last.send(GET)
        assert gateway.audited(method="upsert_points")["reason"] == "client_gone"
        gate.let.release(2)
        assert [first.response().status, last.response().status] == [200, 200]
    assert {request.line for request in upstream.requests} == {"GET /collections HTTP/1.1"}


def test_a_client_that_leaves_while_its_request_runs_costs_one_connection(
    site: Site, upstream: ScriptedUpstream
) -> None:
    upstream.answer = gate = Gate()
    with config(site, upstream, max_connections=1) as gateway:
        with connected(gateway, site.client()) as leaving:
            leaving.send(GET)
            assert gate.entered.acquire(timeout=10)
        assert gateway.audited(method="list_collections")["reason"] == "client_gone"
        gate.let.release(2)
        with connected(gateway, site.client()) as client:
            client.send(GET)
            assert client.response().body == b'{"status":"ok"}'
    assert upstream.connections == 2, "its answer must not become another's"


def test_too_many_that_wait_are_refused_at_once(site: Site, upstream: ScriptedUpstream) -> None:
    upstream.answer = gate = Gate()
    limits = {"connections": 4000, "connections_per_address": 4000}
    path = site.write_config(
        upstream.url, upstream={"rest": upstream.url, "max_connections": 1, "connect_timeout": 50}, limits=limits
    )
    with Gateway(path) as gateway, ExitStack() as stack:
        context = site.client()
        clients: list[RawClient] = []
        for _ in range(1 + 1024 + 1):
            clients.append(stack.enter_context(connected(gateway, context)))
            clients[-1].send(GET)
            if len(clients) == 1:
                assert gate.entered.acquire(timeout=10)
        assert gateway.audited(status=503)["reason"] == "overloaded"
        gate.let.release(len(clients))
        responses = [client.response() for client in clients]
        refused = [response for response in responses if response.status != 200]
        assert [(response.status, response.fields["retry-after"]) for response in refused] == [(503, "1")]
    assert upstream.connections == 1


def test_an_idle_connection_ends_before_the_upstream_would_end_it(site: Site, upstream: ScriptedUpstream) -> None:
    ended = threading.Event()

    def answer(connection: Connection, _request: Received) -> None:
        connection.sock.sendall(OK)
        connection.sock.settimeout(4.9)
        if connection.sock.recv(1) == b"":
            ended.set()
        raise EOFError

    upstream.answer = answer
    with config(site, upstream, idle_timeout=0.5) as gateway, connected(gateway, site.client()) as client:
        client.send(GET)
        assert client.response().status == 200
        assert ended.wait(4.9)
        client.send(GET)
        assert client.response().status == 200
    assert upstream.connections == 2


def test_an_upstream_that_restarts(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """All kept connections end at once; the next requests find new ones, writes too."""
    with connected(gateway, site.client()) as client:
        client.send(GET)
        assert client.response().status == 200
        for sock in list(upstream._open):
            sock.shutdown(socket.SHUT_RDWR)
        until(lambda: '"idle": 0' in gateway.ask_admin("/status")[1])
        client.send(UPSERT, b"content-length: 5\r\n\r\nhello")
        assert client.response().status == 200
    assert upstream.connections == 2
