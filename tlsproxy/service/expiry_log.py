"""Expiry in the log: warnings on lifetimes that end soon, and errors on those that are over.

The end of the server's certificate and of a CRL is told by the verdict on readiness, whose parts they are.

The process that reloads has it, so that of several workers none warns for itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from tlsproxy.snapshot.lifetimes import Lifetime, due, next_due, text

_PARTS: Final = frozenset({"server", "intermediate", "crl"})

_log = logging.getLogger(__name__)


class ExpiryLog:
    """Remembers the warnings that it has given, by lifetime."""

    def __init__(self) -> None:
        self._warned: Mapping[str, float] = {}

    def report(self, lifetimes: Sequence[Lifetime], now: float) -> float:
        """Log what is due at ``now`` (seconds since the epoch). The moment at which something is due again."""
        found, self._warned = due(lifetimes, now, self._warned)
        for one in found:
            if now < one.end:
                _log.warning("%s", text(one, now))
            elif one.kind not in _PARTS:
                _log.error("%s", text(one, now))
        return next_due(lifetimes, now, self._warned)
