"""The receiving half of a stream. It tells its owner what came, without looking at it.

What one recv took goes on in one piece. Whoever is slower than the other side pauses reading.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from tlsproxy.proxy.transport.deadlines import Hearing
from tlsproxy.proxy.transport.owner import Owner

RECEIVE: Final = 122_880
"""Bytes of one recv: encrypted, still less than two segments of the loopback, and than what malloc maps afresh."""

_log = logging.getLogger(__name__)


class Receiver:
    """``reading``: what comes is taken, and does not wait with the kernel. ``when_ended``: its owner goes on when the
    other side has ``ended`` its half, and is told so by this.
    """

    __slots__ = (
        "_closing",
        "_error",
        "_fd",
        "_heard",
        "_loop",
        "_sock",
        "closed",
        "ended",
        "owner",
        "reading",
        "when_ended",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, owner: Owner, heard: set[Hearing]) -> None:
        """``heard``: where it enters itself when something came, to be asked for a ``look`` at the next sweep."""
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._heard = heard
        self._error: OSError | None = None
        self.reading = self._closing = False
        self.closed = self.ended = False
        self.when_ended: Callable[[], None] | None = None
        self.owner = owner

    def abort(self, error: Exception | None = None) -> None:
        """Ends it now."""
        raise NotImplementedError

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
            except Exception as error:  # noqa: BLE001 - see _owner_failed
                self._owner_failed(error)

    def _take(self, data: bytes) -> None:
        self.owner.data_received(data)

    def _at_eof(self) -> None:
        if self.when_ended is not None and not self._closing and self._error is None:
            self._half_ended(self.when_ended)
        else:
            self.abort(self._error)

    def _half_ended(self, tell: Callable[[], None]) -> None:
        self.ended = True
        self.pause_reading()
        self.tell(tell)

    def look(self) -> None:
        """Of a socket that failed uvloop tells once, and watches it no more, though what came before may still wait.

        So where something came a sweep looks, since at each receipt it would be a system call more. The look takes the
        error off the socket, and what is left is read to its end.
        """
        if number := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._read_on(OSError(number, os.strerror(number)))

    def _read_on(self, error: OSError) -> None:
        self._error = error
        self._loop.call_soon(self._watch_again)

    def _watch_again(self) -> None:
        if self.reading:
            self._loop.remove_reader(self._fd)
            self._loop.add_reader(self._fd, self._on_readable)

    def tell(self, what: Callable[..., None], *args: object) -> None:
        """Whatever else the loop wakes us for, the owner hears of it through here."""
        try:
            what(*args)
        except Exception as error:  # noqa: BLE001 - see _owner_failed
            self._owner_failed(error)

    def _owner_failed(self, error: Exception) -> None:
        # Whatever it was that went wrong, it must not leave the connection half decided.
        _log.critical("connection ended by an internal error", exc_info=error)
        self.abort(error)
