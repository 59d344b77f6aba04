"""A connection's turns: how a request begins and ends on it, and the responses that are the gateway's own.

The states, and what may come next:

    IDLE      no request, or the beginning of a head                       → BUSY, SKIPPING, ENDED
    BUSY      an exchange goes on                                          → IDLE, SKIPPING, ENDED
    SKIPPING  answered by ourselves; the small rest of its body is dropped → IDLE, ENDED
    ENDED     nothing that comes is looked at any more

After a request that was one too many the next one is not taken up for :data:`PAUSE`: a client that waits as long as it
was told does not notice, and one that does not cannot keep us busy.

A connection whose next request cannot be found (a body of unknown length was refused, a response began before the
request was whole) is closed after its answer, so that no byte is ever read as what it was not sent as.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from http import HTTPStatus
from typing import Final

from tlsproxy.audit.line import json_string
from tlsproxy.authz.access import Decision
from tlsproxy.errors import Form
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.record import Record, RequestBody
from tlsproxy.proxy.decision.local_responses import Answer
from tlsproxy.proxy.decision.request_plan import Plan
from tlsproxy.proxy.rest.exchange import Exchange
from tlsproxy.proxy.rest.responses import refused, response
from tlsproxy.proxy.transport.tls import TlsStream
from tlsproxy.wire.head_buffer import HeadBuffer
from tlsproxy.wire.tracing import NO_TRACING, Tracing, id_line

NO_BODY: Final = RequestBody(0, 0)
SHORT_LINGER: Final = 1.0
"""Seconds, after the last response of a connection: its client may have sent on behind its last request."""
PAUSE: Final = 0.1
"""Seconds."""


class State(Enum):
    IDLE = 0
    BUSY = 1
    SKIPPING = 2
    ENDED = 3


IDLE, BUSY, SKIPPING, ENDED = State  # under names of the module: asking a class for its member costs ten times as much


class Turns:
    """The ground of a connection: its state, and the one request that it has at a time, with its head as it came.

    ``_in_turn``: a turn goes on, or is ``_queued``: then nothing is read.
    """

    __slots__ = (
        "_body",
        "_exchange",
        "_gateway",
        "_head",
        "_head_started",
        "_in_turn",
        "_limits",
        "_pause",
        "_queued",
        "_record",
        "_remote",
        "_state",
        "close",
        "entry",
        "inbox",
        "stream",
    )

    patient = True

    def __init__(self, gateway: Gateway, stream: TlsStream, entry: Entry) -> None:
        self.stream = stream
        self.close = False
        self._gateway = gateway
        self.entry = entry
        self._remote = json_string(entry.address)
        self._limits = gateway.bounds
        self.inbox = HeadBuffer()
        self._head = b""
        self._head_started = self._in_turn = self._queued = False
        self._record: Record[Plan] | None = None
        self._body = NO_BODY
        self._exchange: Exchange | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._rest()

    def _rest(self) -> None:
        """Between two requests."""
        self._state = IDLE
        self._head_started = False
        stream = self.stream
        if stream.stalled:  # it is room that is waited for
            return
        timeout = self._limits.idle_timeout
        if self._gateway.draining:
            timeout = min(timeout, self._limits.drain_grace)
        stream.deadline = time.monotonic() + timeout

    def rearm(self) -> None:
        if self._state is BUSY and self._exchange is not None:
            self._exchange.rearm()
        elif self._state is SKIPPING:
            self.stream.deadline = time.monotonic() + self._limits.body_timeout
        elif self._state is IDLE and self._head_started:
            self.stream.deadline = time.monotonic() + self._limits.head_timeout
        elif self._state is IDLE:
            self._rest()

    def _open_record(self, plan: Plan, now: float, tracing: Tracing = NO_TRACING) -> Record[Plan]:
        self._record = record = Record(plan, now, tracing)
        self._body = NO_BODY
        self.close = plan.close or self._gateway.draining
        return record

    def _answer(self, answer: Answer) -> None:
        self._respond(HTTPStatus.OK, answer.fields, answer.body, bytes_out=len(answer.body))

    def _refuse_as(self, decision: Decision) -> None:
        answer = refused(decision.status, decision.text, decision.form, decision.retry_after)
        self._respond(decision.status, *answer)
        if decision.retry_after and self._state is not ENDED:
            self._pause = self._gateway.loop.call_later(PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self.advance()

    def advance(self) -> None:
        """Takes up the requests that are here."""
        raise NotImplementedError

    def _refuse(self, status: int, text: str, form: Form, reason: str) -> None:
        self._respond(status, *refused(status, text, form, 0), reason=reason)

    def _respond(self, status: int, fields: bytes, body: bytes, *, reason: str = "", bytes_out: int = 0) -> None:
        """The gateway's own response, whatever there is of the request's body."""
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
            self._part(whole=False)
            return
        self._state = SKIPPING
        self.stream.deadline = time.monotonic() + self._limits.body_timeout
        self._skip()

    def _skip(self) -> None:
        if not self._body.done:
            self._body.take(self.inbox)
        if self._body.done:
            self._rest()

    def _finish(self, reason: str) -> None:
        record, exchange = self._record, self._exchange
        self._record = self._exchange = None  # first: whatever is told of its end finds none
        self._head = b""
        if exchange is not None:
            exchange.over()
        if record is not None:
            record.finish(self._gateway, self._remote, reason)
            self.entry.count(record.bytes_in, record.bytes_out, record.plan.audit.who.key)

    def _part(self, *, whole: bool) -> None:
        """The end after a response. ``whole``: its request had come to its end.

        Else the client sends on, and is given the time to notice; but a service that stops waits for nobody so long.
        """
        brief = whole or self._gateway.draining
        self._end(min(SHORT_LINGER, self._limits.linger_timeout) if brief else self._limits.linger_timeout)

    def _end(self, linger: float = 0.0) -> None:
        """Nothing more is read as a request; what is queued still goes out. Who may be sending needs a ``linger``."""
        self._over()
        self.inbox.clear()
        self.stream.close(linger)

    def _over(self) -> None:
        self._state = ENDED
        self.stream.uncork()
        if self._queued:
            self._gateway.scheduler.forget(self.entry)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
