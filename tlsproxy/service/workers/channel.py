"""The control channel between the supervisor and a worker: messages over a socketpair that no other process can open.

A message is a line of JSON, whose ``size`` is the number of bytes in the body behind it: `{"id":7,"do":"ping",
"size":0}`. Bodies may hold private keys, so none is ever shown. One may have CRLs of 64 MiB: it is sent as it is, and
received in pieces, so that no loop copies it in one go.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeAlias

import orjson

from tlsproxy.errors import TlsproxyError

HEAD_LIMIT: Final = 64 << 10
PIECE: Final = 256 << 10
"""Bytes of a body that are copied at a time."""
BODY_LIMIT: Final = 1 << 30
"""More than all inputs of a generation may have together: a CRL may have 64 MiB."""

Body: TypeAlias = bytes | bytearray


class ChannelError(TlsproxyError):
    """Bytes that are no message: the other side is not a tlsproxy process of this version."""


@dataclass(frozen=True, slots=True)
class ChannelMessage:
    head: Mapping[str, Any]
    body: Body = field(default=b"", repr=False)

    def parts(self, more: Sequence[bytes] = ()) -> list[Body]:
        """The bytes to send; ``more`` goes on behind the body."""
        size = len(self.body) + sum(map(len, more))
        return [orjson.dumps({**self.head, "size": size}) + b"\n", self.body, *more]


class Channel:
    """One side of the channel, for one event loop. Messages of several tasks are never interleaved."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Self:
        return cls(*await asyncio.open_connection(sock=sock, limit=HEAD_LIMIT))

    async def receive(self) -> ChannelMessage | None:
        """The next message; None at the end, also where that cuts a message off. Raises ChannelError."""
        return await read_message(self._reader)

    async def send(self, message: ChannelMessage, more: Sequence[bytes] = ()) -> None:
        """Returns when there is room for more. After the other side's end it does nothing."""
        try:
            self._writer.writelines(message.parts(more))
            await self._writer.drain()
        except ConnectionError:
            return

    def send_nowait(self, message: ChannelMessage) -> None:
        """Queue a message without waiting for room: for small and rare ones."""
        if not self._writer.is_closing():
            self._writer.writelines(message.parts())

    def close(self) -> None:
        self._writer.close()


async def read_message(reader: asyncio.StreamReader) -> ChannelMessage | None:
    try:
        line = await reader.readuntil(b"\n")
        head = orjson.loads(line)
        size = head.pop("size") if isinstance(head, dict) else None
        if not isinstance(size, int) or not 0 <= size <= BODY_LIMIT:
            raise ChannelError("a message on the control channel has no valid size")
        return ChannelMessage(head, await _body(reader, size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except (asyncio.LimitOverrunError, orjson.JSONDecodeError, KeyError):
        raise ChannelError("the control channel carried bytes that are no message") from None


async def _body(reader: asyncio.StreamReader, size: int) -> bytearray:
    body = bytearray()
    while len(body) < size:
        body += await reader.readexactly(min(PIECE, size - len(body)))
    return body
