"""Qdrant does not answer in time: 504, in its form, within the configured time, and the connection goes on."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import orjson
import pytest
from support.gateway import Gateway
from support.raw_connection import GET, UPSERT, RawClient, Truncated, connected
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream, plain

SLOW = {"response_timeout": 0.5, "connect_timeout": 0.5}


@pytest.fixture
def gateway(site: Site, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(upstream.url, upstream={"rest": upstream.url, **SLOW})) as running:
        yield running


@contextmanager
def held(upstream: ScriptedUpstream, begin: bytes = b"") -> Iterator[None]:
    """The upstream says ``begin`` and no more."""
    release = threading.Event()

    def answer(connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        connection.sock.sendall(begin)
        release.wait(20)
        raise EOFError

    upstream.answer = answer
    try:
        yield
    finally:
        release.set()


@pytest.mark.parametrize("request_bytes", [GET, UPSERT + b"content-length: 5\r\n\r\nhello"])
def test_no_head_in_time(site: Site, gateway: Gateway, upstream: ScriptedUpstream, request_bytes: bytes) -> None:
    with connected(gateway, site.client()) as client, held(upstream):
        began = time.monotonic()
        client.send(request_bytes)
        response = client.response()
        assert response.status == 504
        assert 0.4 < time.monotonic() - began < 3
        assert orjson.loads(response.body)["status"]["error"] == "The upstream did not answer in time"
        assert gateway.audited(status=504)["reason"] == "upstream_timeout"
        upstream.answer = plain()
        client.send(GET)
        assert client.response().status == 200
    assert upstream.connections == 2, "the one that owes an answer is not used again"


def test_a_body_that_stops_is_a_cut_and_not_an_end(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
    with connected(gateway, site.client()) as client, held(upstream, head):
        client.send(GET)
        body = client.body(client.head())
        assert next(body) == b"hello"
        with pytest.raises(Truncated):
            next(body)
    assert gateway.audited(status=200)["reason"] == "upstream_timeout"


def test_a_slow_response_that_goes_on_is_not_late(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    read = threading.Semaphore(0)

    def answer(connection: Connection, _request: Received) -> None:
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        for byte in b"hello":
            assert not read.acquire(timeout=0.25)  # the time between two pieces is what counts
            connection.sock.sendall(bytes((byte,)))

    upstream.answer = answer
    with connected(gateway, site.client()) as client:
        client.send(GET)
        assert client.response().body == b"hello"


def test_a_client_that_is_slow_with_its_body_is_not_the_upstreams_fault(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    pause = threading.Event()
    with connected(gateway, site.client()) as client:
        client.send(UPSERT, b"content-length: 5\r\n\r\n")
        pause.wait(1.2)
        client.send(b"hello")
        assert client.response().status == 200
    assert upstream.requests[0].body == b"hello"


def test_a_connection_that_is_not_accepted(site: Site) -> None:
    """A full backlog, which drops what comes."""
    with socket.socket() as full, socket.socket() as filler, socket.socket() as another:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        filler.connect(address)
        another.setblocking(False)
        another.connect_ex(address)
        url = f"http://127.0.0.1:{address[1]}"
        with Gateway(site.write_config(url, upstream={"rest": url, **SLOW})) as gateway:
            with connected(gateway, site.client()) as client:
                client.send(GET)
                response = client.response()
                assert response.status == 504
                text = orjson.loads(response.body)["status"]["error"]
                assert text == "The upstream could not be reached in time"
            assert 'outcome="timeout"' in gateway.ask_admin("/metrics")[1]


def test_an_upstream_that_takes_a_body_slowly_but_steadily_is_left_to(site: Site, upstream: ScriptedUpstream) -> None:
    """A third of a send buffer, after which Linux calls a socket writable, takes it longer than `response_timeout`."""
    size = 7 << 20

    def answer(connection: Connection, _request: Received) -> None:
        # Else it would open its window in large steps.
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        began, left = time.monotonic(), size
        while left:
            left -= len(connection.read(min(left, 50_000)))
            threading.Event().wait(max(0.0, min(3.0, (size - left) / 1_000_000) - (time.monotonic() - began)))
        connection.sock.sendall(OK)

    upstream.answer = answer
    config = site.write_config(upstream.url, upstream={"rest": upstream.url, "response_timeout": 1.0})
    with Gateway(config) as gateway, connected(gateway, site.client()) as client:
        client.send(UPSERT, b"content-length: %d\r\n\r\n" % size, bytes(size))
        assert client.response().status == 200


def test_one_that_stops_taking_it_is_late(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    release = threading.Event()

    def answer(_connection: Connection, _request: Received) -> None:
        release.wait(20)

    upstream.answer = answer
    try:
        with connected(gateway, site.client()) as client:
            sending = threading.Thread(target=push, args=(client,))
            sending.start()
            try:
                assert client.response().status == 504
            finally:
                sending.join()
    finally:
        release.set()
    assert gateway.audited(status=504)["reason"] == "upstream_timeout"


def push(client: RawClient) -> None:
    with suppress(OSError):
        client.send(UPSERT, b"content-length: %d\r\n\r\n" % (30 << 20), bytes(30 << 20))
