"""A stream towards an address that may not answer: what is written before the connection stands waits for it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.own_code import own_code
from tlsproxy.proxy.transport.owner import DialOwner
from tlsproxy.proxy.transport.stream import Stream

_TCP_INFO: Final = struct.Struct("=44xI4xI")
"""Two fields of Linux' `struct tcp_info`: `tcpi_last_data_sent` and `tcpi_last_data_recv`, milliseconds ago."""

Address = tuple[int, tuple[Any, ...]]
"""(family, sockaddr), as getaddrinfo gives them."""


@own_code("_on_readable", "_take", "_send", "write", "resume_reading")
class DialledStream(Stream):
    """Tries the addresses in their order. When none answers, the connection is lost without ever having been.

    ``address`` is the one that is tried, or was reached.
    """

    __slots__ = ("_addresses", "_dial_owner", "address")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        addresses: Sequence[Address],
        owner: DialOwner,
        deadlines: Deadlines,
        lowest: Callable[[], tuple[float, float]],
    ) -> None:
        """Raises OSError where no socket is to be had, or no address is known."""
        if not addresses:
            raise OSError(errno.EHOSTUNREACH, "its name does not resolve")
        self._addresses = list(addresses)
        self._dial_owner = owner
        self.address = self._addresses.pop(0)
        super().__init__(loop, self._socket(self.address[0]), owner, deadlines, lowest)
        self.established = False
        self._dial()

    @staticmethod
    def _socket(family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _dial(self) -> None:
        error = self._sock.connect_ex(self.address[1])
        if error not in {0, errno.EINPROGRESS}:  # known at once, and not told by SO_ERROR
            self._loop.call_soon(self._try_next, OSError(error, os.strerror(error)))
            return
        self._writing = True
        self._loop.add_writer(self._fd, self._on_dialled)

    def _on_dialled(self) -> None:
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._stop_writing()
        if error:
            self._try_next(OSError(error, os.strerror(error)))
            return
        self.established = True
        self.tell(self._dial_owner.connected)
        self.resume_reading()
        if self._out:
            self._start_writing()
            self._on_writable()
            if self.stalled:
                self._await_room()

    def silent_for(self) -> float | None:
        """Seconds since the last byte came from the other side; None where bytes have gone there since."""
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        sent, received = _TCP_INFO.unpack(info)
        return received / 1000 if received <= sent else None

    def _lost(self, error: Exception | None) -> None:
        del self._dial_owner
        super()._lost(error)

    def _try_next(self, error: OSError) -> None:
        if self.closed:
            return
        if not self._addresses:
            self.abort(error)
            return
        self._sock.close()
        self.address = self._addresses.pop(0)
        try:
            self._sock = self._socket(self.address[0])
        except OSError as none:
            self.abort(none)
            return
        self._fd = self._sock.fileno()
        self._dial()
