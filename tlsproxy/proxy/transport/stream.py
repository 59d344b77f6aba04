"""A byte stream over a non-blocking socket, driven by the loop's readers and writers, with a bounded queue.

The loop's own transports cannot say why a handshake failed, send the alert of one (CPython #98078), or pause between
records; so the data path stands on sockets, the same on uvloop and asyncio.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from tlsproxy.proxy.transport.deadlines import NEVER, Deadlines
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.throughput import PARTS, Throughput

RECEIVE: Final = 122_880
"""Bytes of one recv: encrypted, still less than two segments of the loopback, and than what malloc maps afresh."""
HIGH_WATER: Final = 262_144
LOW_WATER: Final = 65_536

_TCP_INFO: Final = struct.Struct("=24xI92xQ16xI44x")
"""Three fields of Linux' `struct tcp_info`: `tcpi_unacked`, `tcpi_bytes_acked` (tcpEStatsAppHCThruOctetsAcked of
RFC 4898), and `tcpi_notsent_bytes`.
"""

_RESET: Final = struct.pack("ii", 1, 0)
"""Linux' `struct linger`, with which a close resets the connection (socket(7))."""

_EMPTY: Final[deque[Content | memoryview]] = deque()
"""Shared queue of streams with nothing to write: nearly all at any time, and a deque takes 760 bytes."""

_log = logging.getLogger(__name__)


class StreamHandler(Protocol):
    """Callbacks of a stream. ``connection_lost`` comes exactly once, last, from the loop.

    ``rearm``: limits have changed during a wait, which gets its new deadline.
    """

    def data_received(self, data: bytes) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def deadline_passed(self) -> None: ...
    def rearm(self) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...


class _Nobody:
    """Handler of a stream after its end, of which nothing comes any more."""

    def data_received(self, data: bytes) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def deadline_passed(self) -> None: ...
    def rearm(self) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...
    def lowest(self) -> tuple[float, float]:
        return NEVER, 0.0


_NOBODY: Final = _Nobody()


