"""The accept loop: who may connect at all, before a byte of TLS is spent on them.

A connection takes the TLS context of the generation that is current when it is accepted. Limits count what is open, for
each address and for all. When the process runs out of descriptors, accepting rests instead of spinning.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tlsproxy.authz.audit import event_line
from tlsproxy.proxy.gateway import Gateway
from tlsproxy.proxy.pool import Pool
from tlsproxy.proxy.reception import Reception

BACKLOG: Final = 4096
BATCH: Final = 32
"""Connections that are accepted before the others get their turn."""
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


class Listener:
    """Accepts on one socket until :meth:`stop`; its connections live on until they end or are cut."""

    def __init__(self, gateway: Gateway, pool: Pool, sock: socket.socket) -> None:
        self._gateway = gateway
        self._pool = pool
        self._sock = sock
        self._connections: set[Reception] = set()
        self._by_address: Counter[str] = Counter()
        self._when_empty: Callable[[], None] | None = None
        self._accepting = False
        self._resume()

    @property
    def bound(self) -> str:
        """``host:port``, an IPv6 host in brackets."""
        host, port = self._sock.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._accepting = True
            self._gateway.loop.add_reader(self._sock.fileno(), self._accept)

    def _pause(self) -> None:
        self._accepting = False
        self._gateway.loop.remove_reader(self._sock.fileno())

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._gateway.metrics.accept_error()
                _log.warning("cannot accept connections for the moment: %s", error.strerror)
                self._pause()
                self._gateway.loop.call_later(REST, self._resume)
                return
            self._admit(sock, address[0].removeprefix("::ffff:"))

    def _admit(self, sock: socket.socket, address: str) -> None:
        limits = self._gateway.generation.config.limits
        if len(self._connections) >= limits.connections:
            self._turn_away(sock, address, "limit")
        elif self._by_address[address] >= limits.connections_per_address:
            self._turn_away(sock, address, "address_limit")
        else:
            self._gateway.metrics.connection("accepted")
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(Reception(self._gateway, self._pool, sock, address, self._ended))
            self._by_address[address] += 1

    def _turn_away(self, sock: socket.socket, address: str, outcome: str) -> None:
        sock.close()
        self._gateway.metrics.connection(outcome)
        line = event_line(
            when=time.time(), event="connection", remote=address, result="denied", reason=outcome, detail={}
        )
        self._gateway.audit.write(line)

    def _ended(self, connection: Reception) -> None:
        self._connections.discard(connection)
        self._by_address[connection.address] -= 1
        if not self._by_address[connection.address]:
            del self._by_address[connection.address]
        if not self._connections and self._when_empty is not None:
            self._when_empty()

    def stop(self) -> None:
        """Accepts no more. What waits in the backlog is refused by the kernel."""
        if self._accepting:
            self._pause()
        self._sock.close()

    def drain(self, when_empty: Callable[[], None]) -> None:
        """Lets each connection end with what it is doing; ``when_empty`` is called once."""
        self._when_empty = when_empty
        for connection in list(self._connections):
            connection.drain()
        if not self._connections:
            when_empty()

    def cut(self) -> None:
        for connection in list(self._connections):
            connection.stream.abort()
