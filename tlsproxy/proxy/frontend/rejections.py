"""The audit lines of connections on which nothing was asked, closed unheard or not: no flood of them floods the log.

They are told once a second: one line for each address and reason (and, after a handshake, identity), which says how
many there were. Of more than :data:`KINDS` of these the rest share a line for each reason.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from tlsproxy.audit.line import Refusal, event_line
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway

KINDS: Final = 256
TICK: Final = 1.0
NEVER_ASKED: Final = "never_asked"


class _Kind(NamedTuple):
    """Properties that all connections of one audit line share."""

    reason: str
    address: str = ""
    protocol: str = ""
    certificate_subject: str = ""
    certificate_sha256: str = ""


class TurnedAway:
    """Connections not yet logged: number of each kind, and lifetime of its last one. Ended by :meth:`tell`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._counts: dict[_Kind, tuple[int, float]] = {}
        self._handle: asyncio.TimerHandle | None = None

    def count(self, address: str, reason: str) -> None:
        self._count(_Kind(reason, address), 0.0)

    def never_asked(self, entry: Entry) -> None:
        """It had its handshake, and ended before a request."""
        identity = entry.standing.identity
        subject, sha256 = (identity.name, identity.sha256) if identity is not None else ("", "")
        self._count(_Kind(NEVER_ASKED, entry.address, entry.protocol, subject, sha256), time.monotonic() - entry.opened)

    def _count(self, kind: _Kind, lived: float) -> None:
        self._gateway.metrics.connection(kind.reason)
        if kind not in self._counts and len(self._counts) >= KINDS:
            kind = _Kind(kind.reason)
        self._counts[kind] = self._counts.get(kind, (0, 0.0))[0] + 1, lived
        if self._handle is None:
            self._handle = self._gateway.loop.call_later(TICK, self._tick)

    def _tick(self) -> None:
        """Writes the lines, or waits for the next tick if the audit log has no room."""
        if self._gateway.audit.accepts():
            self.tell()
        else:
            self._handle = self._gateway.loop.call_later(TICK, self._tick)

    def tell(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        counts, self._counts = self._counts, {}
        for kind, (number, lived) in counts.items():
            now = time.time()
            detail: dict[str, str | int | float] = {"connections": number}
            if kind.reason == NEVER_ASKED:
                names = ("protocol", "certificate_subject", "certificate_sha256")
                said = {name: value for name in names if (value := getattr(kind, name))}
                detail |= said | {"age_ms": round(lived * 1000)}
            else:
                self._gateway.metrics.refused(Refusal(now, kind.address, "connection", kind.reason))
            line = event_line(
                when=now,
                event="connection",
                remote=kind.address or None,
                result="ok" if kind.reason == NEVER_ASKED else "denied",
                reason=kind.reason,
                detail=detail,
            )
            self._gateway.audit.write(line)
