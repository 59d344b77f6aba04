"""An upstream that answers before it has the whole request: the client hears it, and nobody is sent what was left."""

from __future__ import annotations

import threading

from support.gateway import Gateway
from support.raw_connection import GET, UPSERT, connected
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

BEGUN = b"content-length: 100000\r\n\r\n" + bytes(70_000)
"""Bytes of a body that are read before the upstream hears of it."""
REFUSED = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


def at_once(connection: Connection, request: Received) -> None:
    connection.sock.sendall(REFUSED if request.fields.get("content-length") else OK)


def test_it_reaches_the_client_and_ends_its_connection(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    upstream.answer = at_once
    with connected(gateway, site.client()) as client:
        client.send(UPSERT, BEGUN)
        response = client.response()
        assert (response.status, response.body) == (400, b"{}")
        assert response.fields["connection"] == "close"
        assert client.ended()


def test_the_next_request_never_becomes_the_rest_of_that_body(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    upstream.answer = at_once
    with connected(gateway, site.client()) as attacker:
        attacker.send(UPSERT, BEGUN)
        assert attacker.response().status == 400
    upstream.answer = lambda connection, _: connection.sock.sendall(OK)
    with connected(gateway, site.client("search")) as victim:
        victim.send(GET)
        assert victim.response().status == 200
    assert upstream.connections == 2, "a connection that waits for a body must not carry another request"


def test_a_response_that_begins_early_is_relayed_while_the_body_goes_on(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    begun = threading.Event()

    def answer(connection: Connection, request: Received) -> None:
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
        begun.set()
        request.body = connection.read_body(request)
        connection.sock.sendall(b"cd")

    upstream.answer = answer
    with connected(gateway, site.client()) as client:
        client.send(UPSERT, BEGUN)
        assert begun.wait(10)
        response = client.head()
        client.send(bytes(30_000))
        assert b"".join(client.body(response)) == b"abcd"
        assert client.ended(), "its head said that the connection ends"
    assert upstream.requests[0].body == bytes(100_000)
