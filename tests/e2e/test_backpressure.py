"""Neither side can make the gateway hold what the other does not take."""

from __future__ import annotations

import threading

from support.gateway import Gateway
from support.raw_connection import GET, UPLOAD, connected, memory
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

MEBIBYTE = bytes(1 << 20)
ROOM = 30 << 20


def test_a_client_that_does_not_read(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """200 MiB wait at the upstream; they move when the client does."""
    sent = 0
    stuck = threading.Event()

    def answer(connection: Connection, _request: Received) -> None:
        nonlocal sent
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (200 << 20))
        connection.sock.settimeout(0.5)
        try:
            while True:
                sent += connection.sock.send(MEBIBYTE)
        except TimeoutError:
            stuck.set()
        connection.sock.settimeout(20)
        while sent < 200 << 20:
            sent += connection.sock.send(MEBIBYTE[: (200 << 20) - sent])

    upstream.answer = answer
    before = memory(gateway, "VmRSS")
    with connected(gateway, site.client()) as client:
        client.send(GET)
        assert stuck.wait(20)
        assert sent < 60 << 20, "what socket buffers hold, and little more"
        assert sum(len(piece) for piece in client.body(client.head())) == 200 << 20
    assert memory(gateway) < before + ROOM


def test_an_upstream_that_does_not_read(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    go_on = threading.Event()

    def answer(connection: Connection, request: Received) -> None:
        assert go_on.wait(20)
        connection.read_body(request)
        connection.sock.sendall(OK)

    upstream.answer = answer
    before = memory(gateway, "VmRSS")
    with connected(gateway, site.client()) as client:
        client.send(UPLOAD, b"content-length: %d\r\n\r\n" % (100 << 20))
        client.sock.settimeout(0.5)
        sent = 0
        try:
            while True:
                sent += client.sock.send(MEBIBYTE)
        except TimeoutError:
            pass
        assert sent < 60 << 20
        client.sock.settimeout(20)
        go_on.set()
        while sent < 100 << 20:
            sent += client.sock.send(MEBIBYTE[: (100 << 20) - sent])
        assert client.response().status == 200
    assert memory(gateway) < before + ROOM


def test_a_client_that_sends_ahead_and_reads_nothing(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """Pipelined requests are not taken up while their answers pile up."""
    before = memory(gateway, "VmRSS")
    with connected(gateway, site.client()) as client:
        client.sock.settimeout(1)
        sent = 0
        try:
            while sent < 100 << 20:
                sent += client.sock.send(GET * 2000)
        except TimeoutError:
            pass
        assert sent < 60 << 20
        taken = len(upstream.requests)
        assert taken * len(GET) < sent
    assert memory(gateway) < before + ROOM
