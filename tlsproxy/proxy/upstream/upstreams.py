"""Upstream access of one process, composed: the pool, and the gateway's own requests that go over it."""

from __future__ import annotations

from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.upstream.facts import CollectionFacts
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.proxy.upstream.value_exists import Points


class Upstreams:
    """``pool``: connections for requests. ``points``: checks of a token's `value_exists`. ``facts``: properties of
    collections that a tenant's query depends on.
    """

    __slots__ = ("facts", "points", "pool")

    def __init__(self, gateway: Gateway) -> None:
        self.pool = Pool(gateway)
        self.points = Points(gateway, self.pool)
        self.facts = CollectionFacts(gateway, self.pool)
