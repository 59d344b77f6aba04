"""`Expect: 100-continue`: the upstream is asked of an upload, and of a large body, where the request is allowed; small
ones are read first, and invited here. A refusal comes before the body.
"""

from __future__ import annotations

import pytest
from support.gateway import Gateway
from support.raw_connection import SEARCH, UPLOAD, connected
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

EXPECTING = UPLOAD + b"content-length: 5\r\nexpect: 100-continue\r\n\r\n"


def test_allowed_the_upstream_says_go_on(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    def answer(connection: Connection, request: Received) -> None:
        assert request.fields["expect"] == "100-continue"
        connection.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.body = connection.read_body(request)
        connection.sock.sendall(OK)

    upstream.answer = answer
    with connected(gateway, site.client()) as client:
        client.send(EXPECTING)
        assert client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"hello")
        assert client.response().status == 200
        client.send(b"GET /collections HTTP/1.1\r\nhost: h\r\n\r\n")
        upstream.answer = lambda connection, _: connection.sock.sendall(OK)
        assert client.response().status == 200, "the connection goes on"
    assert upstream.requests[0].body == b"hello"


def test_the_upstream_says_no_before_the_body(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    def answer(connection: Connection, _request: Received) -> None:
        connection.sock.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")

    upstream.answer = answer
    with connected(gateway, site.client()) as client:
        client.send(EXPECTING)
        response = client.response()
        assert (response.status, response.interim) == (413, [])
        assert client.ended(), "whether the body comes cannot be known"


def test_a_small_body_is_invited_at_once_and_the_upstream_does_not_hear_of_it(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    size = 5000
    with connected(gateway, site.client("search")) as client:
        client.send(SEARCH, b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % size)
        assert client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert upstream.connections == 0
        client.send(bytes(size))
        response = client.response()
        assert (response.status, response.interim) == (200, [])
    assert "expect" not in upstream.requests[0].fields
    assert upstream.requests[0].body == bytes(size)


def test_refused_without_an_invitation(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    with connected(gateway, site.client("search")) as client:
        client.send(EXPECTING)
        response = client.response()
        assert (response.status, response.interim) == (403, [])
        assert response.fields["connection"] == "close"
        assert client.ended()
    assert upstream.connections == 0


@pytest.mark.parametrize("expectation", [b"200-ok", b"100-continue, x", b""])
def test_other_expectations_fail(site: Site, gateway: Gateway, upstream: ScriptedUpstream, expectation: bytes) -> None:
    with connected(gateway, site.client()) as client:
        client.send(UPLOAD, b"content-length: 5\r\nexpect: ", expectation, b"\r\n\r\n")
        assert client.response().status == 417
        assert client.ended()
    assert upstream.connections == 0
