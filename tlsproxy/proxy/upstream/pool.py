"""The pool of upstream connections: who gets one, who waits, and how long one is kept.

A connection that Qdrant is about to close is never handed out: the pool ends its own after ``upstream.idle_timeout``,
and hears of a close before it would write.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tlsproxy.errors import Overloaded, UpstreamUnreachable
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.limits.fair_shares import Share
from tlsproxy.proxy.upstream.connection import Exchange, Upstream
from tlsproxy.proxy.upstream.facts import CollectionFacts
from tlsproxy.proxy.upstream.value_exists import Points


class Resting(Protocol):
    """An upstream connection of a client of gRPC that has no calls. ``end`` ends it, at once."""

    def end(self) -> None: ...


class Pool:
    """The upstream connections of one process for requests. Waiting for one is bounded in number and, by the waiter, in
    time; places are shared as :mod:`tlsproxy.proxy.limits.fair_shares` has it, and an idle connection is in nobody's.

    ``points`` asks over them what the tokens of requests depend on, ``facts`` what queries of tenants do.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._places = gateway.places
        self.points = Points(gateway, self)
        self.facts = CollectionFacts(gateway, self)
        self._idle: list[Upstream] = []
        self._all: set[Upstream] = set()
        self._waiting: dict[Exchange, Share] = {}
        self._resting: dict[Resting, None] = {}

    @property
    def counts(self) -> tuple[int, int, int]:
        """(idle, busy, requests that wait for one), of both protocols."""
        return len(self._idle) + len(self._resting), self._places.held, self._places.waiting

    def acquire(self, exchange: Exchange) -> bool:
        """Whether it has a place: ``exchange.upstream_ready`` is called with a connection, now or once one stands.

        False where it waits for a place. Raises :class:`Overloaded` where too many do already.
        """
        place = Share(self._places, exchange.account, exchange)
        if place.take(1):
            self._connect(exchange, place)
            return True
        place.ready = partial(self._ready, exchange, place)
        self._waiting[exchange] = place
        return False

    def forget(self, exchange: Exchange) -> None:
        """It waits no longer, for a place or a connection."""
        place = self._waiting.pop(exchange, None)
        if place is not None:
            place.release()
        else:
            for upstream in [one for one in self._all if one.exchange is exchange]:
                upstream.discard()

    def _ready(self, exchange: Exchange, place: Share) -> None:
        del self._waiting[exchange]
        try:
            self._connect(exchange, place)
        except Overloaded as error:
            exchange.upstream_lost(error, stale=False, answered=False)

    def _connect(self, exchange: Exchange, place: Share) -> None:
        while self._idle:
            upstream = self._idle.pop()
            if not upstream.stream.closed:
                upstream.place = place
                exchange.upstream_ready(upstream)
                return
        self._dial(exchange, place)

    def dial_again(self, exchange: Exchange) -> None:
        """Dials a connection, which cannot be stale, in place of one that was lost. Raises :class:`Overloaded`."""
        place = Share(self._places, exchange.account, exchange)
        place.replace()
        self._dial(exchange, place)

    def _dial(self, exchange: Exchange, place: Share) -> None:
        """Raises :class:`Overloaded` where no socket is to be had."""
        self.trim()
        try:
            upstream = Upstream(self._gateway, self, place, exchange)
        except OSError as error:
            place.release()
            if error.errno == errno.EHOSTUNREACH:
                raise UpstreamUnreachable(f"The upstream cannot be reached: {error.strerror}") from None
            raise Overloaded(f"No connection to the upstream can be made: {error.strerror}") from error
        self._all.add(upstream)

    def review(self) -> None:
        """After a publication: idle connections to a former upstream end."""
        for upstream in [one for one in self._idle if self._is_former(one)]:
            upstream.discard()

    @property
    def former(self) -> int:
        """Connections to a former upstream."""
        return sum(map(self._is_former, self._all))

    def _is_former(self, upstream: Upstream) -> bool:
        return upstream.stream.address not in self._gateway.generation.upstream_addresses["rest"]

    def release(self, upstream: Upstream, *, keep: bool) -> None:
        """Its response is whole. ``keep``: it may carry another, unless the upstream is elsewhere by now."""
        stream = upstream.stream
        if not keep or stream.closed or stream.broken or self._is_former(upstream):
            upstream.discard()
            return
        if not stream.reading:  # the client was slower than the end of its response
            stream.resume_reading()
        stream.deadline = time.monotonic() + self._gateway.bounds.kept_timeout
        self._idle.append(upstream)
        self._give_back(upstream)
        self.trim()

    def trim(self) -> None:
        """Ends idle connections for which others' places have left no room: requests' own first."""
        idle, resting = self._idle, self._resting
        while (idle or resting) and len(idle) + len(resting) + self._places.held > self._places.capacity:
            if idle:
                idle.pop(0).discard()
            else:
                longest = next(iter(resting))
                del resting[longest]
                longest.end()

    def rests(self, connection: Resting) -> None:
        self._resting[connection] = None

    def stirs(self, connection: Resting) -> None:
        self._resting.pop(connection, None)

    def lost(self, upstream: Upstream) -> None:
        self._all.discard(upstream)
        if upstream in self._idle:
            self._idle.remove(upstream)
        self._give_back(upstream)

    @staticmethod
    def _give_back(upstream: Upstream) -> None:
        place, upstream.place = upstream.place, None
        if place is not None:
            place.release()

    def later(self, call: Callable[..., None], *args: object) -> None:
        self._gateway.loop.call_soon(call, *args)

    def close(self) -> None:
        for upstream in list(self._all):
            upstream.discard()
