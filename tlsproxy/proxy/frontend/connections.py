"""Client connections of all listeners, and their limits, which are checked before any TLS.

A connection takes the TLS context of the generation that is current when it is accepted. Limits count open connections
of each address, and of all, over all listeners. Connections outlive their listener, until they end or are cut.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from tlsproxy.config.listeners import Listening
from tlsproxy.proxy.core.connection_manager import ConnectionManager
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.jitter import FEW, share
from tlsproxy.proxy.frontend.handshake import AcceptedConnection
from tlsproxy.proxy.frontend.rejections import Rejections
from tlsproxy.proxy.limits.addresses import network_of
from tlsproxy.proxy.upstream.upstreams import Upstreams


class Connections:
    """``len()`` is the number of open connections."""

    def __init__(self, gateway: Gateway, manager: ConnectionManager, upstreams: Upstreams) -> None:
        self._gateway = gateway
        self._manager = manager
        self._upstreams = upstreams
        self._open: dict[AcceptedConnection, tuple[int, ...]] = {}
        self._rejections = Rejections(gateway)
        self._when_empty: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, sock: socket.socket, address: str, where: Listening) -> None:
        """Takes an accepted socket, or closes it. ``address`` is the client's, without its port."""
        client = network_of(address)
        outcome = self._gateway.limiter.addresses.connect(client)
        if isinstance(outcome, str):
            sock.close()
            self._rejections.count(client, outcome)
            return
        self._gateway.metrics.connection("accepted")
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = AcceptedConnection(
            self._gateway, self._manager, self._upstreams, sock, address, where, self._ended
        )
        self._open[connection] = outcome

    def _ended(self, connection: AcceptedConnection) -> None:
        self._gateway.limiter.addresses.release(self._open.pop(connection))
        entry = connection.entry
        draining = self._when_empty is not None  # a client may have no time left for a request
        if connection.probe and not draining:
            self._rejections.probed(connection.address, connection.lived)
        elif entry is not None and not (entry.requests or entry.end_audited or entry.protocol == "tcp" or draining):
            self._rejections.never_asked(entry)
        if not self._open and self._when_empty is not None:
            self._when_empty()

    def drain(self, when_empty: Callable[[], None]) -> None:
        """Drains all connections, many of them spread over time; ``when_empty`` is called once, at the end."""
        self._when_empty = when_empty
        self._rejections.write()
        spread = self._gateway.bounds.end_spread if len(self._open) > FEW else 0.0
        for connection in list(self._open):
            if spread and connection.entry is not None:
                self._gateway.loop.call_later(spread * share(connection.entry.number), connection.drain)
            else:
                connection.drain()
        if not self._open:
            when_empty()

    def cut(self) -> None:
        """Aborts all connections."""
        self._rejections.write()
        for connection in list(self._open):
            connection.stream.abort()
