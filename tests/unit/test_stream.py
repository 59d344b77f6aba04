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
