"""Upstream access of one process, composed: the pool, and the gateway's own requests that go over it."""

from __future__ import annotations

from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.upstream.examples import ExamplePoints
from tlsproxy.proxy.upstream.facts import CollectionFacts
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.proxy.upstream.value_exists import Points


class Upstreams:
    """``pool``: connections for requests. ``points``: checks of a token's `value_exists`. ``facts``: properties of
    collections that a tenant's query depends on. ``examples``: checks of the points that it is made of.
    """

    __slots__ = ("examples", "facts", "points", "pool")

    def __init__(self, gateway: Gateway) -> None:
        self.pool = Pool(gateway)
        self.points = Points(gateway, self.pool)
        self.facts = CollectionFacts(gateway, self.pool)
        self.examples = ExamplePoints(gateway, self.pool)
