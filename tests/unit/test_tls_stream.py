"""A client of our own sends records in whatever pieces; what the owner of the stream is told is compared."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.stream_owner import StreamOwner

from tests.unit.snapshot_site import CLIENT, client_context, site
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.records import RECORD
from tlsproxy.proxy.transport.tls import TlsStream

WAIT = 5.0
DATA = bytes(range(256)) * 2048


class Owner(StreamOwner):
    """Takes one piece, pauses, and reads on as soon as the loop comes by."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.came = asyncio.Event()
        self.done = asyncio.Event()
        self.goes_on = True
        self.stream: TlsStream | None = None

    def certificate_verified(self, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
        assert verified[0] == sent[0]
        return ""

    def handshake_done(self, tls: ssl.SSLObject) -> None:
        del tls
        self.done.set()

    def handshake_failed(self, reason: str, detail: str, tls: ssl.SSLObject) -> None:
        del tls
        raise AssertionError((reason, detail))

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        self.came.set()
        assert self.stream is not None
        self.stream.pause_reading()
        if self.goes_on:
            asyncio.get_running_loop().call_soon(self.stream.resume_reading)

    async def has(self, size: int) -> bytes:
        while sum(map(len, self.pieces)) < size:
            self.came.clear()
            await asyncio.wait_for(self.came.wait(), WAIT)
        return b"".join(self.pieces)


class Client:
    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    async def send(self, data: bytes, piece: int = 1 << 20) -> None:
        for start in range(0, len(data), piece):
            await asyncio.get_running_loop().sock_sendall(self._sock, data[start : start + piece])

    async def heard(self) -> None:
        self._incoming.write(await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._sock, 65536), WAIT))

    async def handshake(self) -> None:
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                break
            await self.send(self._outgoing.read())
            await self.heard()
        await self.send(self._outgoing.read())

    def records(self, data: bytes, size: int) -> bytes:
        """As they go over the wire."""
        for start in range(0, len(data), size):
            self.tls.write(data[start : start + size])
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._outgoing.read()

    async def reads(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                data += self.tls.read(RECORD)
            except ssl.SSLWantReadError:
                await self.heard()
        return data


@contextlib.asynccontextmanager
async def talking(directory: Path) -> AsyncIterator[tuple[TlsStream, Owner, Client]]:
    generation = site(directory).build()
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    with theirs, contextlib.closing(Deadlines(loop)) as deadlines:
        ours.setblocking(False)
        theirs.setblocking(False)
        owner = Owner()
        context = next(iter(generation.contexts.values()))
        owner.stream = stream = TlsStream(loop, ours, owner, deadlines, lambda: (WAIT, 1024), context)
        client = Client(theirs, client_context(CLIENT, directory))
        await client.handshake()
        await asyncio.wait_for(owner.done.wait(), WAIT)
        yield stream, owner, client
        stream.abort()
        await owner.lost
        assert len(deadlines) == len(deadlines.heard) == 0


@pytest.mark.parametrize("piece", [1, 21, 16_406, 1 << 20])
@pytest.mark.parametrize("size", [1, 100, RECORD])
def test_all_is_told_in_order_whatever_the_records_and_wherever_they_are_cut(
    runner: asyncio.Runner, tmp_path: Path, piece: int, size: int
) -> None:
    data = DATA[: min(len(DATA), 300 * size, 2000 * piece)]

    async def run() -> None:
        async with talking(tmp_path) as (_, owner, client):
            await client.send(client.records(data, size), piece)
            assert await owner.has(len(data)) == data

    runner.run(run())


def test_records_that_came_together_are_told_as_one_and_none_stays_behind(
    runner: asyncio.Runner, tmp_path: Path
) -> None:
    """Reading pauses with the first of them: what were left in the BIO no event of the socket would announce."""

    async def run() -> None:
        async with talking(tmp_path) as (_, owner, client):
            owner.goes_on = False
            await client.send(client.records(b"12345", 1))
            await owner.has(5)
            assert owner.pieces == [b"12345"]

    runner.run(run())


def test_an_end_behind_data_is_told_after_it(runner: asyncio.Runner, tmp_path: Path) -> None:
    async def run() -> None:
        async with talking(tmp_path) as (stream, owner, client):
            said: list[bytes] = []
            ended = asyncio.Event()

            def tell() -> None:
                said.extend(owner.pieces)
                ended.set()

            stream.when_ended = tell
            await client.send(client.records(b"the last words", 5) + client.goodbye() + b"and what is none")
            await asyncio.wait_for(ended.wait(), WAIT)
            assert b"".join(said) == b"the last words"
            assert stream.ended

    runner.run(run())


def test_what_came_before_a_broken_record_is_told_and_then_why_it_ended(runner: asyncio.Runner, tmp_path: Path) -> None:
    async def run() -> None:
        async with talking(tmp_path) as (_, owner, client):
            before, broken = client.records(b"before it", 4), bytearray(client.records(b"never seen", 100))
            broken[-1] ^= 1
            await client.send(before + broken)
            error = await asyncio.wait_for(asyncio.shield(owner.lost), WAIT)
            assert owner.pieces == [b"before it"]
            assert isinstance(error, ssl.SSLError)
            assert error.reason == "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"

    runner.run(run())


@pytest.mark.parametrize("size", [1, RECORD, RECORD + 1, len(DATA)])
def test_what_is_written_arrives_whole(runner: asyncio.Runner, tmp_path: Path, size: int) -> None:
    """OpenSSL takes a record at a time."""

    async def run() -> None:
        async with talking(tmp_path) as (stream, _, client):
            stream.write(DATA[:size])
            assert await client.reads(size) == DATA[:size]

    runner.run(run())
