"""Expiry in the log: warnings on lifetimes that end soon, and an error for each CRL whose next update is over.

The process that reloads has it, so that of several workers none warns for itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.lifetimes import due, lifetimes_of, next_due, text
from tlsproxy.tls.trust import NEVER

_log = logging.getLogger(__name__)


class ExpiryLog:
    """Remembers the warnings that it has given, by lifetime."""

    def __init__(self) -> None:
        self._warned: Mapping[str, float] = {}
        self._outdated = 0, 0.0

    def report(self, generation: Generation, now: float) -> float:
        """Log what is due at ``now`` (seconds since the epoch). The moment at which something is due again."""
        lifetimes = lifetimes_of(generation)
        found, self._warned = due(lifetimes, now, self._warned)
        for one in found:
            if now < one.end:
                _log.warning("%s", text(one, now))
            elif one.kind != "crl":
                _log.error("%s", text(one, now))
        former, since = self._outdated
        for outdated in generation.material.trust.outdated(now, since if former == generation.number else -NEVER):
            _log.error("%s", outdated)
        self._outdated = generation.number, now
        return next_due(lifetimes, now, self._warned)
