"""Counts requests against the limits of whoever makes them, before anything of them goes upstream.

What is refused by the rights counts like what is allowed, or asking in vain would be free. What is refused here counts
against nobody: a client that waits as long as it is told is let in.
"""

from __future__ import annotations

from tlsproxy.authz.access import Decision
from tlsproxy.authz.rates import Excess
from tlsproxy.proxy.limittable import LimitTable
from tlsproxy.proxy.quotas import Toll, refusal_of


class Limits:
    """Of one process, over the table that it may share with others."""

    def __init__(self, table: LimitTable) -> None:
        self.table = table

    def count(self, toll: Toll) -> tuple[int, ...] | Decision:
        """What to :meth:`release` when the request has ended, or the refusal."""
        outcome = self.table.take(toll.charges)
        return refusal_of(outcome) if isinstance(outcome, Excess) else outcome

    def release(self, held: tuple[int, ...]) -> None:
        self.table.release(held)
