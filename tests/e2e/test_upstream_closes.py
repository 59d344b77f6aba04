"""What a broken upstream says never becomes an answer: a 502 where nothing was told yet, a cut where it was."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from support.gateway import DEADLINE, Gateway
from support.raw_connection import GET, Truncated, connected
from support.site import Site
from support.upstream import OK, Answer, Connection, Received, ScriptedUpstream, plain


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """One for all: each of these leaves it sound."""
    with Gateway(site.write_config(upstream.url)) as running:
        yield running


def then_close(data: bytes) -> Answer:
    def answer(connection: Connection, request: Received) -> None:
        connection.read_body(request)
        connection.sock.sendall(data)
        raise EOFError

    return answer


def sound(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    upstream.answer = plain()
    with connected(gateway, site.client()) as client:
        client.send(GET)
        assert client.response().body == b'{"status":"ok"}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"nonsense\r\n\r\n",
        b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : a\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000,
    ],
)
def test_no_head_that_can_be_trusted(site: Site, gateway: Gateway, upstream: ScriptedUpstream, data: bytes) -> None:
    upstream.answer = then_close(data)
    with connected(gateway, site.client()) as client:
        client.send(GET, GET)
        for _ in range(2):
            response = client.response()
            assert (response.status, response.fields["content-type"]) == (502, "application/json")
            assert b"a" * 100 not in response.body
            assert gateway.audited(status=502)["reason"] == "upstream_broken"
    sound(site, gateway, upstream)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nA\r\nhello",
    ],
)
def test_half_a_body_is_never_a_whole_one(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, data: bytes
) -> None:
    upstream.answer = then_close(data)
    with connected(gateway, site.client()) as client:
        client.send(GET, GET)
        with pytest.raises(Truncated):
            client.response()
    assert gateway.audited(status=200, reason="upstream_broken")
    sound(site, gateway, upstream)


def test_a_malformed_chunk_is_not_passed_on(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

    def answer(connection: Connection, _request: Received) -> None:
        connection.sock.sendall(head + b"5\r\nhello\r\n")
        connection.read_until(b"never")

    upstream.answer = answer
    with connected(gateway, site.client()) as client:
        client.send(GET)
        body = client.body(client.head())
        assert next(body) == b"hello"

    upstream.answer = then_close(head + b"0x5\r\nhello\r\n0\r\n\r\n")
    with connected(gateway, site.client()) as client:
        client.send(GET)
        with pytest.raises(Truncated):
            client.response()
    sound(site, gateway, upstream)


def test_what_comes_after_a_response_is_nobodys_answer(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    before = upstream.connections
    upstream.answer = plain(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled")
    with connected(gateway, site.client()) as client:
        for _ in range(3):
            client.send(GET)
            assert client.response().body == b'{"status":"ok"}'
    assert upstream.connections >= before + 2
    sound(site, gateway, upstream)


def test_until_close_is_whole_with_its_connection(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    upstream.answer = then_close(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nhello")
    with connected(gateway, site.client()) as client:
        client.send(GET)
        response = client.response()
        assert (response.body, response.fields["connection"]) == (b"hello", "close")
    sound(site, gateway, upstream)


def test_until_close_is_not_whole_with_a_reset(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """By the chunk that is missing: many clients take any end of a TLS connection for the body's."""
    told = threading.Event()

    def reset(connection: Connection, _request: Received) -> None:
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nhello")
        assert told.wait(DEADLINE)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise EOFError

    upstream.answer = reset
    with connected(gateway, site.client()) as client:
        client.send(GET)
        response = client.head()
        assert response.fields["transfer-encoding"] == "chunked"
        body = client.body(response)
        assert next(body) == b"hello"
        told.set()
        with pytest.raises(Truncated):
            next(body)
    assert gateway.audited(status=200, reason="upstream_broken")
    sound(site, gateway, upstream)
