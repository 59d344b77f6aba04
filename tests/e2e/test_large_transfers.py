"""64 MiB in either direction, in each framing: every byte arrives, and the gateway holds next to none of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import Iterator

import pytest
from support.gateway import Gateway
from support.raw_connection import GET, UPLOAD, connected, memory
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

MEBIBYTE = os.urandom(1 << 20)
COUNT = 64
SIZE = COUNT << 20
ROOM = 40 << 20


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture(scope="module")
def digest() -> str:
    whole = hashlib.sha256()
    for _ in range(COUNT):
        whole.update(MEBIBYTE)
    return whole.hexdigest()


@pytest.fixture
def bounded(gateway: Gateway) -> Iterator[None]:
    before = memory(gateway, "VmRSS")
    yield
    assert memory(gateway) < before + ROOM


def pieces(connection: Connection, request: Received) -> Iterator[bytes]:
    if request.fields.get("transfer-encoding") == "chunked":
        while size := int(connection.read_until(b"\r\n"), 16):
            yield connection.read(size)
            assert connection.read(2) == b"\r\n"
        assert connection.read_until(b"\r\n") == b"\r\n"
        return
    left = int(request.fields["content-length"])
    while left:
        yield connection.read(min(left, 1 << 20))
        left -= min(left, 1 << 20)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_up(site: Site, gateway: Gateway, upstream: ScriptedUpstream, digest: str, *, chunked: bool) -> None:
    received = hashlib.sha256()

    def answer(connection: Connection, request: Received) -> None:
        for piece in pieces(connection, request):
            received.update(piece)
        connection.sock.sendall(OK)

    upstream.answer = answer
    with connected(gateway, site.client()) as client:
        if chunked:
            client.send(UPLOAD, b"transfer-encoding: chunked\r\n\r\n")
        else:
            client.send(UPLOAD, b"content-length: %d\r\n\r\n" % SIZE)
        for _ in range(COUNT):
            client.send(chunk(MEBIBYTE) if chunked else MEBIBYTE)
        client.send(b"0\r\n\r\n" if chunked else b"")
        assert client.response().status == 200
    assert received.hexdigest() == digest


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("framing", ["content-length", "chunked", "until close"])
def test_down(site: Site, gateway: Gateway, upstream: ScriptedUpstream, digest: str, framing: str) -> None:
    def answer(connection: Connection, _request: Received) -> None:
        frame = {
            "content-length": b"content-length: %d\r\n" % SIZE,
            "chunked": b"transfer-encoding: chunked\r\n",
            "until close": b"",
        }
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\n%b\r\n" % frame[framing])
        for _ in range(COUNT):
            connection.sock.sendall(chunk(MEBIBYTE) if framing == "chunked" else MEBIBYTE)
        if framing == "chunked":
            connection.sock.sendall(b"0\r\n\r\n")
        elif framing == "until close":
            raise EOFError

    upstream.answer = answer
    with connected(gateway, site.client()) as client:
        client.send(GET)
        response, received = client.head(), hashlib.sha256()
        for piece in client.body(response):
            received.update(piece)
        if framing == "until close":
            assert response.fields["connection"] == "close"
    assert received.hexdigest() == digest
    assert gateway.audited(method="list_collections")["bytes_out"] >= SIZE


@pytest.mark.usefixtures("bounded")
def test_both_ways_at_once(site: Site, gateway: Gateway, upstream: ScriptedUpstream, digest: str) -> None:
    """An upstream that answers with what it is sent, while it is sent."""

    def answer(connection: Connection, request: Received) -> None:
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE)
        for piece in pieces(connection, request):
            connection.sock.sendall(piece)

    upstream.answer = answer
    assert asyncio.run(_echoed(gateway.port, site.client())) == digest


async def _echoed(port: int, context: ssl.SSLContext) -> str:
    """The digest of what comes back. One thread for both ways: an SSLSocket may not be used by two."""
    reader, writer = await asyncio.open_connection("localhost", port, ssl=context)

    async def send() -> None:
        writer.write(UPLOAD + b"content-length: %d\r\n\r\n" % SIZE)
        for _ in range(COUNT):
            writer.write(MEBIBYTE)
            await writer.drain()

    async def receive() -> str:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        received, left = hashlib.sha256(), SIZE
        while left:
            piece = await reader.read(min(left, 262_144))
            assert piece, f"{left} bytes are missing"
            received.update(piece)
            left -= len(piece)
        return received.hexdigest()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        result = tasks.create_task(receive())
    writer.close()
    await writer.wait_closed()
    return result.result()
