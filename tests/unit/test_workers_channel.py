"""The control channel: what is sent is received, in whatever pieces it comes, and what is no message is an error."""

from __future__ import annotations

import asyncio
import itertools
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.service.workers import channel
from tlsproxy.service.workers.channel import Channel, ChannelError, ChannelMessage, read_message

heads = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "size"),
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    max_size=4,
)
messages = st.builds(ChannelMessage, heads, st.binary(max_size=200))


async def _read(data: bytes, cuts: list[int]) -> list[ChannelMessage]:
    reader = asyncio.StreamReader(limit=channel.HEAD_LIMIT)

    async def feed() -> None:
        places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        for start, end in itertools.pairwise(places):
            reader.feed_data(data[start:end])
            await asyncio.sleep(0)
        reader.feed_eof()

    feeding = asyncio.create_task(feed())
    try:
        read = []
        while (message := await read_message(reader)) is not None:
            read.append(message)
        return read
    finally:
        await feeding


@given(st.lists(messages, max_size=5), st.lists(st.integers(0, 2000), max_size=10))
def test_what_is_sent_is_received(sent: list[ChannelMessage], cuts: list[int]) -> None:
    assert asyncio.run(_read(b"".join(part for message in sent for part in message.parts()), cuts)) == sent


@given(messages, st.integers(0, 400))
def test_half_a_message_is_the_end(message: ChannelMessage, size: int) -> None:
    encoded = b"".join(message.parts())
    assert asyncio.run(_read(encoded[: min(size, len(encoded) - 1)], [])) == []


@given(st.binary(max_size=60))
def test_anything_else_is_an_error_or_the_end(data: bytes) -> None:
    try:
        read = asyncio.run(_read(data, []))
    except ChannelError:
        return
    assert all(isinstance(message.head, dict) for message in read)


@pytest.mark.parametrize(
    "line", [b'{"size":-1}\n', b'{"size":1073741825}\n', b'{"size":"1"}\n', b"{}\n", b"[1]\n", b"x\n", b"x" * 70_000]
)
def test_no_size_that_it_may_have(line: bytes) -> None:
    with pytest.raises(ChannelError):
        asyncio.run(_read(line, []))


def test_a_large_body_is_sent_uncopied_and_received_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation has CRLs of 64 MiB: a copy of all of it would hold the loop."""
    monkeypatch.setattr(channel, "PIECE", 7)
    crl, key = bytes(range(50)), b"key"
    _, body, *more = ChannelMessage({"id": 1}, crl).parts([key, crl])
    assert body is crl
    assert [each is sent for each, sent in zip(more, [key, crl], strict=True)] == [True, True]
    sizes: list[int] = []

    class Reader(asyncio.StreamReader):
        async def readexactly(self, n: int) -> bytes:
            sizes.append(n)
            return await super().readexactly(n)

    async def read() -> ChannelMessage | None:
        reader = Reader()
        reader.feed_data(b"".join(ChannelMessage({"id": 1}, crl).parts([key, crl])))
        return await read_message(reader)

    assert asyncio.run(read()) == ChannelMessage({"id": 1}, crl + key + crl)
    assert sizes == [7] * 14 + [5]


def test_a_body_is_in_no_repr() -> None:
    assert "secret" not in repr(ChannelMessage({"do": "prepare"}, b"secret"))


def test_both_ways_over_a_socketpair(runner: asyncio.Runner) -> None:
    async def talk() -> None:
        first, second = [await Channel.over(sock) for sock in socket.socketpair()]
        large = ChannelMessage({"id": 1}, bytes(3_000_000))
        sending = asyncio.create_task(first.send(large))
        assert await second.receive() == large
        await sending
        second.send_nowait(ChannelMessage({"event": "key_missing"}))
        assert await first.receive() == ChannelMessage({"event": "key_missing"})
        second.close()
        assert await first.receive() is None
        await first.send(large)
        first.close()
        first.send_nowait(large)

    runner.run(talk())


def test_a_worker_that_reads_nothing_is_waited_for_and_no_longer(runner: asyncio.Runner) -> None:
    async def talk() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            one = await Channel.over(ours)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await one.send(ChannelMessage({}, bytes(10_000_000)))
            one._writer.transport.abort()

    runner.run(talk())
