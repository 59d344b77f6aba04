"""The client connections of all listeners: who may connect at all, before a byte of TLS is spent on them.

A connection takes the TLS context of the generation that is current when it is accepted. Limits count what is open, for
each address and for all, wherever it came in. Connections live on when their listener has stopped, until they end or
are cut.
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
from tlsproxy.proxy.limits.addresses import account
from tlsproxy.proxy.upstream.upstreams import Upstreams


class Connections:
    """``len()`` is how many are open."""

    def __init__(self, gateway: Gateway, manager: ConnectionManager, upstreams: Upstreams) -> None:
        self._gateway = gateway
        self._manager = manager
        self._upstreams = upstreams
        self._open: dict[AcceptedConnection, tuple[int, ...]] = {}
        self._turned_away = Rejections(gateway)
        self._when_empty: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, sock: socket.socket, address: str, where: Listening) -> None:
        """One that was accepted there. ``address`` is the client's, without its port."""
        client = account(address)
        held = self._gateway.limiter.addresses.connect(client)
        if isinstance(held, str):
            sock.close()
            self._turned_away.count(client, held)
            return
        self._gateway.metrics.connection("accepted")
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reception = AcceptedConnection(self._gateway, self._manager, self._upstreams, sock, address, where, self._ended)
        self._open[reception] = held

    def _ended(self, connection: AcceptedConnection) -> None:
        self._gateway.limiter.addresses.release(self._open.pop(connection))
        entry, draining = connection.entry, self._when_empty is not None  # which leaves nobody the time to ask
        if entry is not None and not (entry.requests or entry.end_audited or entry.protocol == "tcp" or draining):
            self._turned_away.never_asked(entry)
        if not self._open and self._when_empty is not None:
            self._when_empty()

    def drain(self, when_empty: Callable[[], None]) -> None:
        """Lets each end with what it is doing, those of many one after the other; ``when_empty`` is called once."""
        self._when_empty = when_empty
        self._turned_away.tell()
        spread = self._gateway.bounds.end_spread if len(self._open) > FEW else 0.0
        for connection in list(self._open):
            if spread and connection.entry is not None:
                self._gateway.loop.call_later(spread * share(connection.entry.number), connection.drain)
            else:
                connection.drain()
        if not self._open:
            when_empty()

    def cut(self) -> None:
        """All of them, at once."""
        self._turned_away.tell()
        for connection in list(self._open):
            connection.stream.abort()
