"""The client connections of all listeners: who may connect at all, before a byte of TLS is spent on them.

A connection takes the TLS context of the generation that is current when it is accepted. Limits count what is open, for
each address and for all, wherever it came in. Connections live on when their listener has stopped, until they end or
are cut.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable

from tlsproxy.authz.audit import Refusal, event_line
from tlsproxy.config.listeners import Listening
from tlsproxy.proxy.gateway import Gateway
from tlsproxy.proxy.pool import Pool
from tlsproxy.proxy.reception import Reception


class Connections:
    """``len()`` is how many are open."""

    def __init__(self, gateway: Gateway, pool: Pool) -> None:
        self._gateway = gateway
        self._pool = pool
        self._open: set[Reception] = set()
        self._by_address: Counter[str] = Counter()
        self._when_empty: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, sock: socket.socket, address: str, where: Listening) -> None:
        """One that was accepted there. ``address`` is the client's, without its port."""
        limits = self._gateway.generation.config.limits
        if len(self._open) >= limits.connections:
            self._turn_away(sock, address, "limit")
        elif self._by_address[address] >= limits.connections_per_address:
            self._turn_away(sock, address, "address_limit")
        else:
            self._gateway.metrics.connection("accepted")
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.add(Reception(self._gateway, self._pool, sock, address, where, self._ended))
            self._by_address[address] += 1

    def _turn_away(self, sock: socket.socket, address: str, outcome: str) -> None:
        sock.close()
        self._gateway.metrics.connection(outcome)
        now = time.time()
        self._gateway.metrics.refused(Refusal(now, address, "connection", outcome))
        line = event_line(when=now, event="connection", remote=address, result="denied", reason=outcome, detail={})
        self._gateway.audit.write(line)

    def _ended(self, connection: Reception) -> None:
        self._open.discard(connection)
        self._by_address[connection.address] -= 1
        if not self._by_address[connection.address]:
            del self._by_address[connection.address]
        if not self._open and self._when_empty is not None:
            self._when_empty()

    def drain(self, when_empty: Callable[[], None]) -> None:
        """Lets each end with what it is doing; ``when_empty`` is called once."""
        self._when_empty = when_empty
        for connection in list(self._open):
            connection.drain()
        if not self._open:
            when_empty()

    def cut(self) -> None:
        for connection in list(self._open):
            connection.stream.abort()
