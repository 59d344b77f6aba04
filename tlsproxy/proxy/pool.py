"""The pool of upstream connections: who gets one, who waits, and how long one is kept.

A connection that Qdrant is about to close is never handed out: the pool ends its own after ``upstream.idle_timeout``,
and hears of a close before it would write.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from tlsproxy.errors import Overloaded
from tlsproxy.proxy.gateway import Gateway
from tlsproxy.proxy.points import Points
from tlsproxy.proxy.upstream import Exchange, Upstream

MAX_WAITING: Final = 1024


class Pool:
    """The upstream connections of one process. Waiting for one is bounded in number and, by the waiter, in time.

    ``points`` asks over them what the tokens of requests depend on.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.points = Points(gateway, self)
        self._idle: list[Upstream] = []
        self._all: set[Upstream] = set()
        self._waiting: deque[Exchange] = deque()

    @property
    def counts(self) -> tuple[int, int]:
        """(idle, busy)."""
        return len(self._idle), len(self._all) - len(self._idle)

    def acquire(self, exchange: Exchange) -> Upstream | None:
        """A connection, or None: then ``exchange.upstream_ready`` will be called.

        Raises :class:`Overloaded` where too many wait already.
        """
        while self._idle:
            upstream = self._idle.pop()
            if not upstream.stream.closed:
                return upstream
        if len(self._all) < self._gateway.bounds.upstream_connections:
            return self.open()
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded("Too many requests wait for the upstream")
        self._waiting.append(exchange)
        return None

    def forget(self, exchange: Exchange) -> None:
        """It waits no longer."""
        if exchange in self._waiting:
            self._waiting.remove(exchange)

    def open(self) -> Upstream:
        """A new connection, which cannot be stale. Raises :class:`Overloaded` where no socket is to be had."""
        try:
            upstream = Upstream(self._gateway, self)
        except OSError as error:
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
        if self._waiting:
            self._waiting.popleft().upstream_ready(upstream)
        else:
            stream.deadline = time.monotonic() + self._gateway.bounds.kept_timeout
            self._idle.append(upstream)

    def lost(self, upstream: Upstream) -> None:
        self._all.discard(upstream)
        if upstream in self._idle:
            self._idle.remove(upstream)
        if self._waiting and len(self._all) < self._gateway.bounds.upstream_connections:
            exchange = self._waiting.popleft()
            try:
                upstream = self.open()
            except Overloaded as error:
                exchange.upstream_lost(error, stale=False, answered=False)
            else:
                exchange.upstream_ready(upstream)

    def close(self) -> None:
        for upstream in list(self._all):
            upstream.discard()
