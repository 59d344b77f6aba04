"""Audit lines of connections without a request, in bounded number: a flood of connections is no flood of lines.

Connections that are closed before TLS, and those that end after a handshake without a request, are written once a
second: one line for each address and reason (after a handshake also identity and TLS), with their number. Beyond
:data:`KINDS` such keys one line for each reason stands for the rest. Example: 5,000 connections from one address above
`limits.connections_per_address` in one second are one line with ``"connections":5000``.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from tlsproxy.audit.line import Refusal, event_line
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.refusals import record_refusal
from tlsproxy.tls.negotiated import UNKNOWN, Negotiated

KINDS: Final = 256
TICK: Final = 1.0
NEVER_ASKED: Final = "never_asked"


class _RejectionKey(NamedTuple):
    """Properties common to all connections of one audit line."""

    reason: str
    address: str = ""
    protocol: str = ""
    certificate_subject: str = ""
    certificate_sha256: str = ""
    via: str = ""
    negotiated: Negotiated = UNKNOWN


class Rejections:
    """Connections not yet logged: number of each key, and lifetime of its last one. Ended by :meth:`write`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._counts: dict[_RejectionKey, tuple[int, float]] = {}
        self._handle: asyncio.TimerHandle | None = None

    def count(self, address: str, reason: str, via: str = "") -> None:
        self._count(_RejectionKey(reason, address, via=via), 0.0)

    def probed(self, address: str, lived: float) -> None:
        """Counts a health check, which ended before a handshake was done."""
        self._count(_RejectionKey(NEVER_ASKED, address), lived)

    def never_asked(self, entry: Entry) -> None:
        """Counts a connection that ended after its handshake, before a request."""
        identity = entry.standing.identity
        subject, sha256 = (identity.name, identity.sha256) if identity is not None else ("", "")
        key = _RejectionKey(NEVER_ASKED, entry.address, entry.protocol, subject, sha256, entry.via, entry.negotiated)
        self._count(key, time.monotonic() - entry.opened)

    def _count(self, key: _RejectionKey, lived: float) -> None:
        self._gateway.metrics.connection(key.reason)
        if key not in self._counts and len(self._counts) >= KINDS:
            key = _RejectionKey(key.reason)
        self._counts[key] = self._counts.get(key, (0, 0.0))[0] + 1, lived
        if self._handle is None:
            self._handle = self._gateway.loop.call_later(TICK, self._tick)

    def _tick(self) -> None:
        """Writes the lines, or waits for the next tick if the audit log has no room."""
        if self._gateway.audit.accepts():
            self.write()
        else:
            self._handle = self._gateway.loop.call_later(TICK, self._tick)

    def write(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        counts, self._counts = self._counts, {}
        for key, (number, lived) in counts.items():
            now = time.time()
            names = ("via", "protocol", "certificate_subject", "certificate_sha256")
            known = {name: value for name in names if (value := getattr(key, name))}
            known |= key.negotiated.fields()
            if key.reason != NEVER_ASKED:
                refusal = Refusal(now, key.address, "connection", key.reason)
                record_refusal(self._gateway, "connection", refusal, {"connections": number, **known})
                continue
            line = event_line(
                when=now,
                event="connection",
                remote=key.address or None,
                result="ok",
                reason=key.reason,
                detail={"connections": number, **known, "age_ms": round(lived * 1000)},
            )
            self._gateway.audit.write(line)
