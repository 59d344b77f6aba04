"""DATA of our own making, for one stream: as fast as its receiver's windows let it go."""

from __future__ import annotations

from collections.abc import Callable

from tlsproxy.proxy.grpc.call import Call
from tlsproxy.wire import http2
from tlsproxy.wire.flow_control import Window
from tlsproxy.wire.http2 import MAX_FRAME


class Outgoing:
    """``window`` is the connection's, in the direction in which ``write`` queues frames. The stream's is kept here."""

    def __init__(self, call: Call, window: Window, write: Callable[[bytes], None]) -> None:
        self._call = call
        self._window = window
        self._write = write
        self._credit = 0  # beyond the first window of a stream
        self._data = b""
        self._at = 0
        self._last: bytes | None = None

    @property
    def done(self) -> bool:
        return self._last == b"" and not self.left

    @property
    def left(self) -> int:
        """Bytes that wait for room."""
        return len(self._data) - self._at

    @property
    def sent(self) -> int:
        """Bytes that have gone."""
        return self._at

    @property
    def room(self) -> int:
        """Bytes that both windows have room for."""
        return min(self._window.room, self._window.initial.least + self._credit)

    def put(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def finish(self, last: bytes) -> None:
        """Nothing more comes. ``last`` follows the data; where it is empty, the last of the data ends the stream."""
        self._last = last
        self.proceed()

    def granted(self, size: int) -> None:
        self._credit += size
        self.proceed()

    def proceed(self) -> None:
        call, window = self._call, self._window
        while left := self.left:
            size = min(left, MAX_FRAME, self.room)
            if size <= 0:
                call.relay.wanting[call] = None
                return
            piece = self._data[self._at : self._at + size]
            self._at += size
            self._write(http2.data(call.stream, piece, end=size == left and self._last == b""))
            window.own(size)
            self._credit -= size
        call.relay.wanting.pop(call, None)
        if self._last:
            last, self._last = self._last, None
            self._write(last)
            call.response_ended(0)
