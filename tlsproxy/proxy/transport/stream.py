"""A byte stream over a non-blocking socket, driven by the loop's readers and writers, with a bounded queue.

The loop's own transports cannot say why a handshake failed, send the alert of one (CPython #98078), or pause between
records; so the data path stands on sockets, the same on uvloop and asyncio.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from tlsproxy.proxy.transport.deadlines import NEVER, Deadlines
from tlsproxy.proxy.transport.owner import Owner
from tlsproxy.proxy.transport.receiver import Receiver
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.throughput import PARTS, Throughput

HIGH_WATER: Final = 262_144
LOW_WATER: Final = 65_536

_TCP_INFO: Final = struct.Struct("=24xI92xQ16xI44x")
"""Three fields of Linux' `struct tcp_info`: `tcpi_unacked`, `tcpi_bytes_acked` (tcpEStatsAppHCThruOctetsAcked of
RFC 4898), and `tcpi_notsent_bytes`.
"""

_NOTHING: Final[deque[Content | memoryview]] = deque()
"""What is queued by those that have nothing to write: nearly all at any time, and a deque takes 760 bytes."""

_log = logging.getLogger(__name__)


class Stream(Receiver):
    """A plaintext stream, the ground of the others.

    ``established``: there is a connection. ``stalled``: the other side takes no more for now. ``broken``: some of what
    was written is lost. ``corked``: what is written until :meth:`uncork`, to go out as one; None at any other time.
    """

    __slots__ = (
        "_deadlines",
        "_linger",
        "_lowest",
        "_out",
        "_queued",
        "_shutting",
        "_taken",
        "_writing",
        "broken",
        "corked",
        "deadline",
        "established",
        "stalled",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        owner: Owner,
        deadlines: Deadlines,
        lowest: Callable[[], tuple[float, float]],
    ) -> None:
        """``lowest`` says how slowly the other side may take what is queued: (seconds of a window, bytes a second)."""
        super().__init__(loop, sock, owner, deadlines.heard)
        self._deadlines = deadlines
        self._lowest = lowest
        self._taken: Throughput | None = None
        self._linger = 0.0
        self._out = _NOTHING
        self._queued = 0
        self._writing = self._shutting = False
        self.stalled = self.broken = False
        self.corked: list[Content] | None = None
        self.established = True
        self.deadline = NEVER
        deadlines.add(self)

    @property
    def unsent(self) -> bool:
        """Whether something that was written waits with us."""
        return self._queued > 0

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
        if not self._out and self.established:
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
        if self._out is _NOTHING:
            self._out = deque()
        self._out.append(rest)
        self._queued += len(rest)
        if self.established:
            self._start_writing()
        if self._queued > HIGH_WATER and not self.stalled:
            self.stalled = True
            if self.established:  # until then it is the connection that is waited for
                self._await_room()
            self.owner.pause_writing()

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
            self._out = _NOTHING
            self._stop_writing()
            if self._closing:
                self._half_close()
            elif self._shutting:
                self._shut_down()
        if self.stalled and self._queued <= LOW_WATER and not self.closed and not self._closing:
            self.stalled = False
            if self._taken is not None:
                self._taken.pause(time.monotonic())
            self.tell(self.owner.resume_writing)

    def _await_room(self) -> None:
        now, taken = time.monotonic(), self._taken
        if taken is None:
            self.deadline = now + self._lowest()[0] / PARTS
        else:
            taken.resume(now)
            self.deadline = taken.due

    def takes(self) -> bool:
        """Whether the other side still takes what was written; if so, the wait for it goes on.

        The kernel is asked what has been acknowledged: a socket is writable only once a third of its send buffer is
        free, which a slow reader needs minutes for.
        """
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        on_its_way, acknowledged, unsent = _TCP_INFO.unpack(info)
        if not (self._queued or on_its_way or unsent):
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

    def _write_failed(self, error: OSError) -> None:
        """The other side reads no more. What it said before may still wait to be read, such as an early refusal."""
        _log.debug("write failed: %s", error)
        self.broken = True
        self._out = _NOTHING
        self._queued = 0
        self._stop_writing()
        if self._closing:
            self.abort(error)
        else:
            self._read_on(error)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    # Ending

    def shut(self) -> None:
        """Ends our half, once what is queued is sent: nothing more is written, and what comes is still heard."""
        if self.closed or self._closing or self._shutting:
            return
        self._shutting = True
        if not self._out and self.established:
            self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # the other side was faster
            self.abort(error)

    def close(self, linger: float) -> None:
        """Sends what is queued, ends our side, and for ``linger`` seconds takes what the other still sends, unread.

        Without that, one that is still sending would meet a reset before it has read our answer (RFC 9112 §9.6).
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
        """Once it is closing, it lingers no longer than this from now on."""
        if self._linger > linger:
            self._linger = linger
            if not self._out:
                self.deadline = min(self.deadline, time.monotonic() + linger)

    def _half_close(self) -> None:
        if not self._linger:
            self.abort()
            return
        self.deadline = time.monotonic() + self._linger
        self._shut_down()
        if not self.reading and not self.closed:
            self.reading = True
            self._loop.add_reader(self._fd, self._on_readable)

    def cease(self) -> None:
        """Ends now if something that was written waits here for the other side, which may be as slow as it likes."""
        if self._queued:
            self.abort()

    def abort(self, error: Exception | None = None) -> None:
        """Ends it now. What is queued is lost."""
        if self.closed:
            return
        self.closed = True
        self.pause_reading()
        self._stop_writing()
        self._out = _NOTHING
        self._queued = 0
        self._deadlines.discard(self)
        self._sock.close()
        self._loop.call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        """Whoever owns it by now is told: a new owner may have ended it before it was one.

        Nothing is told after that, so it lets go of whom it would tell: what refers to each other in a circle would
        wait for the garbage collector.
        """
        try:
            self.owner.connection_lost(error)
        finally:
            self.when_ended = self._error = None
            del self.owner

    def rearm(self) -> None:
        """Limits have changed: a wait that goes on takes its new time from now on."""
        if self.deadline == NEVER:
            return
        if self.established and self._queued and (self.stalled or self._closing):
            self.deadline = min(self.deadline, time.monotonic() + self._lowest()[0] / PARTS)
        elif not self._closing:
            self.tell(self.owner.rearm)

    def expired(self) -> None:
        if self._queued and self.established and (self.stalled or self._closing) and self.takes():
            return
        if self._closing:
            self.abort(TimeoutError("the other side did not close"))
            return
        self.deadline = NEVER
        self.tell(self.owner.deadline_passed)
