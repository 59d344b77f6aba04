"""Waits of an open gRPC call, as a sweep finds them: for its client, which must keep up a lowest rate, or the upstream.

A call waits for a client that may send until its message is whole, and for a client whose windows have no room for the
answer until it takes it. All other time is the upstream's.
"""

from __future__ import annotations

from tlsproxy.errors import DeadlineExceeded, ReaderTooSlow, RequestError, RequestTimeout, UpstreamTimeout
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.wire.grpc import seconds_in
from tlsproxy.wire.throughput import Throughput


def client_may_send(call: Call) -> bool:
    """Whether its message is not whole, and nothing keeps the client from sending more of it."""
    relay = call.relay
    if call.state.client_done or call.answered or call.holds_data or relay.deferred or not relay.stream.reading:
        return False
    if call.reading is not None and call.reading.rebuilds:
        return True
    window = relay.to_upstream
    return window.credit > 0 and window.initial.least + call.upstream_granted > call.record.bytes_in


def client_must_take(call: Call) -> bool:
    """Whether there is more of its answer than the client has left room for."""
    relay = call.relay
    if call.reduction is not None:
        return call.reduction.left > 0
    if relay.down_blocked:
        return True
    window = relay.to_client
    return call.answered and (window.room <= 0 or window.initial.least + call.client_granted <= call.record.bytes_out)


def overdue(call: Call, now: float) -> RequestError | None:
    """Error that ends the call if it has waited too long, else None. All calls of a connection share the lowest rate.

    The call's meters are made at the first sweep that finds it: most calls are over by then.
    """
    limits = call.relay.limits
    if not call.record.admitted:  # waits at the audit gate, or is written down, and its client still sends
        late = call.recorded and now - call.last_activity > limits.write_timeout
        return RequestTimeout("The client did not end its call") if late else None
    if call.meters is None:
        sent = Throughput(now, 0, limits.body_timeout)
        call.meters = sent, Throughput(now, call.record.bytes_out, limits.write_timeout)
    sent, taken = call.meters
    rate = limits.min_data_rate / len(call.relay.calls)
    waits_to_send = client_may_send(call)
    waits_to_take = not waits_to_send and client_must_take(call)
    for meter, charged in ((sent, waits_to_send), (taken, waits_to_take)):
        if charged:
            meter.resume(now)
        else:
            meter.pause(now)
    if waits_to_send or waits_to_take:
        call.last_activity = now
    if waits_to_send:
        received = call.record.bytes_in + call.relay.session.unfinished_data(call.stream)
        if sent.too_low(now, received, limits.body_timeout, rate):
            return RequestTimeout("The request message came too slowly")
    left = call.reduction.left if call.reduction is not None else 0
    if waits_to_take and taken.too_low(now, call.record.bytes_out - left, limits.write_timeout, rate):
        return ReaderTooSlow("The answer was taken too slowly")
    return _upstream_overdue(call, now)


def deadline_passed(call: Call, now: float) -> bool:
    """Whether the client's own deadline is over."""
    seconds = seconds_in(call.deadline)
    return seconds is not None and now - call.record.started >= seconds


def _upstream_overdue(call: Call, now: float) -> RequestError | None:
    """Error of a call whose client's own deadline is over, or whose upstream is silent for too long."""
    if deadline_passed(call, now):
        return DeadlineExceeded()
    asked = call.record.plan.timeout or seconds_in(call.deadline) or 0.0
    if now - call.last_activity > call.relay.limits.response_wait(asked):
        return UpstreamTimeout("The upstream did not answer in time")
    return None
