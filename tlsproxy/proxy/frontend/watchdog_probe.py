"""Connection of our own watchdog: a real handshake with a real listener, and nothing else.

It is recognised by its source address, :attr:`Gateway.probe`, which is set only while a socket of ours is bound to it,
so that no other client can have it; over a unix socket by the watchdog's own process, which the kernel tells. It
counts in no limit, metric or audit line, and it can do nothing: it is closed after its handshake, whatever its outcome.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Final

from tlsproxy.config.listeners import Listening
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.transport.tls import TlsStream

DEADLINE: Final = 5.0
_LINGER: Final = 1.0


class ProbeConnection:
    """The gateway's end of the connection. It lives until its stream has ended."""

    def __init__(self, gateway: Gateway, sock: socket.socket, where: Listening) -> None:
        sock.setblocking(False)
        context, lowest = gateway.generation.contexts[where.protocols], gateway.bounds.client_write
        self._stream = TlsStream(gateway.loop, sock, self, gateway.deadlines, lowest, context)
        self._stream.deadline = time.monotonic() + DEADLINE

    def certificate_verified(self, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
        del verified, sent
        return ""  # it is given nothing

    def handshake_done(self, tls: ssl.SSLObject) -> None:
        del tls
        self._stream.close(_LINGER)

    def handshake_failed(self, reason: str, detail: str, tls: ssl.SSLObject) -> None:
        """The stream has sent its alert."""

    def data_received(self, data: bytes) -> None:
        """Drops the data."""

    def pause_writing(self) -> None:
        """It has its deadline."""

    def resume_writing(self) -> None:
        pass

    def rearm(self) -> None:
        """Its deadline is its own."""

    def deadline_passed(self) -> None:
        self._stream.abort()

    def connection_lost(self, error: Exception | None) -> None:
        pass
