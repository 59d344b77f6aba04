"""An outgoing stream: written data waits until the connection stands."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Final, Protocol, TypeVar

from tlsproxy.errors import OutOfDescriptors, RequestError, UpstreamUnreachable
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.stream import Stream, StreamHandler

_TCP_INFO: Final = struct.Struct("=44xI4xI")
"""Two fields of Linux' `struct tcp_info`: `tcpi_last_data_sent` and `tcpi_last_data_recv`, milliseconds ago."""

Address = tuple[int, tuple[Any, ...]]
"""(family, sockaddr), as getaddrinfo gives them."""


_Class = TypeVar("_Class", bound=type)


def own_code(*names: str) -> Callable[[_Class], _Class]:
    """Copies the code of inherited methods, which take no defaults and use no ``super()``, into the decorated class.

    An inline cache (PEP 659) belongs to a code object and remembers one type: where two classes run the same code in
    turn it misses each time, which costs 3 % of a small message.
    """

    def decorate(cls: _Class) -> _Class:
        for name in names:
            inherited = getattr(cls, name)
            setattr(cls, name, FunctionType(inherited.__code__.replace(), inherited.__globals__, name))
        return cls

    return decorate


class Unresolved(OSError):
    """No address of the upstream is known."""


def dial_failure(error: Exception | None) -> RequestError:
    """The error for a client whose upstream could not be dialled: without the system's words, which the log has."""
    if isinstance(error, Unresolved):
        return UpstreamUnreachable(f"The upstream cannot be reached: {error}")
    number = error.errno if isinstance(error, OSError) else None
    return OutOfDescriptors() if number in {errno.EMFILE, errno.ENFILE} else UpstreamUnreachable()


class DialHandler(StreamHandler, Protocol):
    """``connected`` comes before any other callback but ``connection_lost``."""

    def connected(self) -> None: ...


@own_code("_on_readable", "_take", "_send", "write", "resume_reading")
class DialledStream(Stream):
    """Tries the addresses in their order; when none answers, ``connection_lost`` comes without ``connected``.

    ``address``: the one that is being tried, or was reached.
    """

    __slots__ = ("_addresses", "_dial_handler", "address")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        addresses: Sequence[Address],
        handler: DialHandler,
        deadlines: Deadlines,
        lowest: Callable[[], tuple[float, float]],
    ) -> None:
        """Raises OSError where no socket can be made, or no address is known."""
        if not addresses:
            raise Unresolved("its name does not resolve")
        self._addresses = list(addresses)
        self._dial_handler = handler
        self.address = self._addresses.pop(0)
        super().__init__(loop, self._socket(self.address[0]), handler, deadlines, lowest)
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
        if error not in {0, errno.EINPROGRESS}:  # known at once, and not reported by SO_ERROR
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
        self.tell(self._dial_handler.connected)
        self.resume_reading()
        if self._out:
            self._start_writing()
            self._on_writable()
            if self.stalled:
                self._await_room()

    def silent_for(self) -> float | None:
        """Seconds since the last received byte; None where bytes were sent after it."""
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        sent, received = _TCP_INFO.unpack(info)
        return received / 1000 if received <= sent else None

    def _lost(self, error: Exception | None) -> None:
        del self._dial_handler
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
        except OSError as failure:
            self.abort(failure)
            return
        self._fd = self._sock.fileno()
        self._dial()