class Stream:
    """A plaintext stream, the ground of the TLS and the dialled one. What one recv took is handed on in one piece.

    ``handler`` may be replaced. ``reading``: received data is taken from the kernel. ``ended``: the peer has ended its
    half; ``when_ended`` is called then, and without it the stream ends too. ``established``: the connection stands,
    with TLS after its handshake.
    ``stalled``: the peer takes no more for now. ``broken``: some written data is lost. ``corked``: data that is held
    back until :meth:`uncork` sends it as one, else None.
    """

    __slots__ = (
        "_closing",
        "_connected",
        "_deadlines",
        "_error",
        "_fd",
        "_heard",
        "_linger",
        "_loop",
        "_lowest",
        "_out",
        "_queued",
        "_resetting",
        "_shutting",
        "_sock",
        "_taken",
        "_writing",
        "broken",
        "closed",
        "corked",
        "deadline",
        "ended",
        "established",
        "handler",
        "reading",
        "stalled",
        "when_ended",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        handler: StreamHandler,
        deadlines: Deadlines,
        lowest: Callable[[], tuple[float, float]],
    ) -> None:
        """``lowest``: slowest rate at which the peer may take queued data, as (seconds of a window, bytes a second)."""
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._heard = deadlines.heard
        self._error: OSError | None = None
        self.reading = self._closing = False
        self.closed = self.ended = False
        self.when_ended: Callable[[], None] | None = None
        self.handler = handler
        self._deadlines = deadlines
        self._lowest = lowest
        self._taken: Throughput | None = None
        self._linger = 0.0
        self._out = _EMPTY
        self._queued = 0
        self._writing = self._shutting = self._resetting = False
        self.stalled = self.broken = False
        self.corked: list[Content] | None = None
        self.established = self._connected = True
        self.deadline = NEVER
        deadlines.add(self)

    @property
    def own_address(self) -> tuple[str, int]:
        """Address and port of our end, empty and 0 on a unix socket. The socket is open."""
        address: tuple[str, int] | str | bytes = self._sock.getsockname()
        return address[:2] if isinstance(address, tuple) else ("", 0)

    @property
    def unsent(self) -> bool:
        """Whether written data is still queued here."""
        return self._queued > 0

    # Reading

    def resume_reading(self) -> None:
        if not self.reading and not self.closed and not self._closing and not self.ended:
            self.reading = True
            self._loop.add_reader(self._fd, self._on_readable)

    def pause_reading(self) -> None:
        if self.reading:
            self.reading = False
            self._loop.remove_reader(self._fd)

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(error)
            return
        if not data:
            self._at_eof()
            return
        self._heard.add(self)
        if not self._closing:
            try:
                self._take(data)
            except Exception as failure:  # noqa: BLE001 - see _handler_failed
                self._handler_failed(failure)

    def _take(self, data: bytes) -> None:
        self.handler.data_received(data)

    def _at_eof(self) -> None:
        if self.when_ended is not None and not self._closing and self._error is None:
            self._half_ended(self.when_ended)
        else:
            self.abort(self._error)

    def _half_ended(self, callback: Callable[[], None]) -> None:
        self.ended = True
        self.pause_reading()
        self.tell(callback)

    def look(self) -> None:
        """Checks SO_ERROR, at a sweep after data came: at each receipt it would be one more system call.

        uvloop reports a socket's error once, then stops watching the socket, even if unread data is buffered. The check
        takes the error off the socket, and the buffered rest is read to its end.
        """
        if number := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._read_rest(OSError(number, os.strerror(number)))

    def _read_rest(self, error: OSError) -> None:
        self._error = error
        self._loop.call_soon(self._watch_again)

    def _watch_again(self) -> None:
        if self.reading:
            self._loop.remove_reader(self._fd)
            self._loop.add_reader(self._fd, self._on_readable)

    def tell(self, callback: Callable[..., None], *args: object) -> None:
        """Calls the handler, for every wake-up of the loop but received data; an error in it ends the stream."""
        try:
            callback(*args)
        except Exception as error:  # noqa: BLE001 - see _handler_failed
            self._handler_failed(error)

    def _handler_failed(self, error: Exception) -> None:
        # A connection must not stay half decided, whatever went wrong.
        _log.critical("connection ended by an internal error", exc_info=error)
        self.abort(error)

    # Writing

    def write(self, data: Content) -> None:
        if self.corked is not None:
            self.corked.append(data)
        elif not self.closed and not self._closing:
            self._send(data)

    def cork(self) -> None:
        if self.corked is None:
            self.corked = []

    def uncork(self) -> None:
        if self.corked is not None:
            data, self.corked = b"".join(self.corked), None
            if data:
                self.write(data)

    def _send(self, data: Content) -> None:
        sent = 0
        if not self._out and self._connected:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                self._write_failed(error)
                return
            if sent == len(data):
                return
        rest = memoryview(data)[sent:] if sent else data
        if self._out is _EMPTY:
            self._out = deque()
        self._out.append(rest)
        self._queued += len(rest)
        if self._connected:
            self._start_writing()
        if self._queued > HIGH_WATER and not self.stalled:
            self.stalled = True
            if self.established:  # until then it is the connection that is waited for
                self._await_room()
            self.handler.pause_writing()

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        while self._out:
            data = self._out[0]
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                break
            except OSError as error:
                self._write_failed(error)
                return
            self._queued -= sent
            if sent == len(data):
                self._out.popleft()
            else:
                self._out[0] = memoryview(data)[sent:]
        if not self._out:
            self._out = _EMPTY
            self._stop_writing()
            if self._closing:
                self._half_close()
            elif self._shutting:
                self._shut_down()
        if self.stalled and self._queued <= LOW_WATER and not self.closed and not self._closing:
            self.stalled = False
            if self._taken is not None:
                self._taken.pause(time.monotonic())
            self.tell(self.handler.resume_writing)

    def _await_room(self) -> None:
        now, taken = time.monotonic(), self._taken
        if taken is None:
            self.deadline = now + self._lowest()[0] / PARTS
        else:
            taken.resume(now)
            self.deadline = taken.due

    def takes(self) -> bool:
        """Whether the peer still takes queued data fast enough; if so, its deadline is extended.

        Measured by the kernel's count of acknowledged bytes: a socket is writable only once a third of its send buffer
        is free, for which a slow reader needs minutes.
        """
        pending, acknowledged = self._taken_so_far()
        if not pending:
            return False
        now, (window, rate) = time.monotonic(), self._lowest()
        taken = self._taken
        if taken is None:
            self._taken = taken = Throughput(now, acknowledged, window)
        else:
            taken.resume(now)
            if taken.too_low(now, acknowledged, window, rate):
                return False
        self.deadline = taken.due
        return True

    def _taken_so_far(self) -> tuple[bool, int]:
        """Whether the peer has yet to take data, and a count of bytes that grows as it does."""
        if self._sock.family == socket.AF_UNIX:
            unread = int.from_bytes(fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
            return bool(self._queued or unread), -self._queued - unread
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        on_its_way, acknowledged, unsent = _TCP_INFO.unpack(info)
        return bool(self._queued or on_its_way or unsent), acknowledged

    def _write_failed(self, error: OSError) -> None:
        """The peer reads no more. Data that it sent before may still be buffered, such as an early refusal."""
        _log.debug("write failed: %s", error)
        self.broken = True
        self._out = _EMPTY
        self._queued = 0
        self._stop_writing()
        if self._closing or self.ended:
            self.abort(error)
        else:
            self._read_rest(error)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    # Ending

    def shut(self) -> None:
        """Ends our half once the queue is sent: nothing more is written, and received data is still handed on."""
        if self.closed or self._closing or self._shutting:
            return
        self._shutting = True
        if not self._out and self.established:
            self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # the peer was faster
            self.abort(error)

    def close(self, linger: float) -> None:
        """Sends the queue, ends our half, and for ``linger`` seconds receives and drops what the peer still sends.

        Without that, a peer that is still sending would meet a reset before it has read our answer (RFC 9112 §9.6).
        """
        if self.closed or self._closing:
            return
        self._closing = True
        self._linger = linger
        if self._out:
            self._await_room()
        else:
            self._half_close()

    def hasten(self, linger: float) -> None:
        """Shortens the linger of a stream that is closing."""
        if self._linger > linger:
            self._linger = linger
            if not self._out:
                self.deadline = min(self.deadline, time.monotonic() + linger)

    def _half_close(self) -> None:
        if not self._linger:
            if self._resetting and self._taken_so_far()[0]:
                self.deadline = time.monotonic()  # asked again at each sweep
            else:
                self.abort()
            return
        self.deadline = time.monotonic() + self._linger
        self._shut_down()
        if not self.reading and not self.closed:
            self.reading = True
            self._loop.add_reader(self._fd, self._on_readable)

    def cease(self) -> None:
        """Aborts if written data is still on its way: the peer may be as slow as it likes."""
        if self._queued or self._resetting:
            self.abort()

    def abort(self, error: Exception | None = None) -> None:
        """Closes at once. Queued data is lost."""
        if self.closed:
            return
        self.closed = True
        self.pause_reading()
        self._stop_writing()
        self._out = _EMPTY
        self._queued = 0
        self._deadlines.discard(self)
        self._sock.close()
        self._loop.call_soon(self._lost, error)

    def reset(self) -> None:
        """Sends the queue, and ends with a reset: a cut must not look like an end.

        A reset drops the data that the peer's kernel has not taken yet, so that is waited for. A unix socket has no
        resets: there it looks like an end unless data is unread.
        """
        if not self.closed and self._sock.family != socket.AF_UNIX:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._resetting = True
        Stream.close(self, 0.0)  # over TLS without a close_notify

    def _lost(self, error: Exception | None) -> None:
        """Calls the present handler: a new one may have ended the stream before it became its handler.

        This is the last callback, so references are dropped: a reference cycle would wait for the garbage collector.
        """
        try:
            self.handler.connection_lost(error)
        finally:
            self.when_ended = self._error = None
            self.handler, self._lowest = _NOBODY, _NOBODY.lowest

    def rearm(self) -> None:
        """Limits have changed: a wait that goes on gets its new deadline, counted from now."""
        if self.deadline == NEVER:
            return
        if self.established and self._queued and (self.stalled or self._closing):
            self.deadline = min(self.deadline, time.monotonic() + self._lowest()[0] / PARTS)
        elif not self._closing:
            self.tell(self.handler.rearm)

    def expired(self) -> None:
        if self._resetting and not self._queued:
            if self.takes():
                self.deadline = time.monotonic()
            else:
                self.abort()
            return
        if self._queued and self.established and (self.stalled or self._closing) and self.takes():
            return
        if self._closing:
            self.abort(TimeoutError("the peer did not close"))
            return
        self.deadline = NEVER
        self.tell(self.handler.deadline_passed)


def read_both(one: Stream, other: Stream) -> None:
    """Reads from each of two relayed streams as long as the other takes the data."""
    for source, sink in ((one, other), (other, one)):
        if sink.stalled:
            source.pause_reading()
        else:
            source.resume_reading()
