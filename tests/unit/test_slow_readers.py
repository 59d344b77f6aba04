"""How slowly the other side of a stream may take what is queued, on a clock that the test sets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
from support.manual_clock import Clock
from support.stream_owner import StreamOwner

from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.stream import _TCP_INFO, Stream

WINDOW, RATE = 30, 1024
SECOND = 1_000_000_000


class Owner(StreamOwner):
    overdue = False

    def data_received(self, data: bytes) -> None:
        raise AssertionError(data)

    def deadline_passed(self) -> None:
        self.overdue = True


class Kernel:
    """A socket that takes 4 MB, and says what has been acknowledged."""

    def __init__(self) -> None:
        self.sock, self.other = socket.socketpair()
        self.fileno = self.sock.fileno
        self.family = socket.AF_INET
        self.waiting = self.acknowledged = 0

    def send(self, data: bytes | memoryview) -> int:
        size = min(len(data), (4 << 20) - self.waiting)
        if not size:
            raise BlockingIOError
        self.waiting += size
        return size

    def getsockopt(self, level: int, name: int, size: int) -> bytes:
        assert (level, name) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return _TCP_INFO.pack(bool(self.waiting), self.acknowledged, 0).ljust(size, b"\0")

    def close(self) -> None:
        self.sock.close()
        self.other.close()


class Reader:
    """The other side of a stream to which more is always queued than it takes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self.clock, self.kernel = clock, Kernel()
        self.owner = loop.run_until_complete(self._owner())
        self.deadlines = Deadlines(loop)
        self.stream = Stream(loop, self.kernel, self.owner, self.deadlines, lambda: (WINDOW, RATE))
        self.stream.write(bytes(16 << 20))
        assert self.stream.stalled

    async def _owner(self) -> Owner:
        return Owner()

    def takes(self, size: int, seconds: int) -> None:
        """So much in each second, for so many seconds, or until it is cut. Its socket is writable with a third free."""
        for _ in range(seconds):
            self.kernel.waiting -= size
            self.kernel.acknowledged += size
            self.clock.now += SECOND
            if self.kernel.waiting <= (8 << 20) / 3:
                self.stream._on_writable()
            if self.stream.deadline <= self.clock.now / SECOND:
                self.stream.expired()
            if self.owner.overdue or self.stream.closed:
                return


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now / SECOND)
    return clock


@pytest.fixture
def reader(clock: Clock) -> Iterator[Reader]:
    loop = asyncio.new_event_loop()
    reader = Reader(loop, clock)
    yield reader
    reader.stream.abort()
    reader.deadlines.close()
    loop.run_until_complete(reader.owner.lost)
    loop.close()


def elapsed(reader: Reader, size: int, most: int) -> int:
    before = reader.clock.now
    reader.takes(size, most)
    assert reader.owner.overdue
    return (reader.clock.now - before) // SECOND


def test_one_that_takes_its_time_lives(reader: Reader) -> None:
    """20 KB in a second: its socket is writable again after minutes, not after 30 seconds."""
    reader.takes(20_000, 600)
    assert not reader.owner.overdue
    assert reader.stream.stalled


def test_one_that_takes_nothing_is_cut(reader: Reader) -> None:
    assert WINDOW <= elapsed(reader, 0, 100) <= 1.2 * WINDOW


def test_one_that_stops_is_cut_whatever_it_took_before(reader: Reader) -> None:
    reader.takes(30_000, 60)
    assert WINDOW <= elapsed(reader, 0, 100) <= 1.2 * WINDOW


def test_one_that_takes_a_trickle_is_cut(reader: Reader) -> None:
    reader.takes(30_000, 60)
    assert elapsed(reader, 100, 200) <= 1.2 * WINDOW


@pytest.mark.parametrize("size", [0, 100])
def test_an_ending_stream_waits_for_its_reader_no_longer(reader: Reader, size: int) -> None:
    reader.stream.close(0)
    reader.takes(20_000, 100)
    assert not reader.stream.closed
    before = reader.clock.now
    while not reader.stream.closed:
        reader.takes(size, 1)
    assert reader.clock.now - before <= 1.4 * WINDOW * SECOND
