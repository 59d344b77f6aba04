"""Reception of a PROXY protocol header, which is taken off the socket to the byte: what follows is the TLS handshake's.

A header has the time of a handshake, in one or many segments. A balancer that closes before the first byte has only
checked whether somebody listens.
"""

from __future__ import annotations

import socket
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Final

from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.wire.proxy_protocol import LONGEST, Header, HeaderRefused, read

SILENT: Final = ""
"""Outcome of a connection that the balancer ended before its first byte."""


class HeaderReception:
    """Calls ``done`` once, with the header or the reason for which there is none: the socket is closed then."""

    __slots__ = ("_data", "_deadlines", "_done", "_loop", "_timeout", "deadline", "opened", "sock")

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        deadlines: Deadlines,
        timeout: Callable[[], float],
        done: Callable[[HeaderReception, Header | str], None],
    ) -> None:
        """``timeout`` are the seconds for a header, as configured at present."""
        self.sock = sock
        self.opened = time.monotonic()
        self.deadline = self.opened + timeout()
        self._data = b""
        self._done = done
        self._loop = loop
        self._deadlines = deadlines
        self._timeout = timeout
        sock.setblocking(False)
        deadlines.add(self)
        loop.add_reader(sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        taken = len(self._data)
        try:
            data = self._data + self.sock.recv(LONGEST - taken, socket.MSG_PEEK)
            if len(data) == taken:
                self.refuse(self._cut_short())
                return
            header = read(data)
            self.sock.recv((len(data) if header is None else header.size) - taken)
        except BlockingIOError:
            return
        except OSError:
            self.refuse(self._cut_short())
            return
        except HeaderRefused as refused:
            self.refuse(refused.reason)
            return
        if header is None:
            self._data = data
            return
        self._leave()
        self._done(self, header)

    def _cut_short(self) -> str:
        return "proxy_protocol_malformed" if self._data else SILENT

    def _leave(self) -> None:
        self._loop.remove_reader(self.sock.fileno())
        self._deadlines.discard(self)

    def refuse(self, reason: str) -> None:
        """Closes the connection."""
        self._leave()
        self.sock.close()
        self._done(self, reason)

    # As a stream, for its deadline

    def expired(self) -> None:
        self.refuse("proxy_protocol_malformed" if self._data else "proxy_protocol_missing")

    def rearm(self) -> None:
        self.deadline = self.opened + self._timeout()

    def look(self) -> None:
        """Its errors are those of reading."""
