"""Qdrant closes an idle connection at the moment it is used again: reads are sent once more, writes never."""

from __future__ import annotations

import orjson
import pytest
from support.gateway import Gateway
from support.raw_connection import GET, SEARCH, UPSERT, connected
from support.site import Site
from support.upstream import OK, Answer, Connection, Received, ScriptedUpstream

BODY = b"content-length: 13\r\n\r\n" + b'{"limit": 10}'
CHUNKED = b"transfer-encoding: chunked\r\n\r\n" + b'd\r\n{"limit": 10}\r\n0\r\n\r\n'


def closing(upstream: ScriptedUpstream, when: int, say: bytes = b"") -> Answer:
    """Answers, but on request number ``when`` says ``say`` and closes, though it has read it whole."""

    def answer(connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        if len(upstream.requests) == when:
            connection.sock.sendall(say)
            raise EOFError
        connection.sock.sendall(OK)

    return answer


@pytest.mark.parametrize("request_bytes", [GET, SEARCH + BODY, SEARCH + CHUNKED])
def test_a_read_is_sent_again_on_a_fresh_connection(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, request_bytes: bytes
) -> None:
    upstream.answer = closing(upstream, 2)
    with connected(gateway, site.client()) as client:
        for _ in range(3):
            client.send(request_bytes)
            assert client.response().status == 200
    assert upstream.connections == 2
    assert len(upstream.requests) == 4
    assert upstream.requests[1].head == upstream.requests[2].head
    assert upstream.requests[1].body == upstream.requests[2].body
    assert "tlsproxy_upstream_retries_total 1.0" in gateway.ask_admin("/metrics")[1]
    records = [record for record in gateway.stop() if "status" in record]
    assert [record["status"] for record in records] == [200] * 3, "one line for each request, not for each attempt"


def test_a_write_is_not(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    upstream.answer = closing(upstream, 2)
    with connected(gateway, site.client()) as client:
        client.send(GET, UPSERT, BODY, GET)
        assert client.response().status == 200
        response = client.response()
        assert response.status == 502
        assert orjson.loads(response.body)["time"] == 0
        assert client.response().status == 200
    lines = [request.line.split(" ")[0] for request in upstream.requests]
    assert lines == ["GET", "PUT", "GET"], "the write may have been done: it is never done twice"


def test_a_read_is_sent_again_only_once(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    def answer(connection: Connection, request: Received) -> None:
        connection.read_body(request)
        if len(upstream.requests) > 1:
            raise EOFError
        connection.sock.sendall(OK)

    upstream.answer = answer
    with connected(gateway, site.client()) as client:
        client.send(GET, GET)
        assert [client.response().status, client.response().status] == [200, 502]
    assert len(upstream.requests) == 3


def test_a_read_that_was_answered_in_part_is_not_sent_again(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    upstream.answer = closing(upstream, 2, b"HTTP/1.1 200 OK\r\nconten")
    with connected(gateway, site.client()) as client:
        client.send(GET, GET)
        assert [client.response().status, client.response().status] == [200, 502]
    assert len(upstream.requests) == 2


def test_a_read_on_a_fresh_connection_is_not_sent_again(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    """That was no stale connection: the upstream fell over it, and would again."""
    upstream.answer = closing(upstream, 1)
    with connected(gateway, site.client()) as client:
        client.send(GET)
        assert client.response().status == 502
    assert len(upstream.requests) == 1


def test_a_body_too_large_to_keep_is_not_sent_again(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    upstream.answer = closing(upstream, 2)
    with connected(gateway, site.client()) as client:
        client.send(GET, SEARCH, b"content-length: 100000\r\n\r\n", b" " * 100_000)
        assert [client.response().status, client.response().status] == [200, 502]
    assert len(upstream.requests) == 2
