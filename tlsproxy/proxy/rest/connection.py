"""REST connection of a client: one request after the other, each decided before a byte of it goes upstream.

States: :mod:`tlsproxy.proxy.rest.states`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.errors import BodyTooLarge, RequestError, RequestTimeout, RightLost
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway, moved
from tlsproxy.proxy.core.impact_analysis import Outlook
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import SLICE
from tlsproxy.proxy.decision.local_responses import LocalResponse
from tlsproxy.proxy.decision.request_plan import AuditSearch, Plan, Relayed
from tlsproxy.proxy.decision.unread_body import Unread
from tlsproxy.proxy.rest.body import NO_BODY, RequestBody
from tlsproxy.proxy.rest.exchange import Exchange
from tlsproxy.proxy.rest.inspected import EXCHANGES
from tlsproxy.proxy.rest.link import ClientLink
from tlsproxy.proxy.rest.local_exchange import LocalExchange
from tlsproxy.proxy.rest.responses import refused, response
from tlsproxy.proxy.rest.states import BUSY, ENDED, IDLE, SKIPPING
from tlsproxy.proxy.transport.tls import TlsStream
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.wire.head_buffer import HeadBuffer
from tlsproxy.wire.tracing import NO_TRACING, Tracing, id_line

TURN: Final = 16
"""Requests and pieces of bodies that one turn handles at most."""
SHORT_LINGER: Final = 1.0
"""Seconds for which data behind the last request is still read, so that the client gets its response."""
PAUSE: Final = 0.1
"""Seconds before the next request is read, after one that was over its limit."""


class RestConnection:
    """Handler of one TLS stream, from its handshake on. ``_in_turn``: a turn runs, or waits for the scheduler
    (``_queued``); reading is paused meanwhile.
    """

    __slots__ = (
        "_body",
        "_exchange",
        "_gateway",
        "_head",
        "_head_started",
        "_in_turn",
        "_judged",
        "_limits",
        "_pause",
        "_queued",
        "_record",
        "_remote",
        "_standing",
        "_state",
        "_when_ended",
        "close",
        "entry",
        "inbox",
        "link",
        "stream",
    )

    patient = True

    def __init__(
        self, gateway: Gateway, upstreams: Upstreams, stream: TlsStream, entry: Entry, when_ended: Callable[[], None]
    ) -> None:
        tail = b"x-forwarded-for: %b\r\nx-forwarded-proto: https\r\n\r\n" % entry.address.encode()
        self.link = ClientLink(gateway, upstreams, entry, stream, tail)
        self.stream = stream
        self.close = False
        self._gateway = gateway
        self.entry = entry
        self._remote = entry.remote
        self._limits = gateway.bounds
        self.inbox = HeadBuffer()
        self._head = b""
        self._head_started = self._in_turn = self._queued = False
        self._record: Record[Plan] | None = None
        self._body = NO_BODY
        self._exchange: Exchange | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._standing = entry.standing
        self._when_ended = when_ended
        self._judged = gateway.generation
        self._await_request()

    # Requests

    def data_received(self, data: bytes) -> None:
        if self._state is not ENDED:
            self.inbox.add(data)
            self.advance()

    def advance(self) -> None:
        """Handles received data, for a turn. Does nothing during one: its loop sees new data and states itself."""
        if self._in_turn:
            return
        if self.inbox.data:
            scheduler = self._gateway.scheduler
            if scheduler.waiting and scheduler.crowded(self.entry):
                self._wait_for_turn()
            else:
                self._take_turn()
        elif not self.stream.reading:
            self.reading_changed()

    def _wait_for_turn(self) -> None:
        self._in_turn = self._queued = True
        self._gateway.scheduler.add(self.entry, self.stream, self._take_turn)
        self.reading_changed()

    def _take_turn(self) -> None:
        """Runs one turn. Remaining work waits for the next."""
        self._in_turn, self._queued = True, False
        try:
            if self._judged is not self._gateway.generation:
                self.judge(self._gateway.clock.now())
            more = self._turn()
        finally:
            self._in_turn = False
        stream = self.stream
        if stream.corked is not None:
            stream.uncork()
        if more:
            self._wait_for_turn()
        elif self.inbox.data or not stream.reading:
            self.reading_changed()

    def _turn(self) -> bool:
        """Handles requests, one at a time, and their bodies. True: there may be more to do."""
        inbox, end = self.inbox, 0.0
        for _ in range(TURN):
            state = self._state
            if state is IDLE:
                head = self._next_head()
                if head is None:
                    return False
                self._request(head)
            elif state is BUSY:
                exchange = self._exchange
                if exchange is None or not exchange.sending:
                    return False
                try:
                    exchange.send()
                except RequestError as error:
                    self._fail(error)
            elif state is SKIPPING:
                self._skip()
            else:
                return False
            if not inbox.data:
                return False
            now = time.monotonic()
            end = end or now + SLICE
            if now > end:
                break
        return True

    def _next_head(self) -> bytes | None:
        """Next request head. None: it is not whole yet, or has to wait."""
        stream = self.stream
        if self._pause is not None or stream.stalled or stream.closed:
            return None
        try:
            head = self.inbox.head(self._limits.max_head_size)
        except RequestError as error:
            self._unreadable(error)
            return None
        if head is None and not self._head_started:
            self._head_started = True
            stream.deadline = time.monotonic() + self._limits.head_timeout
        return head

    def _unreadable(self, error: RequestError) -> None:
        now = self._gateway.clock.now()
        self._standing.ended(self._gateway.generation, now)
        record = self._open_record(self._gateway.plans.unreadable(self._standing.principal, error), now)
        self._reply(record, error)

    def _request(self, head: bytes) -> None:
        gateway = self._gateway
        now = gateway.clock.now()
        self._head = head
        ended = self._standing.ended(gateway.generation, now)
        principal = self._standing.principal
        plan, tracing = gateway.plans.of(principal, head, now, ended)
        record = self._open_record(plan, now, tracing)
        if ended is not None:
            self.close = True
        elif plan.limit_check is not None:
            record.count(gateway, plan.limit_check, self.entry)
        self._carry_out(record)

    def _open_record(self, plan: Plan, now: float, tracing: Tracing = NO_TRACING) -> Record[Plan]:
        self._record = record = Record(plan, now, tracing)
        self._body = NO_BODY
        self.close = plan.close or self._gateway.draining
        return record

    def _carry_out(self, record: Record[Plan]) -> None:
        """As its plan says: by an exchange, or an answer of the gateway's own."""
        plan, route = record.plan, record.plan.route
        if plan.length or type(route) is not Relayed:
            keep = type(route) is Unread or type(route) is AuditSearch
            try:
                self._body = RequestBody(self.inbox, plan.length, plan.limit, of_role=plan.of_role, keep=keep)
            except BodyTooLarge as error:
                self.close = True
                self._reply(record, error)
                return
        if route is None or isinstance(route, LocalResponse):
            self._reply(record)
        else:
            self._take_up(EXCHANGES[type(route)](self, record, self._body))

    def _take_up(self, exchange: Exchange) -> None:
        self._state = BUSY
        self._exchange = exchange
        try:
            exchange.admit()
        except RequestError as error:
            self._fail(error)

    def _reply(self, record: Record[Plan], error: RequestError | None = None) -> None:
        """Answers without the upstream, once the audit log has room: with ``error``, or by the plan."""
        if record.plan.exists is not None or not record.admit(self._gateway):
            self._take_up(LocalExchange(self, record, self._body, error))
        else:
            self._settle(record.plan, error)

    def _settle(self, plan: Plan, error: RequestError | None) -> None:
        if error is not None:
            self._fail(error)
        elif isinstance(answer := plan.route, LocalResponse):
            self._respond(HTTPStatus.OK, answer.fields, answer.body, bytes_out=len(answer.body))
        else:
            self._refuse_as(plan.decision)

    def reading_changed(self) -> None:
        """Reads, unless the upstream takes no more of a body, or the client is ahead of its responses or its turn."""
        stream, exchange, inbox = self.stream, self._exchange, self.inbox
        if (
            self._queued
            or (
                inbox.data
                and len(inbox) > self._limits.max_head_size
                and (self._state is BUSY or stream.stalled or self._pause is not None)
            )
            or (exchange is not None and exchange.congested)
        ):
            stream.pause_reading()
        else:
            stream.resume_reading()

    # Responses

    def exchange_done(self) -> None:
        self._finish("")
        if self.close:
            self._end_after_response(whole=self._body.done)
            return
        self._await_request()
        self.advance()

    def exchange_settled(self) -> None:
        if self._record is not None:
            self._settle(self._record.plan, None)
        self.advance()

    def exchange_failed(self, error: RequestError) -> None:
        self._fail(error)
        self.advance()

    def _fail(self, error: RequestError) -> None:
        """Ends the request with an error response, or cuts the connection where a response has begun."""
        if self._exchange is not None:
            self._exchange.abandon()
        self.close |= isinstance(error, RequestTimeout)  # RFC 9110 §15.5.9
        record = self._record
        if record is not None and record.status:
            self.exchange_cut(error.reason)
        elif record is not None:
            reason = record.failed(error, undecided=isinstance(record.plan.route, Unread))
            self._respond(error.status, *refused(error.status, str(error), error.form, 0), reason=reason)

    def _refuse_as(self, decision: Decision) -> None:
        answer = refused(decision.status, decision.text, decision.form, decision.retry_after)
        self._respond(decision.status, *answer)
        if decision.retry_after and self._state is not ENDED:
            self._pause = self._gateway.loop.call_later(PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self.advance()

    def _respond(self, status: int, fields: bytes, body: bytes, *, reason: str = "", bytes_out: int = 0) -> None:
        """Sends the gateway's own response, even before the request's body is whole."""
        record = self._record
        if record is None:
            raise RuntimeError("a response without a request")
        record.status, record.bytes_out = status, bytes_out
        plan = record.plan
        keep = not self.close and plan.framed and self._body.skippable(expected=plan.expects_continue)
        fields += plan.fields + id_line(record.id)
        if self.inbox.data and self._in_turn and not self._queued:  # others may follow in this turn
            self.stream.cork()
        self.stream.write(response(status, fields, body, close=not keep, to_head=plan.to_head))
        self._finish(reason)
        if not keep:
            self._end_after_response(whole=False)
            return
        self._state = SKIPPING
        self.stream.deadline = time.monotonic() + self._limits.body_timeout
        self._skip()

    def _skip(self) -> None:
        if not self._body.done:
            self._body.take()
        if self._body.done:
            self._await_request()

    def _finish(self, reason: str) -> None:
        record, exchange = self._record, self._exchange
        self._record = self._exchange = None  # first: callbacks of the end find no request
        self._head = b""
        if exchange is not None:
            exchange.over()
        if record is not None:
            record.finish(self._gateway, self._remote, reason)
            self.entry.count(record.bytes_in, record.bytes_out, record.plan.audit.caller.key)

    def _await_request(self) -> None:
        """Waits for the next request."""
        self._state = IDLE
        self._head_started = False
        stream = self.stream
        if stream.stalled:  # the client has to take its response first
            return
        timeout = self._limits.idle_timeout
        if self._gateway.draining:
            timeout = min(timeout, self._limits.drain_grace)
        stream.deadline = time.monotonic() + timeout

    # Other callbacks of the stream

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.pause_response()

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.resume_response()
        elif self._state is IDLE:
            self._await_request()
            self.advance()

    def rearm(self) -> None:
        if self._state is BUSY and self._exchange is not None:
            self._exchange.rearm()
        elif self._state is SKIPPING:
            self.stream.deadline = time.monotonic() + self._limits.body_timeout
        elif self._state is IDLE and self._head_started:
            self.stream.deadline = time.monotonic() + self._limits.head_timeout
        elif self._state is IDLE:
            self._await_request()

    def deadline_passed(self) -> None:
        if self.stream.stalled:
            self.exchange_cut("client_stalled")
        elif self._queued:  # the client is not late, its turn is
            self.stream.deadline = time.monotonic() + 1.0
        elif self._exchange is not None:
            error = self._exchange.overdue()
            if error is not None:
                self._fail(error)
                self.advance()
        elif self._state is IDLE and self._head_started:
            self._unreadable(RequestTimeout("The request head came too slowly"))
        else:
            self._end()

    def drain(self) -> None:
        """Ends the connection after the current response, or now where there is none.

        When the service stops, an idle client may be about to send a request: one that comes within
        ``limits.drain_grace`` is answered, with `connection: close`.
        """
        stopping = self._gateway.draining
        if stopping and self._state is ENDED:
            self.stream.hasten(SHORT_LINGER)
        elif self._state is IDLE and not self.inbox.data:
            self._await_request() if stopping else self._end()
        elif not (stopping and self._record is not None and self._record.status):
            self.close = True

    # Publications

    def present(self) -> None:
        """Judges the request again if there was a publication since."""
        if self._judged is not self._gateway.generation:
            self.judge(self._gateway.clock.now())

    def judge(self, now: float) -> str:
        """Ends a request that has lost its right, or plans it again. The connection needs its certificate alone."""
        generation, record, exchange = self._gateway.generation, self._record, self._exchange
        former, self._judged = self._judged, generation
        anew = former is not generation or self._standing.ended(generation, now) is not None
        if record is not None and exchange is not None and (anew or now >= record.plan.expires):
            present = self.planned(now)
            refusal = exchange.renew(present)
            if refusal is None and not (exchange.waiting and moved(former, generation, "rest")):
                return ""
            taken = exchange.taken
            if taken is not None and present.route is not None:
                self._start_again(record, exchange, present, taken)
            elif refusal is not None:
                exchange.withdraw(refusal)
        return ""

    def losses(self, outlook: Outlook, standing: Standing, now: float) -> Iterator[str]:
        if self._record is None or self._exchange is None:
            return
        ended = standing.ended(outlook.generation, now)
        planned, _ = outlook.plans.of(standing.principal, self._head, now, ended)
        outcome = self._exchange.under(planned)
        if isinstance(outcome, Decision):
            yield outcome.reason

    def planned(self, now: float) -> Plan:
        """Plan of the request's head under the current generation."""
        gateway, standing = self._gateway, self._standing
        ended = standing.ended(gateway.generation, now)
        return gateway.plans.of(standing.principal, self._head, now, ended)[0]

    def _start_again(self, record: Record[Plan], exchange: Exchange, present: Plan, taken: bytes) -> None:
        """Starts a request again, of which nothing was sent yet: by another plan, or to another upstream."""
        exchange.abandon()
        exchange.over()
        self.inbox.put_back(taken)
        record.plan, record.bytes_in = present, 0
        self._carry_out(record)
        self.advance()

    def expel(self, reason: str) -> None:
        self.close = True
        if self._record is None:
            self._end()
            self.stream.cease()
        elif self._record.status or self.stream.stalled:
            self.exchange_cut(reason)
        else:
            self._fail(RightLost(reason))

    def exchange_cut(self, reason: str) -> None:
        if self._exchange is not None:
            self._exchange.abandon()
        self._finish(reason)
        self._stop()
        self.stream.abort()

    def connection_lost(self, error: Exception | None) -> None:
        try:
            self.exchange_cut("client_gone" if error is None or isinstance(error, OSError) else "internal_error")
        finally:
            self._when_ended()

    def _end_after_response(self, *, whole: bool) -> None:
        """Ends the connection after a response. ``whole``: the request was read to its end.

        Otherwise the client is still sending and gets ``limits.linger_timeout`` to notice, unless the service stops.
        """
        brief = whole or self._gateway.draining
        self._end(min(SHORT_LINGER, self._limits.linger_timeout) if brief else self._limits.linger_timeout)

    def _end(self, linger: float = 0.0) -> None:
        """Reads no more requests and sends the queued data. ``linger``: for a client that may still be sending."""
        self._stop()
        self.inbox.clear()
        self.stream.close(linger)

    def _stop(self) -> None:
        self._state = ENDED
        self.stream.uncork()
        if self._queued:
            self._gateway.scheduler.forget(self.entry)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
