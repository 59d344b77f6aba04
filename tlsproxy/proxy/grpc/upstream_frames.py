"""What the upstream's frames mean that do not pass as they are, or of which more must be known than whose they are.

Those that do pass, which are most, go through :mod:`tlsproxy.proxy.grpc.upstream` in one piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tlsproxy.errors import GrpcStatus, RequestError, UpstreamBroken
from tlsproxy.proxy.grpc.call import Answer, Call
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.transport.dial import DialledStream
from tlsproxy.wire import http2
from tlsproxy.wire.field_block import FieldReader, write
from tlsproxy.wire.grpc import said_of
from tlsproxy.wire.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADERS,
    Code,
    Frames,
    Kind,
    Setting,
)

if TYPE_CHECKING:
    from tlsproxy.proxy.grpc.client import GrpcConnection

MAX_BLOCK: Final = 65_536
"""Bytes of a response's or trailer's fields."""

# What gRPC's libraries make of a reset (PROTOCOL-HTTP2.md, "Errors").
_RESET: Final[dict[int, GrpcStatus]] = {
    Code.CANCEL: GrpcStatus.CANCELLED,
    Code.REFUSED_STREAM: GrpcStatus.UNAVAILABLE,
    Code.ENHANCE_YOUR_CALM: GrpcStatus.RESOURCE_EXHAUSTED,
}


class UpstreamFrames:
    """The ground of an upstream connection. ``established`` once its SETTINGS have come.

    What each kind of frame is handled by returns what goes to the client in its place, None for the frame itself.
    """

    __slots__ = ("_begun", "_block", "_frames", "_own_settings", "_raw", "_reader", "client", "established", "stream")

    stream: DialledStream

    def __init__(self, client: GrpcConnection) -> None:
        self.client = client
        self._frames = Frames()
        self._reader = FieldReader(MAX_BLOCK, said_of, table=False)
        self._block: bytearray | None = None
        self._raw: list[bytes] = []
        self._begun = (0, 0)
        self.established = False
        self._own_settings = True

    def _other(self, kind: int, flags: int, stream: int, start: int, end: int) -> bytes | None:
        data = self._frames.data
        if not self.established and kind != Kind.SETTINGS:
            raise UpstreamBroken("no SETTINGS")
        if (kind == CONTINUATION) != (self._block is not None):
            raise UpstreamBroken("a field block that is interrupted")
        http2.check(kind, flags, stream, end - start - HEADER)
        if kind == DATA:
            return self._data(flags, stream, start, end)
        if kind in {HEADERS, CONTINUATION}:
            return self._fields(flags, stream, data[start:end])
        payload = data[start + HEADER : end]
        if kind == Kind.WINDOW_UPDATE:
            return self._granted(stream, int.from_bytes(payload, "big") & http2.MAX_WINDOW)
        if kind == Kind.RST_STREAM:
            return self._reset(stream, int.from_bytes(payload, "big"))
        return self._settings(flags, payload) if kind == Kind.SETTINGS else self._control(kind, flags, payload)

    def _control(self, kind: int, flags: int, payload: bytes) -> bytes | None:
        if kind == Kind.PUSH_PROMISE:
            raise UpstreamBroken("a push that nobody asked for")
        if kind == Kind.GOAWAY:
            self.client.upstream_leaves(int.from_bytes(payload[:4], "big") & http2.MAX_STREAM)
        if kind == Kind.PING and not flags & ACK:
            self.client.up.append(http2.frame(Kind.PING, ACK, 0, payload))
        return None if kind == Kind.GOAWAY else b""

    def _data(self, flags: int, stream: int, start: int, end: int) -> bytes | None:
        """Of a call whose answer is reduced, or of none any more."""
        client = self.client
        client.to_client.spent(end - start - HEADER)
        call = client.calls.get(stream)
        if call is None or call.reduction is None:
            client.give_back_upstream(end - start - HEADER)
            return b""
        call.touched = time.monotonic()
        return self._looked_at(call, lambda answer: answer.data(self._frames.data, start, end, flags))

    def _fields(self, flags: int, stream: int, raw: bytes) -> bytes | None:
        if self._block is None:
            self._block = bytearray(http2.fragment(flags, raw[HEADER:]))
            self._begun = (stream, flags)
        elif stream != self._begun[0]:
            raise UpstreamBroken("a field block that is interrupted")
        else:
            self._block += raw[HEADER:]
        self._raw.append(raw)
        if len(self._block) > MAX_BLOCK:
            raise UpstreamBroken("a field block that is too large")
        if not flags & END_HEADERS:
            return b""
        block, self._block = bytes(self._block), None
        raw = b"".join(self._raw)
        self._raw.clear()
        said = self._reader.read(block)
        call = self.client.calls.get(stream)
        if call is None:
            return b""
        ends = bool(self._begun[1] & END_STREAM)
        if said.beginning or self.client.restates:
            stated = write(said.fields) if self.client.restates else said.restated or block
            more = call.id_block if said.beginning else b""
            raw = http2.headers(stream, stated + more, self._begun[1])
        call.touched = time.monotonic()
        if call.reduction is not None:
            return self._looked_at(call, lambda answer: answer.fields(raw, said.fields, end=ends))
        call.answered = True
        if ends:
            self.client.answered(call, said.status)
        return raw

    def _looked_at(self, call: Call, look: Callable[[Answer], bytes | None]) -> bytes | None:
        try:
            return look(call.reduction) if call.reduction is not None else b""
        except RequestError as error:
            self.client.refuse(call, error)
            return b""

    def _settings(self, flags: int, payload: bytes) -> bytes | None:
        if flags & ACK and self._own_settings:  # those that it was dialled with
            self._own_settings = False
            return b""
        if flags & ACK:
            self.client.heard()
            return b""
        values = http2.parse_settings(payload)
        client = self.client
        self.stream.deadline = NEVER
        first, self.established = not self.established, True
        if client.cautious:
            return client.measured_settings(values, first=first)
        client.to_upstream.initial.offer(values.get(Setting.INITIAL_WINDOW_SIZE))
        client.told.append(client.to_upstream)
        return client.server_settings(values)

    def _granted(self, stream: int, size: int) -> bytes | None:
        client = self.client
        if stream == 0:
            shared = client.to_upstream.granted(size)
            client.unblock()
            client.proceed()
            return http2.window_update(0, shared)
        call = client.calls.get(stream)
        if call is None:
            return b""
        call.granted += size
        call.touched = time.monotonic()
        if client.cautious:
            client.unblock()
            client.proceed()
        if call.reading is not None and call.reading.rebuilds:
            call.reading.granted(size)
            if call.client_done:
                return b""
        if not client.half:
            return None
        ahead = min(call.lead, size)
        call.lead -= ahead
        return http2.window_update(stream, size - ahead)

    def _reset(self, stream: int, code: int) -> bytes | None:
        client = self.client
        call = client.calls.get(stream)
        if call is None:
            return b""
        if call.reduction is not None:
            if not call.reduction.whole:
                client.refuse(call, UpstreamBroken("The upstream ended the call"))
            return b""
        if not call.recorded:
            call.record.grpc_status = _RESET.get(code, GrpcStatus.INTERNAL).value
        client.forget(call, "upstream_reset")
        return None
