"""The way of a client's gRPC connection to the upstream: dialled for the first call that may go up, and no sooner.

An upstream connection is a place of ``upstream.max_connections`` while there are calls on it. Without any it is in
nobody's place and stays for as long as there is room (:mod:`tlsproxy.proxy.upstream.pool`); after that its client,
which has nothing under way, is told by GOAWAY to begin anew with its next call.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tlsproxy.errors import Overloaded, RequestError, UpstreamUnreachable
from tlsproxy.proxy.decision.attribution import account_of
from tlsproxy.proxy.limits.fair_shares import Share
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.wire.http2 import Code

if TYPE_CHECKING:
    from tlsproxy.proxy.grpc.call import Call
    from tlsproxy.proxy.grpc.client import GrpcConnection


class Reach:
    """The holder of the place of ``client``. ``since``: when it began to wait for one (monotonic clock), else None."""

    __slots__ = ("_place", "_pool", "client", "since")

    def __init__(self, client: GrpcConnection, pool: Pool) -> None:
        self.client = client
        self._pool = pool
        self._place: Share | None = None
        self.since: float | None = None

    def ask(self, call: Call) -> None:
        """The call may go up. Raises Overloaded, UpstreamUnreachable."""
        if self._place is not None:
            return
        client = self.client
        place = Share(client.gateway.places, account_of(client.entry.account, call.record.plan.audit.who), self)
        self._place = place  # what dialling sets going may ask again
        if client.connected:
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
            except UpstreamUnreachable as error:
                self._refuse(error)

    def stir(self) -> None:
        """A call begins that waits for something else, which may need a place of its own."""
        if self._place is None:
            self._pool.stirs(self)

    def _dial(self, place: Share) -> None:
        self._pool.trim()
        try:
            self.client.dial()
        except OSError as error:
            self._place = None
            place.release()
            raise UpstreamUnreachable(f"The upstream cannot be reached: {error}") from None

    def _ready(self) -> None:
        self.client.stream.tell(self._go_on)

    def _go_on(self) -> None:
        self.since = None
        self.client.present()
        self.dial_again()
        self.client.settle()

    def look(self, now: float) -> None:
        """Whether it has waited for too long."""
        if self.since is not None and now - self.since > self.client.gateway.bounds.connect_timeout:
            self._refuse(Overloaded("No connection to the upstream became free in time"))

    def _refuse(self, error: RequestError) -> None:
        client = self.client
        for call in list(client.calls.values()):
            client.refuse(call, error)
        client.unblock()
        client.settle()

    # Places, as Shares and the pool have them

    @property
    def waits_for_client(self) -> bool:
        return all(call.client_may_send or call.client_must_take for call in self.client.calls.values())

    def give_way(self, error: RequestError) -> None:
        client = self.client
        client.gateway.loop.call_soon(client.stream.tell, self._refuse, error)

    def rest(self) -> None:
        """No call is left, and what was said last may not be written yet."""
        client, place, self.since = self.client, self._place, None
        if place is not None and client.connected and client.gateway.places.waiting:
            client.gateway.loop.call_soon(client.stream.tell, self.end)
            return
        self._place = None
        if client.connected:
            self._pool.rests(self)
        if place is not None:
            place.release()
        else:
            client.gateway.loop.call_soon(client.stream.tell, self._pool.trim)

    def end(self) -> None:
        """Others have no room beside it."""
        client = self.client
        if not (client.calls or client.formers):
            client.stream.tell(client.end, Code.NO_ERROR)

    def close(self) -> None:
        """The connection has ended."""
        self._pool.stirs(self)
        place, self._place = self._place, None
        if place is not None:
            place.release()
