"""Accept loops, one for each address.

If the process has no descriptors left, accepting pauses instead of spinning.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from tlsproxy.config.endpoints import Endpoint
from tlsproxy.config.listeners import Listening
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.frontend.connections import Connections
from tlsproxy.proxy.frontend.watchdog_probe import ProbeConnection

BACKLOG: Final = 4096
BATCH: Final = 32
"""Connections accepted in one iteration of the loop. A worker among several accepts one at a time: while it is busy
with that one, another worker accepts the next."""
REST: Final = 0.2
"""Seconds without accepting after an error, most often EMFILE."""


def bind(host: str, port: int) -> socket.socket:
    """Listening socket. Raises OSError, which names the address."""
    try:
        sock = bound_socket(host, port)
        try:
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise OSError(error.errno, f"{Endpoint(host, port)}: {error.strerror}") from error
    return sock


def bound_socket(host: str, port: int) -> socket.socket:
    """The same before it listens. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setblocking(False)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


@dataclass(frozen=True, slots=True)
class Bound:
    """Listening socket and its configuration. ``address`` is its ``host:port``, with the port that the kernel chose."""

    sock: socket.socket
    where: Listening
    address: str

    @classmethod
    def of(cls, sock: socket.socket, where: Listening) -> Self:
        host, port = sock.getsockname()[:2]
        return cls(sock, where, str(Endpoint(host, port)))


class _Acceptor:
    """Accepts on one socket until :meth:`stop`. ``trouble``: the error for which it pauses, else empty."""

    def __init__(self, gateway: Gateway, connections: Connections, bound: Bound, batch: int) -> None:
        self._where = bound.where
        self._gateway = gateway
        self._connections = connections
        self._sock = bound.sock
        self._batch = batch
        self._address = bound.address
        self._accepting = False
        self.trouble = ""
        self._resume()

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._accepting = True
            self._gateway.loop.add_reader(self._sock.fileno(), self._accept)

    def _pause(self) -> None:
        self._accepting = False
        self._gateway.loop.remove_reader(self._sock.fileno())

    def _accept(self) -> None:
        for _ in range(self._batch):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                self._note("")  # accept(2) takes a descriptor first, so there is one
                return
            except OSError as error:
                self._gateway.metrics.accept_error()
                reason = error.strerror or str(error)
                self._note(f"cannot accept connections on {self._address} for the moment: {reason}")
                self._pause()
                self._gateway.loop.call_later(REST, self._resume)
                return
            if address[:2] == self._gateway.probe:
                self._gateway.probe = None
                ProbeConnection(self._gateway, sock, self._where)
                continue
            self._connections.admit(sock, address[0].removeprefix("::ffff:"), self._where)

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._gateway.impairments.notice()

    def stop(self) -> None:
        """Accepts no more. The kernel refuses connections in the backlog."""
        if self._accepting:
            self._pause()
        self._sock.close()


class Listeners:
    """All listeners. Their ``connections`` outlive :meth:`stop`."""

    def __init__(self, gateway: Gateway, connections: Connections, bound: Iterable[Bound], batch: int) -> None:
        self.connections = connections
        self._all = [_Acceptor(gateway, self.connections, one, batch) for one in bound]

    @property
    def trouble(self) -> str:
        """Error for which one of them pauses, empty if none does."""
        return next((one.trouble for one in self._all if one.trouble), "")

    def stop(self) -> None:
        for listener in self._all:
            listener.stop()
