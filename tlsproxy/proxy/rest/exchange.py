"""One allowed request and its response: bytes up, bytes down, neither faster than the other side takes them.

It is made once the decision is yes (:mod:`tlsproxy.proxy.rest.inspected` has those whose decision needs the body),
begins when the audit log and the upstream pool have room, and ends exactly once: done, failed (the client can still be
told), cut (it cannot, a part of the response is with it), or abandoned.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.errors import AuditUnavailable, RequestError, RequestTimeout, RightLost, UpstreamTimeout
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import Work
from tlsproxy.proxy.decision.attribution import account_of
from tlsproxy.proxy.decision.request_plan import READ_FIRST, Plan
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.proxy.rest.body import RequestBody
from tlsproxy.proxy.rest.link import ExchangeHandler
from tlsproxy.proxy.rest.responses import CONTINUE
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.upstream.connection import UpstreamConnection
from tlsproxy.proxy.upstream.value_exists import Verdict
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.http1 import with_host
from tlsproxy.wire.http1_response import ResponseHead
from tlsproxy.wire.throughput import PARTS, Throughput
from tlsproxy.wire.tracing import NO_TRACING, id_line, upstream_lines

Late = tuple[type[RequestError], str, str]
"""Error class and text of an expired wait, and the name of its time in :class:`RuntimeLimits`."""
_UNCHECKED: Final[Late] = (
    UpstreamTimeout,
    "The upstream did not say in time whether the token is valid",
    "response_timeout",
)
_UNKNOWN_POINTS: Final[Late] = (
    UpstreamTimeout,
    "The upstream did not say in time whether the points of this query are yours",
    "response_timeout",
)
NO_UPSTREAM: Final[Late] = (UpstreamTimeout, "No connection to the upstream became free in time", "connect_timeout")
SLOW_BODY: Final[Late] = (RequestTimeout, "The request body came too slowly", "body_timeout")

REPLAY: Final = 65_536
"""A request of at most this many bytes is kept until it is answered, to be sent again if that is safe."""


class Exchange:
    """``congested``: the upstream takes no more of the request for now."""

    __slots__ = (
        "_begun",
        "_came",
        "_client",
        "_ended",
        "_first",
        "_gateway",
        "_gathering",
        "_head",
        "_late",
        "_link",
        "_ours",
        "_sent",
        "_stream",
        "_upstream",
        "_whole_body",
        "body",
        "congested",
        "record",
    )

    def __init__(self, client: ExchangeHandler, record: Record[Plan], body: RequestBody) -> None:
        self._link = link = client.link
        self._gateway = link.gateway
        self._client = client
        self._stream = link.stream
        self._late = NO_UPSTREAM
        self._ended = self.congested = self._gathering = self._begun = False
        self.record = record
        self.body = body
        self._upstream: UpstreamConnection | None = None
        self._sent: list[Content] | None = None  # of the body, where it may be sent again
        self._head = self._ours = b""
        self._whole_body: Content = b""  # of a body that was read before the decision
        self._first = b""  # of a body, before there is an upstream for it
        self._came: Throughput | None = None

    # Admission: waits for the audit log, the token's point, a query's examples, an upstream

    def admit(self) -> None:
        """Begins now, or waits for room as far as that is allowed. Raises AuditUnavailable, Overloaded."""
        gateway, record = self._gateway, self.record
        if record.admit(gateway):
            self._start()
            return
        stream = self._stream
        gateway.audit_gate.wait(record.started, stream, self._readmit)
        stream.deadline = NEVER  # the gate has its own

    def _wait(self, late: Late) -> None:
        self._late = late
        self.rearm()

    @property
    def crowded(self) -> bool:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        return self._gateway.scheduler.crowded(self._link.entry)

    def later(self, go_on: Work) -> None:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        self._gateway.scheduler.add(self._link.entry, self._stream, partial(self._go_on, go_on))

    def _go_on(self, go_on: Work) -> None:
        self._client.present()
        if self._ended:
            return
        try:
            go_on()
        except RequestError as error:
            self._client.exchange_failed(error)
        else:
            self._client.advance()

    def _readmit(self, late: AuditUnavailable | None) -> None:
        if late is not None:
            self._fail(late)
            return
        if not self._ended:
            self._client.present()
        if self._ended:
            return
        try:
            self.admit()
        except RequestError as error:
            self._client.exchange_failed(error)
        else:
            self._client.advance()  # its body may have come meanwhile

    def _start(self) -> None:
        """Called once the audit log has room for its line. Raises :class:`RequestError`."""
        self._acquire()

    def _acquire(self) -> None:
        self._ask_of_token(self._ask_of_examples)

    def _ask_of_token(self, go_on: Work) -> None:
        """Continues once the point that the token requires is known to exist. Raises :class:`RequestError`."""
        plan = self.record.plan
        if plan.exists is None:
            go_on()
            return
        self._wait(_UNCHECKED)
        checked = partial(self._checked, go_on)
        self._link.upstreams.points.ask(plan.exists, plan.affinity, self.account, checked)

    def _ask_of_examples(self) -> None:
        plan = self.record.plan
        if not plan.questions:
            self._connect()
            return
        self._wait(_UNKNOWN_POINTS)
        checked = partial(self._checked, self._connect)
        self._link.upstreams.examples.ask(plan.questions, plan.affinity, self.account, checked)

    def _checked(self, go_on: Work, verdict: Verdict) -> None:
        """Result of a check that the upstream was asked for; None: it is passed."""
        self._client.present()
        if self._ended:
            return
        if isinstance(verdict, Decision):
            self.record.plan = self.record.plan.refused(verdict)
            self._client.exchange_settled()
            return
        if verdict is not None:
            self._client.exchange_failed(verdict)
            return
        try:
            go_on()
        except RequestError as error:
            self._client.exchange_failed(error)
        else:
            self._client.advance()

    def _connect(self) -> None:
        """Reads a small body first, so that no upstream connection waits for it."""
        plan, client = self.record.plan, self._client
        if self.body.done or plan.streamed or self.body.arrived:
            self._take_upstream()
            return
        self._gathering = True
        if plan.expects_continue:
            self._stream.write(CONTINUE)
        self._await_body()
        client.advance()

    def _gather(self) -> None:
        piece, taken = self.body.take()
        self.record.bytes_in += taken
        self._first += piece
        if self.body.done or len(self._first) >= READ_FIRST:
            self._gathering = False
            self._body_paused()
            self._take_upstream()

    def _take_upstream(self) -> None:
        self._stream.deadline = NEVER  # a connection that is dialled has a deadline of its own
        pool = self._link.upstreams.pool
        upstream = pool.acquire(self)
        if upstream is not None:
            self._begin_on(upstream)
        elif pool.queues(self):
            self._wait(NO_UPSTREAM)

    def _begin_on(self, upstream: UpstreamConnection) -> None:
        try:
            self._begin(upstream)
        except RequestError:
            upstream.discard()
            raise

    def upstream_ready(self, upstream: UpstreamConnection) -> None:
        self._client.present()
        if self._ended:
            self._link.upstreams.pool.release(upstream, keep=True)
            return
        try:
            self._begin_on(upstream)
        except RequestError as error:
            self._client.exchange_failed(error)
        else:
            self._client.advance()

    @property
    def account(self) -> Account:
        return account_of(self._link.entry.account, self.record.plan.audit.caller)

    @property
    def waits_for_client(self) -> bool:
        """Waits for more of the request, or until the client takes more of the response."""
        return self._stream.stalled or self.sending

    def give_way(self, error: RequestError) -> None:
        self._gateway.loop.call_soon(self._stream.tell, self._fail, error)

    def _fail(self, error: RequestError) -> None:
        """Ends it with an error of another callback, which is not raised anew.

        A frame that raises an error out of one of its variables and the error refer to each other: the body would stay
        in memory until a garbage collection.
        """
        if not self._ended:
            self._client.present()
        if not self._ended:
            self._client.exchange_failed(error)

    @property
    def sending(self) -> bool:
        """Whether received data belongs to this request, and is wanted now."""
        return (self._gathering or self._upstream is not None) and not self.body.done and not self.congested

    @property
    def waiting(self) -> bool:
        """Whether no byte of the request was sent upstream."""
        return not self._begun

    @property
    def whole(self) -> bool:
        """Whether the whole request was sent upstream."""
        upstream = self._upstream
        return self.body.done and upstream is not None and not upstream.stream.unsent

    @property
    def taken(self) -> bytes | None:
        """Received bytes of the body; None once the request is on its way upstream."""
        return None if self._begun else self._first

    def request_sent(self) -> bool:
        return self.body.done

    @property
    def repeatable(self) -> bool:
        return self._sent is not None

    def under(self, present: Plan) -> Plan | Decision:
        """Plan to go on by, given the present plan of its head; or its refusal."""
        return self.record.plan.under(present)

    def renew(self, present: Plan) -> Decision | None:
        """Adopts the present plan of its head, or returns the refusal."""
        outcome = self.under(present)
        if isinstance(outcome, Decision):
            return outcome
        self.record.plan = outcome
        return None

    def withdraw(self, refusal: Decision) -> None:
        """Ends a request that has lost its right. A change that was sent whole may still get its answer."""
        if self.waiting:
            self.record.plan = self.record.plan.refused(refusal)
            self.abandon()
            self._client.exchange_settled()
        elif self.whole and not self.record.plan.resend:
            self.record.plan = replace(self.record.plan, expires=NEVER)
            gateway = self._gateway
            gateway.loop.call_later(gateway.bounds.expel_after, self._stream.tell, self._overstayed)
        else:
            self._lose(refusal)

    def _overstayed(self) -> None:
        if not self._ended and (refusal := self.renew(self._client.planned(self._gateway.clock.now()))):
            self._lose(refusal)

    def _lose(self, refusal: Decision) -> None:
        self._link.entry.request_ended(self._gateway, refusal.reason)
        self._client.exchange_failed(RightLost(refusal.reason))

    # The request

    def _begin(self, upstream: UpstreamConnection) -> None:
        """Sends the head and the received part of the body. Raises as :meth:`RequestBody.take`, before it sends."""
        record, body = self.record, self.body
        plan, tail = record.plan, self._link.tail
        line = id_line(record.id)
        self._ours = line + plan.readable if plan.readable else line
        lines = plan.upstream
        if self._gateway.balancer.only is None:
            lines = with_host(lines, upstream.node.node.rest.authority)
        out = lines + line + tail
        if record.tracing is not NO_TRACING:
            out = lines + line + upstream_lines(record.tracing) + tail
        first = self._whole_body or self._first
        self._whole_body = self._first = b""
        if body.buffer.data and not body.done:
            piece, taken = body.take()
            record.bytes_in += taken
            first = first + piece if first else piece
        apart = len(first) > REPLAY  # not copied to be sent with the head
        if not apart:
            out += first
        if plan.resend and len(out) <= REPLAY and not apart:
            self._sent = [first]
        self._upstream, self._begun, whole = upstream, True, body.done
        upstream.begin(self, out, to_head=plan.to_head, whole=whole, asked=plan.timeout)
        if apart:
            upstream.stream.write(first)
        if whole:
            self._stream.deadline = NEVER
        elif not self.congested:
            self._await_body()

    def send(self) -> None:
        """Forwards received bytes of the body. Raises as :meth:`RequestBody.take` does, and Overloaded."""
        upstream = self._upstream
        if upstream is None:
            self._gather()
            return
        piece, taken = self.body.take()
        self.record.bytes_in += taken
        if self._sent is not None:
            self._sent = [*self._sent, piece] if self.record.bytes_in <= REPLAY else None
        upstream.stream.write(piece)
        if self.body.done or not self.congested:
            self._await()

    def _await(self) -> None:
        """Sets the deadline: for the client's body, then for the upstream's response."""
        if self._upstream is None or self._stream.stalled:
            return
        if self.body.done:
            self._stream.deadline = NEVER
            self._upstream.await_response()
            return
        self._await_body()
        self._upstream.await_client()

    def _await_body(self) -> None:
        """Waits for the client, as long as its body comes fast enough."""
        came = self._came
        if came is None:
            now, timeout = time.monotonic(), self._gateway.bounds.body_timeout
            self._came = came = Throughput(now, self.record.bytes_in, timeout)
        elif came.paused:
            came.resume(time.monotonic())
        self._late = SLOW_BODY
        self._stream.deadline = came.due

    def _body_paused(self) -> None:
        """Pauses the measurement of the client's rate: the wait is for something else."""
        if self._came is not None:
            self._came.pause(time.monotonic())

    def rearm(self) -> None:
        """Sets the deadline of the present wait by the present limits, counted from now."""
        now, stream = time.monotonic(), self._stream
        if self._came is not None and self._late == SLOW_BODY:
            stream.deadline = min(stream.deadline, now + self._gateway.bounds.body_timeout / PARTS)
        else:
            stream.deadline = now + getattr(self._gateway.bounds, self._late[2])

    def overdue(self) -> RequestError | None:
        """Error of an expired wait; None after a new deadline, for a body that arrives fast enough."""
        bounds, came, (kind, text, _) = self._gateway.bounds, self._came, self._late
        if self._late != SLOW_BODY or came is None:
            return kind(text)
        total = self.record.bytes_in + len(self.body.buffer)
        if came.too_low(time.monotonic(), total, bounds.body_timeout, bounds.min_data_rate):
            return kind(text)
        self._await_body()
        return None

    def upstream_congested(self) -> None:
        self.congested = True
        self._body_paused()
        self._stream.deadline = NEVER
        self._client.reading_changed()

    def upstream_drained(self) -> None:
        self.congested = False
        self._await()
        self._client.advance()

    # The response

    def interim(self, head: ResponseHead) -> None:
        self._stream.write(head.restated(close=False))

    def response_head(self, head: ResponseHead) -> None:
        """Holds the head back until data follows: one TLS record, one send."""
        self.record.status = head.status
        client = self._client
        if head.ends or not self.body.done:  # the next request could not be found
            client.close = True
        self._head = head.restated(self._ours, close=client.close)

    def response_body(self, data: bytes) -> None:
        self.record.bytes_out += len(data)
        out, self._head = self._head + data, b""
        if out:
            self._stream.write(out)

    def response_done(self) -> None:
        self._upstream = None
        if not self.body.done:
            self._client.close = True
        self._client.exchange_done()

    def pause_response(self) -> None:
        if self._upstream is not None:
            self._upstream.pause()

    def resume_response(self) -> None:
        if self._upstream is not None:
            self._upstream.resume()
            self._await()

    # Failures

    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None:
        lost, self._upstream = self._upstream, None
        self.congested = False
        if answered:
            self._client.exchange_cut(error.reason)
        elif lost is not None and self._sent is not None and (stale or self._gateway.balancer.only is None):
            self._send_again(self._sent, lost, error, stale=stale)
        else:
            self._client.exchange_failed(error)

    def _send_again(self, sent: list[Content], lost: UpstreamConnection, error: RequestError, *, stale: bool) -> None:
        """Sends a lost read again, as far as :meth:`Pool.send_again` does."""
        self._first, self._begun = b"".join(sent), False
        self._body_paused()
        self._client.present()
        if self._ended:
            return
        self._stream.deadline = NEVER
        try:
            if self._link.upstreams.pool.send_again(self, lost, stale=stale):
                return
        except RequestError as failure:
            error = failure
        self._client.exchange_failed(error)

    def abandon(self) -> None:
        """Ends the exchange without a response of its own: the client is gone, or gets another response."""
        self._ended = True
        if self._upstream is None:
            self._link.upstreams.pool.forget(self)
        else:
            upstream, self._upstream = self._upstream, None
            upstream.discard()

    def over(self) -> None:
        """Releases connection, memory and limits at the end, however it came; pending callbacks do nothing."""
        self._ended = True
