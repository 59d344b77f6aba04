"""The accept loops, one for each address: what comes is handed on, and what is served there is told with it.

When the process runs out of descriptors, accepting rests instead of spinning.
"""

from __future__ import annotations

import logging
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
"""Connections that are accepted before the others get their turn. A worker among several takes one at a time: while it
is busy with that one, the next is for another worker."""
REST: Final = 0.2
"""Seconds without accepting after an error: most often the process ran out of descriptors."""

_log = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError, which names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from error
    return sock


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening socket, and what is served there. ``address`` is its ``host:port``, as the kernel chose it."""

    sock: socket.socket
    where: Listening
    address: str

    @classmethod
    def of(cls, sock: socket.socket, where: Listening) -> Self:
        host, port = sock.getsockname()[:2]
        return cls(sock, where, str(Endpoint(host, port)))


class _Acceptor:
    """Accepts on one socket until :meth:`stop`. ``trouble``: why it cannot for the moment, empty where it can."""

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
                self._tell("")  # accept(2) looks for a descriptor before it looks for a connection
                return
            except OSError as error:
                self._gateway.metrics.accept_error()
                self._tell(error.strerror or str(error))
                self._pause()
                self._gateway.loop.call_later(REST, self._resume)
                return
            if address[:2] == self._gateway.probe:
                self._gateway.probe = None
                ProbeConnection(self._gateway, sock, self._where)
                continue
            self._connections.admit(sock, address[0].removeprefix("::ffff:"), self._where)

    def _tell(self, trouble: str) -> None:
        """Once when it begins, and once when it is over."""
        if trouble and not self.trouble:
            _log.warning("cannot accept connections on %s for the moment: %s", self._address, trouble)
        elif self.trouble and not trouble:
            _log.info("connections are accepted on %s again", self._address)
        self.trouble = trouble

    def stop(self) -> None:
        """Accepts no more. What waits in the backlog is refused by the kernel."""
        if self._accepting:
            self._pause()
        self._sock.close()


class Listeners:
    """All addresses where clients connect. ``connections`` are those that came in there, and outlive :meth:`stop`."""

    def __init__(self, gateway: Gateway, connections: Connections, bound: Iterable[Bound], batch: int) -> None:
        self.connections = connections
        self._all = [_Acceptor(gateway, self.connections, one, batch) for one in bound]

    @property
    def trouble(self) -> str:
        """Why one of them cannot accept connections for the moment, empty where all can."""
        return next((one.trouble for one in self._all if one.trouble), "")

    def stop(self) -> None:
        for listener in self._all:
            listener.stop()
