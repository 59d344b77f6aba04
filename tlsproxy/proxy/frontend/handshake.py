"""Accepted connection: its TLS handshake, and the choice of its protocol.

A connection that ends before its first byte, or without a certificate from an address of `health.probe_networks` or as
a balancer's own, is a health check, and no failed handshake.

The TLS context is that of the present generation, for the protocols of the listener. ALPN (RFC 7301) selects REST or
gRPC. A failed handshake, and one that agreed on no protocol served there, is closed and audited with its reason; in the
latter case the client's first bytes are answered by a sentence.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from tlsproxy.audit.line import Refusal
from tlsproxy.authz.identity import Identity
from tlsproxy.config.listeners import ALPN, TCP, Listening
from tlsproxy.config.model import ProtocolName
from tlsproxy.config.networks import listed
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.connection_manager import ConnectionManager, Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.record import next_id
from tlsproxy.proxy.core.refusals import record_refusal
from tlsproxy.proxy.grpc.connection import GrpcConnection
from tlsproxy.proxy.limits.addresses import AMBIGUOUS, FAILURES, network_of
from tlsproxy.proxy.rest.connection import RestConnection
from tlsproxy.proxy.tcp.connection import TcpConnection
from tlsproxy.proxy.transport.tls import ALERT_LINGER, TlsStream
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.tls.negotiated import Negotiated, negotiated
from tlsproxy.tls.peer import Peer, client_of, peer_of, presented_by
from tlsproxy.wire import misdirected
from tlsproxy.wire.misdirected import GRPC_ALONE
from tlsproxy.wire.proxy_protocol import Announcement, Header

# HTTP/2 over TLS begins with ALPN (RFC 9113 §3.2): a client without ALPN speaks HTTP/1.1.
_SPOKEN: Final[Mapping[str | None, ProtocolName]] = {name: protocol for protocol, name in ALPN.items()} | {None: "rest"}
_LONGEST: Final = 256
"""Most characters of a field that a stranger chose, in an audit line: serial numbers have no limit either."""


_OF_PROBES: Final = frozenset({"no_certificate", "client_closed"})
"""Failures of a handshake that a health check without a certificate ends with."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A connection's acceptance at ``opened`` (monotonic clock): ``address`` and ``port`` of the client, and the
    balancer that told them, ``via``. ``local``: it is the balancer's own.
    """

    opened: float
    address: str
    port: int = 0
    via: str = ""
    local: bool = False

    @classmethod
    def behind(cls, balancer: tuple[str, int], header: Header, opened: float) -> Self:
        address, port = balancer
        if header.address:
            return cls(opened, header.address, header.port, address)
        return cls(opened, address, port, local=header.local)


class AcceptedConnection:
    """``address`` is the client's, without its port. ``entry`` is None until the handshake is done. ``probe``: it was a
    health check.

    ``when_ended`` is called once, when the connection has ended.
    """

    __slots__ = (
        "_failed",
        "_first",
        "_gateway",
        "_manager",
        "_opened",
        "_origin",
        "_session",
        "_standing",
        "_upstreams",
        "_when_ended",
        "_where",
        "address",
        "entry",
        "probe",
        "stream",
    )

    def __init__(
        self,
        gateway: Gateway,
        manager: ConnectionManager,
        upstreams: Upstreams,
        sock: socket.socket,
        origin: Origin,
        where: Listening,
        when_ended: Callable[[AcceptedConnection], None],
    ) -> None:
        self.address = origin.address
        self._origin = origin
        self._gateway = gateway
        self._manager = manager
        self._upstreams = upstreams
        self._where = where
        self._when_ended = when_ended
        self._opened = origin.opened
        self._failed = self.probe = False
        self._first = b""
        self.entry: Entry | None = None
        self._standing: Standing | None = None
        self._session: RestConnection | GrpcConnection | TcpConnection | None = None
        context, bounds = gateway.generation.contexts[where.protocols], gateway.bounds
        self.stream = TlsStream(gateway.loop, sock, self, gateway.deadlines, bounds.client_write, context)
        self.stream.deadline = self._opened + bounds.handshake_timeout

    @property
    def lived(self) -> float:
        """Seconds since it was accepted."""
        return time.monotonic() - self._opened

    def certificate_verified(self, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
        """The refusal of a client that OpenSSL admits, by the rule for those who stay."""
        self._standing = standing = self._standing_of(client_of(verified, sent))
        return "" if standing.refusal is None else standing.refusal.reason

    def _standing_of(self, peer: Peer | None) -> Standing:
        return Standing(self._gateway.generation, peer, self._gateway.clock.now())

    def handshake_done(self, tls: ssl.SSLObject) -> None:
        if tls.session_reused:  # no context of ours allows it: its certificate was not verified now
            self.handshake_failed("session_resumed", "", tls)
            self.stream.close(ALERT_LINGER)
            return
        protocols = self._where.protocols
        protocol = "tcp" if protocols == TCP else _SPOKEN.get(tls.selected_alpn_protocol())
        if protocol is None or protocol not in protocols:
            self.handshake_failed("no_protocol", "h2 was not agreed on", tls)
            return
        gateway, stream, agreed = self._gateway, self.stream, negotiated(tls)
        gateway.metrics.handshake("ok", self.lived)
        gateway.metrics.negotiated("client", agreed)
        standing = self._standing or self._standing_of(peer_of(tls))
        if (refusal := standing.ended(gateway.generation, gateway.clock.now())) is not None:
            self._count(refusal.reason)
        route = str(self._where.endpoint) if protocol == "tcp" else ""
        self.entry = entry = self._manager.enter(protocol, self.address, standing, route, self._origin.via, agreed)
        session: RestConnection | GrpcConnection | TcpConnection
        if protocol == "tcp":
            announcement = self._announcement(standing, agreed) if gateway.generation.tunnels[route].announced else None
            session = TcpConnection(gateway, stream, entry, announcement, self._ended)
        else:
            session = (GrpcConnection if protocol == "grpc" else RestConnection)(
                gateway, self._upstreams, stream, entry, self._ended
            )
        entry.session = self._session = session
        stream.handler = session

    def _announcement(self, standing: Standing, agreed: Negotiated) -> Announcement:
        identity = standing.identity
        return Announcement(
            client=(self.address, self._origin.port),
            server=self.stream.own_address,
            tls_version=agreed.version,
            common_name="" if identity is None else identity.common_name,
            verified=identity is not None,
            unique_id=next_id(),
        )

    def handshake_failed(self, reason: str, detail: str, tls: ssl.SSLObject | None) -> None:
        """``detail`` is a sentence or OpenSSL's text, or empty. ``tls`` is None if no handshake came to an end."""
        self._failed = True
        if reason in _OF_PROBES and self._may_probe:
            self.probe = True
            return
        self._count(reason)
        self._gateway.metrics.handshake(reason, self.lived)
        presented = None if tls is None else presented_by(tls)
        subject = "" if presented is None else presented.name
        refusal = Refusal(time.time(), self.address, "handshake", reason, presented=subject)
        fields = {name: value for name, value in (("via", self._origin.via), ("error", detail)) if value}
        fields |= _fields_of(presented)
        record_refusal(self._gateway, "handshake", refusal, fields)

    @property
    def _may_probe(self) -> bool:
        networks = self._gateway.bounds.probe_networks
        return self._origin.local or (bool(networks) and listed(self.address, networks))

    def _count(self, reason: str) -> None:
        """Counts a refused certificate as a failed authentication, unless one of our CAs may be at fault."""
        gateway = self._gateway
        if reason in FAILURES - AMBIGUOUS or (
            reason in AMBIGUOUS and not gateway.generation.material.trust.flawed(gateway.clock.now())
        ):
            gateway.limiter.addresses.failed(network_of(self.address), ())

    def drain(self) -> None:
        """Drains its session; a handshake may be finished first, but a refused client is not waited for."""
        if self._session is not None:
            self._session.drain()
        elif self._failed:
            self.stream.close(ALERT_LINGER)

    def _ended(self) -> None:
        if self.entry is not None:
            self._manager.leave(self.entry)
            self._session = None
        self._gateway.metrics.connection_closed()
        self._when_ended(self)

    # Stream events before there is a session

    def data_received(self, data: bytes) -> None:
        """Answers a client without a protocol that is served here: an answer before its request would be dropped."""
        self._first += data
        spoken = misdirected.spoken(self._first)
        if spoken is not None:
            self.stream.write(misdirected.answer(spoken, self._first, GRPC_ALONE))
            self.stream.close(ALERT_LINGER)

    def pause_writing(self) -> None:
        """A client that does not read during a handshake runs into its deadline."""

    def resume_writing(self) -> None:
        pass

    def rearm(self) -> None:
        self.stream.deadline = time.monotonic() + self._gateway.bounds.handshake_timeout

    def deadline_passed(self) -> None:
        if not self._failed:
            self.handshake_failed("handshake_timeout", "", None)
        self.stream.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._failed:
            self.probe = self.stream.silent
            if not self.probe:
                self.handshake_failed("client_closed", str(error or ""), None)
        self._ended()


def _fields_of(presented: Identity | None) -> dict[str, str]:
    if presented is None:
        return {}
    fields = {
        "certificate_subject": presented.name,
        "certificate_issuer": presented.issuer,
        "certificate_serial": presented.serial,
        "certificate_sha256": presented.sha256,
    }
    return {name: value[:_LONGEST] for name, value in fields.items() if value}
