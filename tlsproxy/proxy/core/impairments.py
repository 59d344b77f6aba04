"""Requests that were allowed and not served, by cause, and a notice that readiness should be looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from tlsproxy.errors import (
    AuditUnavailable,
    OutOfDescriptors,
    UpstreamBroken,
    UpstreamKeyRefused,
    UpstreamTimeout,
    UpstreamTlsFailed,
    UpstreamUnreachable,
)

UPSTREAM_FAILURES: Final = frozenset(
    each.reason
    for each in (UpstreamUnreachable, UpstreamTlsFailed, UpstreamTimeout, UpstreamBroken, UpstreamKeyRefused)
)
WATCHED: Final = UPSTREAM_FAILURES | {AuditUnavailable.reason, OutOfDescriptors.reason}
"""Reasons that may be the beginning of a trouble."""


class Impairments:
    """``failed`` counts requests by reason and protocol; ``notice`` is called for each."""

    __slots__ = ("failed", "notice")

    def __init__(self) -> None:
        self.failed: Counter[tuple[str, bool]] = Counter()
        self.notice: Callable[[], object] = lambda: None

    def count(self, reason: str, *, grpc: bool) -> None:
        if reason in WATCHED:
            self.failed[reason, grpc] += 1
            self.notice()
