"""Client connections of all listeners, and their limits, which are checked before any TLS.

A connection takes the TLS context of the generation that is current when it is accepted. Limits count open connections
of each address, and of all, over all listeners. Connections outlive their listener, until they end or are cut.

Where balancers speak the PROXY protocol, a connection is that of the client in its header
(:mod:`tlsproxy.proxy.frontend.proxy_header`); until that has come it counts as one of all.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial

from tlsproxy.config.endpoints import Endpoint
from tlsproxy.config.listeners import Listening
from tlsproxy.config.networks import listed
from tlsproxy.proxy.core.connection_manager import ConnectionManager
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.jitter import FEW, share
from tlsproxy.proxy.frontend.handshake import AcceptedConnection, Origin
from tlsproxy.proxy.frontend.proxy_header import SILENT, HeaderReception
from tlsproxy.proxy.frontend.rejections import Rejections
from tlsproxy.proxy.limits.addresses import network_of
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.slices import act_in_slices
from tlsproxy.wire.proxy_protocol import Header


class Connections:
    """``len()`` is the number of open connections."""

    def __init__(self, gateway: Gateway, manager: ConnectionManager, upstreams: Upstreams) -> None:
        self._gateway = gateway
        self._manager = manager
        self._upstreams = upstreams
        self._open: dict[AcceptedConnection, tuple[int, ...]] = {}
        self._announced: dict[HeaderReception, tuple[int, ...]] = {}
        self._rejections = Rejections(gateway)
        self._when_empty: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._open) + len(self._announced)

    def admit(self, sock: socket.socket, peer: tuple[str, int], where: Listening) -> None:
        """Takes an accepted socket, or closes it. ``peer``: its address and port."""
        address, port = peer
        balancers = self._gateway.proxies[where.name]
        if balancers is None:
            self._admit(sock, Origin(time.monotonic(), address, port), where, ())
        elif not listed(address, balancers):
            self._turn_away(sock, network_of(address), "proxy_protocol_untrusted")
        else:
            self._await_header(sock, peer, where)

    def _await_header(self, sock: socket.socket, balancer: tuple[str, int], where: Listening) -> None:
        """Counts the connection as one of all; its address is counted once it is known."""
        place = self._gateway.limiter.addresses.enter()
        if isinstance(place, str):
            self._turn_away(sock, network_of(balancer[0]), place)
            return
        gateway, bounds = self._gateway, self._gateway.bounds
        done = partial(self._header_read, balancer, where)
        reception = HeaderReception(gateway.loop, sock, gateway.deadlines, lambda: bounds.handshake_timeout, done)
        self._announced[reception] = place

    def _header_read(
        self, balancer: tuple[str, int], where: Listening, reception: HeaderReception, header: Header | str
    ) -> None:
        place = self._announced.pop(reception)
        if not isinstance(header, str):
            self._admit(reception.sock, Origin.behind(balancer, header, reception.opened), where, place)
        else:
            self._gateway.limiter.addresses.release(place)
            if header == SILENT:
                self._rejections.probed(balancer[0], time.monotonic() - reception.opened)
            else:
                self._rejections.count(network_of(balancer[0]), header)
        self._check_empty()

    def _admit(self, sock: socket.socket, origin: Origin, where: Listening, place: tuple[int, ...]) -> None:
        """``place`` are the rows in which the connection is counted already."""
        client, addresses = network_of(origin.address), self._gateway.limiter.addresses
        outcome = addresses.connect(client, place)
        if isinstance(outcome, str):
            addresses.release(place)
            self._turn_away(sock, client, outcome, origin.via)
            return
        self._gateway.metrics.connection("accepted")
        sock.setblocking(False)
        if isinstance(where.endpoint, Endpoint):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = AcceptedConnection(self._gateway, self._manager, self._upstreams, sock, origin, where, self._ended)
        self._open[connection] = outcome

    def _turn_away(self, sock: socket.socket, client: str, reason: str, via: str = "") -> None:
        sock.close()
        self._rejections.count(client, reason, via)

    def _ended(self, connection: AcceptedConnection) -> None:
        self._gateway.limiter.addresses.release(self._open.pop(connection))
        entry = connection.entry
        draining = self._when_empty is not None  # a client may have no time left for a request
        if connection.probe and not draining:
            self._rejections.probed(connection.address, connection.lived)
        elif entry is not None and not (entry.requests or entry.end_audited or entry.protocol == "tcp" or draining):
            self._rejections.never_asked(entry)
        self._check_empty()

    def _check_empty(self) -> None:
        if self._when_empty is not None and not len(self):
            self._when_empty()

    def drain(self, when_empty: Callable[[], None]) -> None:
        """Drains all connections, many of them spread over time; ``when_empty`` is called once, at the end."""
        self._when_empty = when_empty
        self._rejections.write()
        spread = self._gateway.bounds.end_spread if len(self._open) > FEW else 0.0
        act_in_slices(self._gateway.loop, list(self._open), partial(self._drain, spread))
        self._check_empty()

    def _drain(self, spread: float, connection: AcceptedConnection) -> None:
        if spread and connection.entry is not None:
            self._gateway.loop.call_later(spread * share(connection.entry.number), connection.drain)
        elif connection in self._open:
            connection.drain()

    def cut(self) -> None:
        """Aborts all connections."""
        self._rejections.write()
        for reception in list(self._announced):
            reception.refuse(SILENT)
        for connection in list(self._open):
            connection.stream.abort()
