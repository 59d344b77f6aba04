"""One connection carries many requests: in their order, each with its own decision and its own answer."""

from __future__ import annotations

import pytest
from support.gateway import Gateway
from support.raw_connection import GET, connected
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream, plain

NOT_THEIRS = b"DELETE /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n"


def echo(connection: Connection, request: Received) -> None:
    body = request.line.encode() + b"|" + connection.read_body(request)
    connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


def test_a_thousand_pipelined_requests_are_answered_in_order(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    upstream.answer = echo
    with connected(gateway, site.client()) as client:
        client.send(*(b"GET /collections/c%d HTTP/1.1\r\nhost: h\r\n\r\n" % n for n in range(1000)))
        for n in range(1000):
            assert client.response().body == b"GET /collections/c%d HTTP/1.1|" % n
    assert upstream.connections == 1
    records = [record for record in gateway.stop() if record.get("api")]
    assert [record["api"] for record in records] == [f"/collections/c{n}" for n in range(1000)]


def test_bodies_and_heads_are_told_apart(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    upstream.answer = echo
    search = b"POST /collections/c/points/search HTTP/1.1\r\nhost: h\r\n"
    with connected(gateway, site.client()) as client:
        client.send(search, b"content-length: 5\r\n\r\nGET /", search, b"transfer-encoding: chunked\r\n\r\n")
        client.send(b"3\r\nabc\r\n0\r\n\r\n", GET)
        bodies = [client.response().body.split(b"|") for _ in range(3)]
    line = b"POST /collections/c/points/search HTTP/1.1"
    assert bodies == [[line, b"GET /"], [line, b"abc"], [b"GET /collections HTTP/1.1", b""]]


def test_refusals_stand_in_line_with_answers(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    with connected(gateway, site.client("search")) as client:
        client.send((GET + NOT_THEIRS) * 100)
        assert [client.response().status for _ in range(200)] == [200, 403] * 100
    assert {request.line for request in upstream.requests} == {"GET /collections HTTP/1.1"}
    assert len(upstream.requests) == 100


def test_a_head_that_comes_byte_by_byte(site: Site, gateway: Gateway) -> None:
    with connected(gateway, site.client()) as client:
        for byte in GET + GET:
            client.send(bytes((byte,)))
        assert [client.response().status, client.response().status] == [200, 200]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", 204),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 77\r\n\r\n", 304),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 200),
    ],
)
def test_responses_without_content(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, answer: bytes, status: int
) -> None:
    upstream.answer = plain(answer)
    with connected(gateway, site.client()) as client:
        client.send(GET * 2)
        for _ in range(2):
            response = client.response()
            assert (response.status, response.body) == (status, b"")
            assert status != 204 or "content-length" not in response.fields, "RFC 9110 §8.6"
    assert upstream.connections == 1


def test_head_has_the_length_and_no_body(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    upstream.answer = plain(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n")
    with connected(gateway, site.client()) as client:
        client.send(b"HEAD /dashboard/ HTTP/1.1\r\nhost: h\r\n\r\n" * 2)
        for _ in range(2):
            assert client.response(to_head=True).fields["content-length"] == "1234"
        client.send(b"HEAD /collections HTTP/1.1\r\nhost: h\r\n\r\n")  # no such route: HEAD is not GET
        assert client.response(to_head=True).status == 404
        upstream.answer = plain()
        client.send(GET)
        assert client.response().status == 200


def test_interim_responses_are_relayed(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    upstream.answer = plain(hints + hints + OK)
    with connected(gateway, site.client()) as client:
        client.send(GET * 2)
        for _ in range(2):
            response = client.response()
            assert (response.status, response.interim) == (200, [103, 103])


def test_close_is_done_as_asked(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    with connected(gateway, site.client()) as client:
        client.send(b"GET /collections HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", GET)
        response = client.response()
        assert (response.status, response.fields["connection"]) == (200, "close")
        assert client.ended(), "the second request came after the last one"
    assert len(upstream.requests) == 1
