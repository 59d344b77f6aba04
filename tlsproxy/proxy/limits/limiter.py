"""Limiter: counts requests against their caller's limits, before anything of them goes upstream.

A request that its caller's rights refuse counts like an allowed one, or guessing would be free. A request that is
refused here does not count: a client that waits for `retry-after` is let in. During a delay after failed
authentications, a good key gets the same 429 as a bad one.
"""

from __future__ import annotations

from tlsproxy.authz.access import Decision
from tlsproxy.authz.identity import Identity
from tlsproxy.config.model import Config
from tlsproxy.proxy.limits.addresses import Addresses, network_of
from tlsproxy.proxy.limits.gcra import Excess
from tlsproxy.proxy.limits.quotas import LimitCheck, Quotas, refusal_of
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
        """Quotas under this configuration."""
        return Quotas(config, self._table.account)

    def count(self, limit_check: LimitCheck, address: str, identity: Identity | None) -> tuple[int, ...] | Decision:
        """Rows to :meth:`release` when the request has ended, or its refusal. ``address`` is the client's."""
        charges = limit_check.charges
        if limit_check.unidentified:
            charges = (*charges, self.addresses.request(network_of(address)))
        if limit_check.authenticates:
            network, holder = network_of(address), identity.account if identity is not None else ()
            refusal = self.addresses.refusal(network, holder)
            if refusal is not None:
                return refusal
            if limit_check.failed:
                self.addresses.failed(network, holder)
        outcome = self._table.take(charges)
        return refusal_of(outcome) if isinstance(outcome, Excess) else outcome

    def release(self, rows: tuple[int, ...]) -> None:
        self._table.release(rows)
