"""Who owns a stream, and what it is told."""

from __future__ import annotations

import ssl
from typing import Protocol


class Owner(Protocol):
    """``connection_lost`` comes exactly once, last, from the loop. ``rearm``: limits have changed while something was
    waited for, which gets its new time from now on.
    """

    def data_received(self, data: bytes) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def deadline_passed(self) -> None: ...
    def rearm(self) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...


class TlsOwner(Owner, Protocol):
    """Is told of the handshake first; ``data_received`` gets plaintext, and never a byte of an unfinished handshake."""

    def handshake_done(self, tls: ssl.SSLObject) -> None: ...
    def handshake_failed(self, reason: str, detail: str) -> None: ...


class DialOwner(Owner, Protocol):
    """Is told of the connection before anything else that it could be told, but that it was lost."""

    def connected(self) -> None: ...
