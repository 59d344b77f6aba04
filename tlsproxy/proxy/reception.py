"""An accepted connection until its handshake is done, and who has it from then on.

The TLS context is that of the generation that is current now. A connection whose handshake fails is audited with the
reason; one whose handshake succeeds goes to the protocol it came for.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable

from tlsproxy.authz.audit import event_line
from tlsproxy.proxy.gateway import Gateway
from tlsproxy.proxy.pool import Pool
from tlsproxy.proxy.rest import RestConnection
from tlsproxy.proxy.standing import Standing
from tlsproxy.proxy.tlsstream import TlsStream
from tlsproxy.tls.peer import peer_of


class Reception:
    """``address`` is the client's, without its port. ``when_ended`` is called once, after the last word."""

    def __init__(
        self,
        gateway: Gateway,
        pool: Pool,
        sock: socket.socket,
        address: str,
        when_ended: Callable[[Reception], None],
    ) -> None:
        self.address = address
        self._gateway = gateway
        self._pool = pool
        self._when_ended = when_ended
        self._opened = time.monotonic()
        self._failed = False
        self._session: RestConnection | None = None
        generation = gateway.generation
        limits = generation.config.limits
        self.stream = TlsStream(gateway.loop, sock, self, gateway.deadlines, limits.write_timeout, generation.context)
        self.stream.deadline = self._opened + limits.handshake_timeout

    def handshake_done(self, tls: ssl.SSLObject) -> None:
        self._gateway.metrics.handshake("ok", time.monotonic() - self._opened)
        standing = Standing(self._gateway.generation, peer_of(tls), time.time())
        self._session = RestConnection(self._gateway, self._pool, self.stream, self.address, standing, self._ended)
        self.stream.owner = self._session

    def handshake_failed(self, reason: str, detail: str) -> None:
        """``detail`` is OpenSSL's words, empty where it had none."""
        self._failed = True
        self._gateway.metrics.handshake(reason, time.monotonic() - self._opened)
        line = event_line(
            when=time.time(),
            event="handshake",
            remote=self.address,
            result="denied",
            reason=reason,
            detail={"error": detail} if detail else {},
        )
        self._gateway.audit.write(line)

    def drain(self) -> None:
        """Ends when it has nothing to do; a handshake may be done first."""
        if self._session is not None:
            self._session.drain()

    def _ended(self) -> None:
        self._gateway.metrics.connection_closed()
        self._when_ended(self)

    # What the stream says before there is a session

    def data_received(self, data: bytes) -> None:
        raise RuntimeError(f"{len(data)} bytes of data before the handshake was done")

    def pause_writing(self) -> None:
        """A client that takes no part of a handshake runs into its deadline."""

    def resume_writing(self) -> None:
        pass

    def deadline_passed(self) -> None:
        self.handshake_failed("handshake_timeout", "")
        self.stream.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._failed:
            self.handshake_failed("client_closed", str(error or ""))
        self._ended()
