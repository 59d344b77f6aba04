from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.sockets import deaf

from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.dial import Address, DialledStream
from tlsproxy.proxy.transport.stream import HIGH_WATER

BROADCAST: Address = (socket.AF_INET, ("127.255.255.255", 9))
"""TCP to a broadcast address fails at once, and not later as a refusal does."""


class Owner:
    def __init__(self) -> None:
        self.data: asyncio.Queue[bytes] = asyncio.Queue()
        self.established = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connected(self) -> None:
        self.established.set()

    def data_received(self, data: bytes) -> None:
        self.data.put_nowait(data)

    def pause_writing(self) -> None:
        raise AssertionError

    def resume_writing(self) -> None:
        raise AssertionError

    def deadline_passed(self) -> None:
        raise AssertionError

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def refused() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return socket.AF_INET, sock.getsockname()


def address_of(where: str) -> Address:
    host, _, port = where.rpartition(":")
    return socket.AF_INET, (host, int(port))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def ask(addresses: list[Address], server: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    deadlines, owner = Deadlines(loop), Owner()
    stream = DialledStream(loop, addresses, owner, deadlines, lambda: (5.0, 1024))
    assert not stream.established
    stream.write(b"written before ")
    stream.write(b"there was a connection")
    await asyncio.wait_for(owner.established.wait(), 5)
    accepted, _ = await asyncio.to_thread(server.accept)
    with accepted:
        got = await asyncio.to_thread(accepted.recv, 1000)
        accepted.sendall(b"back")
        assert await asyncio.wait_for(owner.data.get(), 5) == b"back"
    assert await asyncio.wait_for(owner.lost, 5) is None
    deadlines.close()
    assert len(deadlines) == 0
    return got


@pytest.mark.parametrize(
    "before",
    [
        [],
        ["broadcast"],
        ["refused"],
        ["broadcast", "refused", "broadcast"],
        ["deaf"],
        ["deaf", "refused", "deaf", "broadcast"],
    ],
)
def test_what_was_written_goes_to_the_first_address_that_answers(
    runner: asyncio.Runner, listening: socket.socket, before: list[str]
) -> None:
    """Also after those that do not answer, of which the last may be refused meanwhile."""
    with ExitStack() as stack:
        kinds = {
            "broadcast": lambda: BROADCAST,
            "refused": refused,
            "deaf": lambda: address_of(stack.enter_context(deaf())),
        }
        addresses = [kinds[each]() for each in before]
        addresses.append((socket.AF_INET, listening.getsockname()))
        for _ in range(2):
            assert runner.run(ask(addresses, listening)) == b"written before there was a connection"
            addresses.reverse()


def test_an_end_while_addresses_are_tried(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closes all of their sockets."""
    monkeypatch.setattr("tlsproxy.proxy.transport.dial.STAGGER", 0.0)

    async def dial(addresses: list[Address]) -> None:
        loop = asyncio.get_running_loop()
        deadlines, owner = Deadlines(loop), Owner()
        before = descriptors()
        stream = DialledStream(loop, addresses, owner, deadlines, lambda: (5.0, 1024))
        while stream.address != addresses[-1]:  # noqa: ASYNC110 - the next turn of the loop
            await asyncio.sleep(0)
        stream.abort()
        assert await asyncio.wait_for(owner.lost, 5) is None
        assert descriptors() == before
        deadlines.close()

    with deaf() as one, deaf() as other:
        runner.run(dial([address_of(one), refused(), address_of(other)]))


@pytest.mark.parametrize(("last", "number"), [("broadcast", errno.ENETUNREACH), ("refused", errno.ECONNREFUSED)])
def test_none_answers(runner: asyncio.Runner, last: str, number: int) -> None:
    async def dial() -> None:
        loop = asyncio.get_running_loop()
        deadlines, owner = Deadlines(loop), Owner()
        stream = DialledStream(
            loop, [refused(), BROADCAST if last == "broadcast" else refused()], owner, deadlines, lambda: (5, 1024)
        )
        stream.write(b"x")
        error = await asyncio.wait_for(owner.lost, 5)
        assert isinstance(error, OSError)
        assert error.errno == number
        assert not stream.established
        deadlines.close()

    runner.run(dial())


def test_much_that_waits_for_the_connection_leaves_its_deadline(
    runner: asyncio.Runner, listening: socket.socket
) -> None:
    """What stalls a write once there is a connection must not put off the end of waiting for one."""

    class Paused(Owner):
        def pause_writing(self) -> None:
            self.paused = True

        def resume_writing(self) -> None:
            self.paused = False

    async def dial() -> None:
        loop = asyncio.get_running_loop()
        deadlines, owner = Deadlines(loop), Paused()
        stream = DialledStream(loop, [(socket.AF_INET, listening.getsockname())], owner, deadlines, lambda: (300, 1024))
        stream.deadline = deadline = time.monotonic() + 5
        stream.write(bytes(HIGH_WATER + 1))
        assert owner.paused
        assert stream.deadline == deadline
        await asyncio.wait_for(owner.established.wait(), 5)
        stream.abort()
        assert stream.silent_for() is None, "until it is told, others may ask"
        await asyncio.wait_for(owner.lost, 5)
        deadlines.close()

    runner.run(dial())
