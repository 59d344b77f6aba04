"""Refusal of a connection, at its handshake or later: counted, and written to the audit log without a wait for room."""

from __future__ import annotations

from collections.abc import Mapping

from tlsproxy.audit.line import EventKind, Refusal, event_line
from tlsproxy.proxy.core.gateway import Gateway


def record_refusal(
    gateway: Gateway, event: EventKind, refusal: Refusal, detail: Mapping[str, str | int | float]
) -> None:
    """``detail`` are further fields of the audit line, e.g. ``{"error": "unknown ca"}``."""
    gateway.metrics.refused(refusal)
    line = event_line(
        when=refusal.when,
        event=event,
        remote=refusal.remote or None,
        result="denied",
        reason=refusal.reason,
        detail=detail,
    )
    gateway.audit.write(line)
