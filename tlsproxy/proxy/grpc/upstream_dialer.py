"""Dialling of an upstream connection for a client's gRPC connection: for the first call that may go up, and no sooner.

An upstream connection is a place of ``upstream.max_connections`` while there are calls on it. Without any it is in
nobody's place and stays for as long as there is room (:mod:`tlsproxy.proxy.upstream.pool`); after that its client,
which has nothing under way, is told by GOAWAY to begin anew with its next call.
"""

from __future__ import annotations

import time

from tlsproxy.errors import Overloaded, RequestError
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.call_timeouts import client_may_send, client_must_take
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.grpc.session import RelayedCall
from tlsproxy.proxy.limits.fair_shares import Share
from tlsproxy.proxy.transport.dial import dial_failure
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.wire.http2 import Code


class Dialler:
    """Holder of a place among the upstream connections. ``since``: when it began to wait for one (monotonic clock)."""

    __slots__ = ("_place", "_pool", "relay", "since")

    def __init__(self, relay: Relay[Call], pool: Pool) -> None:
        self.relay = relay
        self._pool = pool
        self._place: Share | None = None
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
            self._pool.trim()
        elif place.take(1):
            self._dial(place)
        else:
            place.ready = self._ready
            self.since = time.monotonic()

    def dial_again(self) -> None:
        """Dials for its place."""
        if self._place is not None:
            try:
                self._dial(self._place)
            except RequestError as error:
                self._refuse(error)

    def stir(self) -> None:
        """A call begins that waits for something else, which may need a place of its own."""
        if self._place is None:
            self._pool.stirs(self)

    def _dial(self, place: Share) -> None:
        self._pool.trim()
        try:
            self.relay.session.dial()
        except OSError as error:
            self._place = None
            place.release()
            raise dial_failure(error) from None

    def _ready(self) -> None:
        self.relay.stream.tell(self._go_on)

    def _go_on(self) -> None:
        self.since = None
        self.relay.session.present()
        self.dial_again()
        self.relay.session.settle()

    def look(self, now: float) -> None:
        """Refuses the calls where it has waited for too long."""
        if self.since is not None and now - self.since > self.relay.limits.connect_timeout:
            self._refuse(Overloaded("No connection to the upstream became free in time"))

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

    def rest(self) -> None:
        """No call is left, and what was said last may not be written yet."""
        relay, place, self.since = self.relay, self._place, None
        if place is not None and relay.connected and relay.gateway.places.waiting:
            relay.gateway.loop.call_soon(relay.stream.tell, self.end)
            return
        self._place = None
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
            relay.stream.tell(relay.session.end, Code.NO_ERROR)

    def close(self) -> None:
        """The connection has ended."""
        self._pool.stirs(self)
        place, self._place = self._place, None
        if place is not None:
            place.release()
