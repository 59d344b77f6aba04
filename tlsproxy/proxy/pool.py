"""The pool of upstream connections: who gets one, who waits, and how long one is kept.

A connection that Qdrant is about to close is never handed out: the pool ends its own after ``upstream.idle_timeout``,
and hears of a close before it would write.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tlsproxy.authz.shares import Share
from tlsproxy.errors import Overloaded
from tlsproxy.proxy.facts import CollectionFacts
from tlsproxy.proxy.gateway import Gateway
from tlsproxy.proxy.points import Points
from tlsproxy.proxy.upstream import Exchange, Upstream


class Resting(Protocol):
    """An upstream connection of a client of gRPC that has no calls. ``end`` ends it, at once."""

    def end(self) -> None: ...


class Pool:
    """The upstream connections of one process for requests. Waiting for one is bounded in number and, by the waiter, in
    time; places are shared as :mod:`tlsproxy.authz.shares` has it, and an idle connection is in nobody's.

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

    def acquire(self, exchange: Exchange) -> Upstream | None:
        """A connection, or None: then ``exchange.upstream_ready`` will be called.

        Raises :class:`Overloaded` where too many wait already.
        """
        place = Share(self._places, exchange.account, exchange)
        if place.take(1):
            return self._connection(place)
        place.ready = partial(self._ready, exchange, place)
        self._waiting[exchange] = place
        return None

    def forget(self, exchange: Exchange) -> None:
        """It waits no longer."""
        if self._waiting and (place := self._waiting.pop(exchange, None)) is not None:
            place.release()

    def _ready(self, exchange: Exchange, place: Share) -> None:
        del self._waiting[exchange]
        try:
            upstream = self._connection(place)
        except Overloaded as error:
            exchange.upstream_lost(error, stale=False, answered=False)
        else:
            exchange.upstream_ready(upstream)

    def _connection(self, place: Share) -> Upstream:
        addresses = self._gateway.generation.upstream_addresses["rest"]
        while self._idle:
            upstream = self._idle.pop()
            if not upstream.stream.closed and upstream.addresses == addresses:
                upstream.place = place
                return upstream
            upstream.discard()  # if nothing else, it leads where the upstream was before a publication
        return self._open(place)

    def open_again(self, exchange: Exchange) -> Upstream:
        """A new connection, which cannot be stale, in place of one that was lost. Raises :class:`Overloaded`."""
        place = Share(self._places, exchange.account, exchange)
        place.replace()
        return self._open(place)

    def _open(self, place: Share) -> Upstream:
        """Raises :class:`Overloaded` where no socket is to be had."""
        self.trim()
        try:
            upstream = Upstream(self._gateway, self, place)
        except OSError as error:
            place.release()
            raise Overloaded(f"No connection to the upstream can be made: {error.strerror}") from error
        self._all.add(upstream)
        return upstream

    def release(self, upstream: Upstream, *, keep: bool) -> None:
        """Its response is whole. ``keep``: it may carry another."""
        stream = upstream.stream
        if not keep or stream.closed or stream.broken:
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
