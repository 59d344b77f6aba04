"""Dialling of an upstream connection for a client's gRPC connection: for the first call that may go up, and no sooner.

Of several nodes the balancer chooses one for the connection, which stays there while the node serves. Where it cannot
be reached, another is dialled. Its calls count among the node's requests in flight: one from the first on, all of them
once a second.

An upstream connection is a place of ``upstream.max_connections`` while there are calls on it. Without any it is in
nobody's place and stays for as long as there is room (:mod:`tlsproxy.proxy.upstream.pool`); after that it ends, and
its client, which does not hear of it, has another one with its next call.
"""

from __future__ import annotations

import time

from tlsproxy.errors import OutOfDescriptors, Overloaded, RequestError, UpstreamUnreachable
from tlsproxy.proxy.core.balancer import NodeState
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.call_timeouts import client_may_send, client_must_take
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.grpc.session import RelayedCall
from tlsproxy.proxy.limits.fair_shares import Share
from tlsproxy.proxy.transport.dial import dial_failure
from tlsproxy.proxy.upstream.pool import Pool


def _no_place() -> Overloaded:
    return Overloaded("No connection to the upstream became free in time")


class Dialler:
    """Holder of a place among the upstream connections. ``since``: when it began to wait for one (monotonic clock).

    ``node`` is the one of the upstream connection, ``_tried`` are those that were dialled for it; ``_counted`` calls
    are among the node's requests in flight.
    """

    __slots__ = ("_counted", "_place", "_pool", "_tried", "node", "relay", "since")

    def __init__(self, relay: Relay[Call], pool: Pool) -> None:
        self.relay = relay
        self._pool = pool
        self._place: Share | None = None
        self.node: NodeState | None = None
        self._tried: tuple[NodeState, ...] = ()
        self._counted = 0
        self.since: float | None = None

    def ask(self, call: RelayedCall) -> None:
        """The call may go up. Raises RequestError."""
        if self._place is not None:
            return
        relay = self.relay
        place = Share(relay.gateway.places, call.account, self)
        self._place = place  # what dialling sets going may ask again
        if relay.connected:
            self._pool.stirs(self)
            place.replace()
            self._count(1)
            self._pool.trim()
        elif place.take(1):
            self._dial(place)
        else:
            place.ready = self._ready
            self.since = time.monotonic()

    def dial_again(self, tried: tuple[NodeState, ...] = ()) -> None:
        """Dials for its place."""
        if self._place is not None:
            try:
                self._dial(self._place, tried)
            except RequestError as error:
                self._refuse(error)

    def stir(self) -> None:
        """A call begins that waits for something else, which may need a place of its own."""
        if self._place is None:
            self._pool.stirs(self)

    def _dial(self, place: Share, tried: tuple[NodeState, ...] = ()) -> None:
        self._leave()
        balancer, now = self.relay.gateway.balancer, time.monotonic()
        failure: RequestError = UpstreamUnreachable("The upstream cannot be reached: all of its nodes are drained")
        while (node := balancer.choose(place.account, now, tried)) is not None:
            tried = (*tried, node)
            self._pool.trim(node)
            try:
                self.relay.session.dial(node)
            except OSError as error:
                failure = dial_failure(error)
                if isinstance(failure, OutOfDescriptors):
                    break
                balancer.failed(node, "grpc", now)
            else:
                self.node, self._tried = node, tried
                node.users[self] = None
                self._count(1)
                return
        if not isinstance(failure, OutOfDescriptors) and balancer.is_left(tried):
            self._tried = tried
            self._pool.wait_for_node(self, place, tried, self._room_again, self._late)
            return
        self._place = None
        place.release()
        raise failure

    def _room_again(self) -> None:
        """A node has room, of those that were not tried."""
        self.relay.stream.tell(self._go_on, self._tried)

    def _late(self) -> None:
        self.give_way(_no_place())

    def _count(self, calls: int) -> None:
        node, before, self._counted = self.node, self._counted, calls
        if node is not None:
            node.in_flight += calls - before
            node.connections += (calls > 0) - (before > 0)
            if before and not calls:
                self._pool.serve_nodes()

    def _leave(self) -> None:
        """It has no upstream connection any more."""
        self._count(0)
        node, self.node = self.node, None
        if node is not None:
            node.users.pop(self, None)

    def lost(self, error: RequestError) -> bool:
        """The upstream connection is lost. Whether one to another node is dialled, for calls of which none was sent."""
        relay, node, place = self.relay, self.node, self._place
        balancer, reached = relay.gateway.balancer, relay.reached
        if node is None:
            return False
        unanswered = any(not call.answered for call in relay.calls.values())
        if (unanswered or not reached) and not isinstance(error, OutOfDescriptors):
            balancer.failed(node, "grpc", time.monotonic())
        if reached or place is None or not balancer.several:
            return False
        relay.upstream = None
        try:
            self._dial(place, self._tried)
        except RequestError:
            return False
        return True

    def out(self) -> None:
        """Its node serves no more, as the balancer has it: by its checks, or by requests that failed."""
        self.relay.gateway.loop.call_soon(self.relay.stream.tell, self._give_up)

    def _give_up(self) -> None:
        relay, node = self.relay, self.node
        side = relay.upstream
        if node is not None and side is not None and relay.gateway.balancer.is_out(node, time.monotonic()):
            relay.session.upstream_lost(UpstreamUnreachable("The upstream's node serves no more"))
            side.discard()

    def _ready(self) -> None:
        self.relay.stream.tell(self._go_on)

    def _go_on(self, tried: tuple[NodeState, ...] = ()) -> None:
        self.since = None
        self.relay.session.present()
        self.dial_again(tried)
        self.relay.session.settle()

    def _succeeded(self) -> None:
        if self.node is not None and self.node.grpc.failures:
            self.relay.gateway.balancer.succeeded(self.node, "grpc", time.monotonic())

    def failed(self, now: float) -> None:
        """A call has had no answer for too long, by our own time and not its client's, or one of a proxy between."""
        if self.node is not None and self.relay.reached:
            self.relay.gateway.balancer.failed(self.node, "grpc", now)

    def look(self, now: float) -> None:
        """Refuses the calls where it has waited for too long, and counts those that go on."""
        answered, self.relay.answered = self.relay.answered, False
        if answered:
            self._succeeded()
        if self._counted:
            self._count(max(1, len(self.relay.calls)))
        if self.since is not None and now - self.since > self.relay.limits.connect_timeout:
            self._refuse(_no_place())

    def _refuse(self, error: RequestError) -> None:
        relay = self.relay
        if relay.calls:
            for call in list(relay.calls.values()):
                call.refuse(error)
            relay.session.unblock()
            relay.session.settle()

    # Places, as Shares and the pool have them

    @property
    def waits_for_client(self) -> bool:
        return all(client_may_send(call) or client_must_take(call) for call in self.relay.calls.values())

    def give_way(self, error: RequestError) -> None:
        relay = self.relay
        relay.gateway.loop.call_soon(relay.stream.tell, self._refuse, error)

    def rest(self, *, answered: bool) -> None:
        """No call is left, and what was said last may not be written yet. ``answered``: the last one was."""
        relay, place, self.since = self.relay, self._place, None
        if answered:
            self._succeeded()
        if place is not None and relay.connected and (relay.gateway.places.waiting or self._pool.waits_for_nodes):
            relay.gateway.loop.call_soon(relay.stream.tell, self.end)
            return
        self._place = None
        self._pool.leave_nodes(self)
        self._count(0)
        if relay.connected:
            self._pool.rests(self)
        if place is not None:
            place.release()
        else:
            relay.gateway.loop.call_soon(relay.stream.tell, self._pool.trim)

    def end(self) -> None:
        """Others have no room beside it."""
        relay = self.relay
        if relay.connected and relay.session.idle:
            relay.stream.tell(self._part)

    def _part(self) -> None:
        self.relay.session.part()
        self.relay.session.settle()

    def close(self) -> None:
        """The connection has ended."""
        self._leave()
        self._pool.leave_nodes(self)
        self._pool.stirs(self)
        place, self._place = self._place, None
        if place is not None:
            place.release()
