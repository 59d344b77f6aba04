from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from support.stream_owner import StreamOwner

from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.stream import Stream

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: a close is a reset."""


class Owner(StreamOwner):
    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.some = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        self.some.set()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.socket()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        ours.connect(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def reset_after(
    size: int, pair: tuple[socket.socket, socket.socket], then: Callable[[Stream], None], linger: float = 0
) -> Owner:
    ours, theirs = pair
    loop = asyncio.get_running_loop()
    owner = Owner()
    with closing(Deadlines(loop)) as deadlines:
        stream = Stream(loop, ours, owner, deadlines, lambda: (5.0, 1024))
        if linger:
            stream.close(linger)
        theirs.settimeout(5)
        theirs.sendall(bytes(size))
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        theirs.close()
        then(stream)
        error = await asyncio.wait_for(owner.lost, 5)
        assert isinstance(error, OSError)
        assert error.errno in {errno.ECONNRESET, errno.EPIPE}
        assert len(deadlines) == len(deadlines.heard) == 0
    return owner


@pytest.mark.parametrize("size", [1, 100_000, 300_000])
def test_what_came_before_a_reset_is_read_and_then_the_reset_is_told(
    runner: asyncio.Runner, pair: tuple[socket.socket, socket.socket], size: int
) -> None:
    assert runner.run(reset_after(size, pair, Stream.resume_reading)).size == size


@pytest.mark.parametrize("size", [1, 300_000])
def test_so_it_is_where_the_reset_was_seen_while_reading_was_paused(
    runner: asyncio.Runner, pair: tuple[socket.socket, socket.socket], size: int
) -> None:
    def then(stream: Stream) -> None:
        stream.look()
        stream.resume_reading()

    assert runner.run(reset_after(size, pair, then)).size == size


@pytest.mark.parametrize("size", [1, 300_000])
def test_so_it_is_where_a_write_met_the_reset_first(
    runner: asyncio.Runner, pair: tuple[socket.socket, socket.socket], size: int
) -> None:
    def then(stream: Stream) -> None:
        stream.resume_reading()
        stream.write(b"x")
        assert stream.broken

    assert runner.run(reset_after(size, pair, then)).size == size


@pytest.mark.parametrize("size", [1, 300_000])
def test_a_reset_ends_the_linger(runner: asyncio.Runner, pair: tuple[socket.socket, socket.socket], size: int) -> None:
    """Nothing is delivered any more, and nobody waits for a client that is gone."""
    assert runner.run(reset_after(size, pair, Stream.resume_reading, linger=60)).size == 0


def test_a_reset_sends_the_queue_and_is_told_from_an_end(
    runner: asyncio.Runner, pair: tuple[socket.socket, socket.socket]
) -> None:
    async def main() -> int:
        ours, theirs = pair
        loop, received = asyncio.get_running_loop(), 0
        with closing(Deadlines(loop)) as deadlines:
            owner = Owner()
            stream = Stream(loop, ours, owner, deadlines, lambda: (5.0, 1024))
            theirs.setblocking(False)
            stream.write(bytes(4 << 20))
            stream.reset()
            assert stream.unsent
            with pytest.raises(ConnectionResetError):  # noqa: PT012 - after the bytes before it
                while True:
                    received += len(await loop.sock_recv(theirs, 1 << 16))
            assert await asyncio.wait_for(owner.lost, 5) is None
        return received

    assert runner.run(main()) == 4 << 20


def test_a_peer_that_has_ended_and_takes_no_more_is_lost(
    runner: asyncio.Runner, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Nothing more can be read that would tell of it."""

    async def main() -> None:
        ours, theirs = pair
        loop = asyncio.get_running_loop()
        with closing(Deadlines(loop)) as deadlines:
            owner, ended = Owner(), asyncio.Event()
            stream = Stream(loop, ours, owner, deadlines, lambda: (5.0, 1024))
            stream.when_ended = ended.set
            stream.resume_reading()
            theirs.shutdown(socket.SHUT_WR)
            await asyncio.wait_for(ended.wait(), 5)
            theirs.close()
            while not stream.closed:
                stream.write(b"x")
                await asyncio.sleep(0)
            assert isinstance(await asyncio.wait_for(owner.lost, 5), OSError)

    runner.run(main())
