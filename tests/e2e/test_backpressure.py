"""Neither side can make the gateway hold what the other does not take."""

from __future__ import annotations

import socket
import threading

from support.gateway import Gateway
from support.raw import GET, UPLOAD, connected, memory
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


def test_a_response_that_ends_while_its_client_does_not_read_leaves_a_sound_connection(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    """The upstream is done before its client has read: the next client gets the same connection, and an answer."""
    size = 6 << 20  # more than the sockets between us and the client hold, less than with the gateway's queue
    sizes = iter(range(size, 12 << 20, 65536))

    def answer(connection: Connection, request: Received) -> None:
        body = bytes(next(sizes)) if "slow" in request.line else b""
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    upstream.answer = answer
    with gateway.connect(site.client()) as reader:
        reader.sendall(b"GET /collections/quick HTTP/1.1\r\nhost: h\r\n\r\n")
        assert reader.recv(100)
        held: list[socket.socket] = []
        for _ in range(12):
            slow = gateway.connect(site.client())
            held.append(slow)
            slow.sendall(b"GET /collections/slow HTTP/1.1\r\nhost: h\r\n\r\n")
            reader.sendall(b"GET /collections/quick HTTP/1.1\r\nhost: h\r\n\r\n")
            assert reader.recv(100).startswith(b"HTTP/1.1 200")
        for slow in held:
            slow.close()


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
