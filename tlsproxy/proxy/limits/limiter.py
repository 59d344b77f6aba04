"""Counts requests against the limits of whoever makes them, before anything of them goes upstream.

What is refused by the rights counts like what is allowed, or asking in vain would be free. What is refused here counts
against nobody: a client that waits as long as it is told is let in. Whose keys and tokens are not heard for a while is
not told whether one was good.
"""

from __future__ import annotations

from tlsproxy.authz.access import Decision
from tlsproxy.authz.identity import Identity
from tlsproxy.config.model import Config
from tlsproxy.proxy.limits.addresses import Addresses, account
from tlsproxy.proxy.limits.gcra import Excess
from tlsproxy.proxy.limits.quotas import Quotas, Toll, refusal_of
from tlsproxy.proxy.limits.table import LimitTable


class Limiter:
    """Limits of one process, over the table that it may share with others, by the configuration adopted last."""

    def __init__(self, table: LimitTable) -> None:
        self._table = table
        self.addresses = Addresses(table)

    def adopt(self, config: Config) -> None:
        self.quotas = self.quotas_of(config)
        self.addresses.adopt(config.limits)

    def quotas_of(self, config: Config) -> Quotas:
        """Those that would be counted by."""
        return Quotas(config, self._table.key)

    def count(self, toll: Toll, address: str, identity: Identity | None) -> tuple[int, ...] | Decision:
        """Rows to :meth:`release` when the request has ended, or its refusal. ``address`` is the client's."""
        charges = toll.charges
        if toll.unidentified:
            charges = (*charges, self.addresses.request(account(address)))
        if toll.tries:
            network, holder = account(address), identity.account if identity is not None else ()
            refusal = self.addresses.refusal(network, holder)
            if refusal is not None:
                return refusal
            if toll.failed:
                self.addresses.failed(network, holder)
        outcome = self._table.take(charges)
        return refusal_of(outcome) if isinstance(outcome, Excess) else outcome

    def release(self, held: tuple[int, ...]) -> None:
        self._table.release(held)
