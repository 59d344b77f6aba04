"""A client's connection on which gRPC was agreed on. There is no relay yet: it is closed at its first byte."""

from __future__ import annotations

import time
from collections.abc import Callable

from tlsproxy.proxy.gateway import Gateway
from tlsproxy.proxy.standing import Standing
from tlsproxy.proxy.tlsstream import ALERT_LINGER, TlsStream


class GrpcConnection:
    """The owner of one TLS stream, from its handshake on. ``address`` is the client's, without its port."""

    def __init__(
        self, gateway: Gateway, stream: TlsStream, address: str, standing: Standing, when_ended: Callable[[], None]
    ) -> None:
        self.stream = stream
        self.address = address
        self.standing = standing
        self._when_ended = when_ended
        self.stream.deadline = time.monotonic() + gateway.generation.config.limits.idle_timeout

    def data_received(self, _data: bytes) -> None:
        self.drain()

    def pause_writing(self) -> None:
        """Nothing is written."""

    def resume_writing(self) -> None:
        """Nothing is written."""

    def deadline_passed(self) -> None:
        self.drain()

    def drain(self) -> None:
        self.stream.close(ALERT_LINGER)

    def connection_lost(self, _error: Exception | None) -> None:
        self._when_ended()
