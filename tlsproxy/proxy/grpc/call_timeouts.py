"""Waits of an open gRPC call, as a sweep finds them: for its client, which must keep up a lowest rate, or the upstream.

A call waits for a client that may send until its message is whole, and for a client whose windows have no room for the
answer until it takes it. All other time is the upstream's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlsproxy.errors import ReaderTooSlow, RequestError, RequestTimeout, UpstreamTimeout
from tlsproxy.wire.throughput import Throughput

if TYPE_CHECKING:
    from tlsproxy.proxy.grpc.call import Call


class CallWaits:
    """Made at the first sweep that finds the call: most are over by then.

    All calls of a connection keep up the lowest rate together.
    """

    __slots__ = ("_sent", "_taken")

    def __init__(self, call: Call, now: float) -> None:
        limits = call.relay.limits
        self._sent = Throughput(now, 0, limits.body_timeout)
        self._taken = Throughput(now, call.record.bytes_out, limits.write_timeout)

    def overdue(self, call: Call, now: float) -> RequestError | None:
        """Error that ends the call if it has waited too long, else None."""
        relay, sent, taken = call.relay, self._sent, self._taken
        limits = relay.limits
        rate = limits.min_data_rate / len(relay.calls)
        waits_to_send = call.client_may_send
        waits_to_take = not waits_to_send and call.client_must_take
        for meter, charged in ((sent, waits_to_send), (taken, waits_to_take)):
            if charged:
                meter.resume(now)
            else:
                meter.pause(now)
        if waits_to_send or waits_to_take:
            call.touched = now
        if waits_to_send and sent.too_low(now, relay.received(call), limits.body_timeout, rate):
            return RequestTimeout("The request message came too slowly")
        if waits_to_take and taken.too_low(now, call.told, limits.write_timeout, rate):
            return ReaderTooSlow("The answer was taken too slowly")
        if now - call.touched > limits.response_timeout:
            return UpstreamTimeout("The upstream did not answer in time")
        return None
