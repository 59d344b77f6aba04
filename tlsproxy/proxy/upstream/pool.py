"""Pool of upstream connections: assignment, waiting, and keep-alive.

No connection is assigned that Qdrant is about to close: the pool ends idle ones after ``upstream.idle_timeout``, and a
close by Qdrant is noticed before the next write.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tlsproxy.errors import OutOfDescriptors, RequestError, UpstreamTimeout, UpstreamUnreachable
from tlsproxy.proxy.core.balancer import NodeState
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.limits.fair_shares import Share
from tlsproxy.proxy.transport.dial import dial_failure
from tlsproxy.proxy.upstream.connection import UpstreamConnection, UpstreamRequest


class Resting(Protocol):
    """Upstream connection of a gRPC client without calls. ``end`` ends it at once."""

    @property
    def node(self) -> NodeState | None: ...
    def end(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Wait:
    """Wait of a ``place`` for room at a node that was not ``tried``, up to ``until`` (monotonic clock).

    Either of both is called once: ``go_on`` dials, ``late`` ends the request.
    """

    place: Share
    tried: tuple[NodeState, ...]
    until: float
    go_on: Callable[[], None]
    late: Callable[[], None]


class Pool:
    """Upstream connections of one process. The pool bounds how many requests wait, each request for how long.

    Places are shared as in :mod:`tlsproxy.proxy.limits.fair_shares`; an idle connection takes none. Example: of two
    places, one busy and one idle connection leave one free.

    A node may have less room than there are places: when another one has just died, or was ``tried``. Then the holder
    of a place waits for the node (:meth:`wait_for_node`).
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._places = gateway.places
        self._idle: list[UpstreamConnection] = []
        self._all: set[UpstreamConnection] = set()
        self._waiting: dict[UpstreamRequest, Share] = {}
        self._resting: dict[Resting, None] = {}
        self._at_nodes: dict[object, _Wait] = {}
        gateway.deadlines.each.append(self._sweep)

    @property
    def counts(self) -> tuple[int, int, int]:
        """(idle connections, busy ones, waiting requests) of both protocols."""
        waiting = len(self._at_nodes)
        return len(self._idle) + len(self._resting), self._places.held - waiting, self._places.waiting + waiting

    def acquire(self, request: UpstreamRequest) -> UpstreamConnection | None:
        """Established connection; None: ``request.upstream_ready`` gets one later.

        Raises :class:`RequestError` if too many requests wait, or no socket can be opened.
        """
        if self._gateway.balancer.only is None:
            self._gateway.retries.request(time.monotonic())
        place = Share(self._places, request.account, request)
        if place.take(1):
            return self._connect(request, place)
        place.ready = partial(self._ready, request, place)
        self._waiting[request] = place
        return None

    def queues(self, request: UpstreamRequest) -> bool:
        """Whether the request waits for a place. Otherwise its connection is being dialled, with its own deadline."""
        return request in self._waiting

    def forget(self, request: UpstreamRequest) -> None:
        """Ends the request's wait for a place or a connection."""
        place = self._waiting.pop(request, None)
        if place is not None:
            place.release()
        elif (wait := self._at_nodes.pop(request, None)) is not None:
            wait.place.release()
        else:
            for upstream in [one for one in self._all if one.request is request]:
                upstream.discard()

    def _ready(self, request: UpstreamRequest, place: Share) -> None:
        del self._waiting[request]
        self._go_on(request, place)

    def _go_on(self, request: UpstreamRequest, place: Share, tried: tuple[NodeState, ...] = ()) -> None:
        """Connects a request that has its place, and hears of it."""
        try:
            upstream = self._connect(request, place, tried)
        except RequestError as error:
            request.upstream_lost(error, stale=False, answered=False)
        else:
            if upstream is not None:
                request.upstream_ready(upstream)

    def _connect(
        self, request: UpstreamRequest, place: Share, tried: tuple[NodeState, ...] = ()
    ) -> UpstreamConnection | None:
        """Idle connection to a node that was not ``tried``; None: one is dialled, or waited for."""
        balancer, idle = self._gateway.balancer, self._idle
        node = balancer.only
        if node is None:
            node = balancer.choose(request.account, time.monotonic(), tried)
        index = len(idle)
        while index:
            index -= 1
            upstream = idle[index]
            if upstream.node is node and not upstream.stream.closed:
                del idle[index]
                upstream.place, upstream.tried = place, tried
                node.in_flight += 1
                node.connections += 1
                return upstream
        self._dial(request, place, node, tried)
        return None

    def send_again(self, request: UpstreamRequest, lost: UpstreamConnection, *, stale: bool) -> bool:
        """Whether a new connection, which cannot be stale, is dialled for a request that may be sent once more.

        In place of one that was ``stale``, to the same node; else to another, within the budget of retries. Raises
        :class:`RequestError`.
        """
        balancer, tried = self._gateway.balancer, lost.tried
        node = balancer.only
        if not stale and (node is not None or not (lost.untouched and lost.stream.established)):
            return False
        if node is None:
            now = time.monotonic()
            tried = tried if stale else (*tried, lost.node)
            node = lost.node
            if not stale and not balancer.is_left(tried):
                return False
            if not stale and not self._gateway.retries.retry(now):
                self._gateway.metrics.upstream_retry_refused()
                return False
            if not stale or node.gone or node.node.drained:
                node = balancer.choose(request.account, now, tried)
        place = Share(self._places, request.account, request)
        place.replace()
        self._dial(request, place, node, tried)
        self._gateway.metrics.upstream_retry()
        return True

    def _dial(
        self, request: UpstreamRequest, place: Share, node: NodeState | None, tried: tuple[NodeState, ...] = ()
    ) -> None:
        """Dials the node; None: waits for one, where all are full.

        Raises :class:`RequestError` if no socket can be opened, or no address of any node is known.
        """
        failure: RequestError = UpstreamUnreachable("The upstream cannot be reached: all of its nodes are drained")
        while node is not None:
            self.trim(node)
            try:
                upstream = UpstreamConnection(self._gateway, self, place, request, node, tried)
            except OSError as error:
                failure = dial_failure(error)
                tried = (*tried, node)
                node = self._other(request, failure, tried)
            else:
                self._all.add(upstream)
                node.in_flight += 1
                node.connections += 1
                return
        if not isinstance(failure, OutOfDescriptors) and self._gateway.balancer.is_left(tried):
            again, late = partial(self._go_on, request, place, tried), partial(self._late, request, place)
            self.wait_for_node(request, place, tried, again, late)
            return
        place.release()
        raise failure

    @staticmethod
    def _late(request: UpstreamRequest, place: Share) -> None:
        place.release()
        error = UpstreamTimeout("No connection to the upstream became free in time")
        request.upstream_lost(error, stale=False, answered=False)

    @property
    def waits_for_nodes(self) -> bool:
        return bool(self._at_nodes)

    def _sweep(self) -> None:
        self.serve_nodes()
        for node in self._gateway.balancer.nodes:
            if not node.checked_up:
                self._leave_node(node)

    def _leave_node(self, node: NodeState) -> None:
        """Asks other nodes for what waits for one that fails its checks, or for its answer: it may be a long wait."""
        balancer, retries, now = self._gateway.balancer, self._gateway.retries, time.monotonic()
        for upstream in [one for one in self._all if one.node is node]:
            if not (balancer.is_out(node, now) and retries.is_left(now)):
                return
            if upstream.moves and balancer.is_left((*upstream.tried, node)):
                upstream.stream.tell(upstream.give_up)

    def wait_for_node(
        self,
        holder: object,
        place: Share,
        tried: tuple[NodeState, ...],
        go_on: Callable[[], None],
        late: Callable[[], None],
    ) -> None:
        until = time.monotonic() + self._gateway.bounds.connect_timeout
        self._at_nodes[holder] = _Wait(place, tried, until, go_on, late)

    def leave_nodes(self, holder: object) -> None:
        """Ends its wait for a node; its place remains."""
        self._at_nodes.pop(holder, None)

    def serve_nodes(self) -> None:
        """There may be room at a node, for those that wait for one, or it has become too late."""
        if not self._at_nodes:
            return
        now, balancer = time.monotonic(), self._gateway.balancer
        for holder, wait in list(self._at_nodes.items()):
            if holder not in self._at_nodes:  # it has left meanwhile
                continue
            if balancer.choose(wait.place.account, now, wait.tried) is not None:
                del self._at_nodes[holder]
                wait.go_on()
            elif now > wait.until:
                del self._at_nodes[holder]
                wait.late()

    def _other(self, request: UpstreamRequest, failure: RequestError, tried: tuple[NodeState, ...]) -> NodeState | None:
        """The next node to dial, after the last of those ``tried`` could not be."""
        balancer = self._gateway.balancer
        if balancer.only is not None or isinstance(failure, OutOfDescriptors):
            return None
        now = time.monotonic()
        balancer.failed(tried[-1], "rest", now)
        return balancer.choose(request.account, now, tried)

    def failed(self, upstream: UpstreamConnection, error: RequestError) -> None:
        balancer = self._gateway.balancer
        if balancer.only is None and not isinstance(error, OutOfDescriptors):
            balancer.failed(upstream.node, "rest", time.monotonic())

    def elsewhere(self, upstream: UpstreamConnection, request: UpstreamRequest) -> bool:
        """Takes another node for a request of which nothing was sent."""
        balancer, tried = self._gateway.balancer, (*upstream.tried, upstream.node)
        if balancer.only is not None or not balancer.is_left(tried):
            return False
        place = Share(self._places, request.account, request)
        place.replace()
        self._go_on(request, place, tried)
        return True

    def review(self) -> None:
        """Ends idle connections to a former upstream, or by a former certificate, or to a drained node, after a
        publication.
        """
        for upstream in [one for one in self._idle if one.node.node.drained or self._is_former(one)]:
            upstream.discard()
        self.serve_nodes()

    @property
    def former(self) -> int:
        """Number of connections to a former upstream."""
        return sum(map(self._is_former, self._all))

    @staticmethod
    def _is_former(upstream: UpstreamConnection) -> bool:
        node, stream = upstream.node, upstream.stream
        present = node.node.rest
        return node.gone or stream.address not in present.addresses or stream.tls is not present.tls

    def release(self, upstream: UpstreamConnection, *, keep: bool) -> None:
        """Takes back a connection after a whole response. ``keep``: reusable, if its upstream is still current."""
        stream, balancer = upstream.stream, self._gateway.balancer
        if balancer.only is None:
            outcome = balancer.failed if upstream.of_a_proxy else balancer.succeeded
            outcome(upstream.node, "rest", time.monotonic())
            keep = keep and not upstream.node.node.drained
        if not keep or stream.closed or stream.broken or self._is_former(upstream):
            upstream.discard()
            return
        if not stream.reading:  # paused for a slow client
            stream.resume_reading()
        stream.deadline = time.monotonic() + self._gateway.bounds.kept_timeout
        self._idle.append(upstream)
        self._give_back(upstream)
        self.trim()

    def trim(self, coming: NodeState | None = None) -> None:
        """Ends idle connections beyond the capacity, the longest idle first; those of REST before those of gRPC.

        ``coming``: the node that is dialled next, whose own limit has to hold too.
        """
        idle, resting = self._idle, self._resting
        if coming is not None and coming.node.max_connections is not None:
            self._trim_at(coming, coming.connections + 1 - coming.node.max_connections)
        while (idle or resting) and len(idle) + len(resting) + self._places.held > self._places.capacity:
            if idle:
                idle.pop(0).discard()
            else:
                longest = next(iter(resting))
                del resting[longest]
                longest.end()

    def _trim_at(self, node: NodeState, beyond: int) -> None:
        """Ends idle connections to a node. ``beyond``: those in use that are too many, negative where there is room."""
        idle = [one for one in self._idle if one.node is node]
        resting = [one for one in self._resting if one.node is node]
        for upstream in idle[: max(0, beyond + len(idle) + len(resting))]:
            self._idle.remove(upstream)
            upstream.discard()
        for connection in resting[: max(0, beyond + len(resting))]:
            del self._resting[connection]
            connection.end()

    def rests(self, connection: Resting) -> None:
        self._resting[connection] = None

    def stirs(self, connection: Resting) -> None:
        self._resting.pop(connection, None)

    def lost(self, upstream: UpstreamConnection) -> None:
        self._all.discard(upstream)
        if upstream in self._idle:
            self._idle.remove(upstream)
        self._give_back(upstream)

    def _give_back(self, upstream: UpstreamConnection) -> None:
        place, upstream.place = upstream.place, None
        if place is not None:
            node = upstream.node
            node.in_flight -= 1
            node.connections -= 1
            self.serve_nodes()  # first: one that has a place already
            place.release()

    def later(self, call: Callable[..., None], *args: object) -> None:
        self._gateway.loop.call_soon(call, *args)

    def close(self) -> None:
        for upstream in list(self._all):
            upstream.discard()
