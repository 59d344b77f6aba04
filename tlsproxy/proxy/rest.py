"""A client's connection on the REST port: one request after the other, each decided before a byte of it goes upstream.

The states, and what may come next:

    IDLE      no request, or the beginning of a head                      → BUSY, SKIPPING, ENDED
    BUSY      an exchange goes on                                         → IDLE, SKIPPING, ENDED
    SKIPPING  refused and answered; the small rest of its body is dropped → IDLE, ENDED
    ENDED     nothing that comes is looked at any more

A connection whose next request cannot be found (a body of unknown length was refused, a response began before the
request was whole) is closed after its answer, so that no byte is ever read as what it was not sent as.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from tlsproxy.authz.audit import json_string
from tlsproxy.errors import (
    BadRequest,
    BodyTooLarge,
    Form,
    HeadTooLarge,
    RequestError,
    RequestTimeout,
)
from tlsproxy.proxy.exchange import Exchange
from tlsproxy.proxy.gateway import Gateway
from tlsproxy.proxy.plan import Plan
from tlsproxy.proxy.record import Record, RequestBody, handshake_refused
from tlsproxy.proxy.refusal import refusal
from tlsproxy.proxy.standing import Standing
from tlsproxy.proxy.tlsstream import TlsStream
from tlsproxy.proxy.upstream import Pool, Upstream
from tlsproxy.tls.peer import peer_of
from tlsproxy.wire.chunked import ChunkedError
from tlsproxy.wire.http1 import END, has_bare_lf

SMALL_REST: Final = 65_536
"""A refused body of at most this many bytes is dropped and the connection kept; a larger one costs the connection."""
CLIENT_GONE: Final = 499
"""The status that is written down for a request whose client did not wait for one (nginx's convention)."""


class State(Enum):
    IDLE = 0
    BUSY = 1
    SKIPPING = 2
    ENDED = 3


class RestConnection:
    """The owner of one TLS stream. ``address`` is the client's, without its port."""

    stream: TlsStream

    def __init__(
        self, gateway: Gateway, pool: Pool, address: str, when_ended: Callable[[RestConnection], None]
    ) -> None:
        self.address = address
        self.close = False
        self._gateway = gateway
        self._pool = pool
        self._when_ended = when_ended
        self._remote = json_string(address)
        self._limits = gateway.generation.config.limits
        self._tail = b"x-forwarded-for: %b\r\nx-forwarded-proto: https\r\n\r\n" % address.encode()
        self._state = State.IDLE
        self._opened = time.monotonic()
        self._standing: Standing | None = None
        self._buffer = b""
        self._head_started = False
        self._record: Record | None = None
        self._body = _NO_BODY
        self._exchange: Exchange | None = None

    # The handshake

    def handshake_done(self, tls: ssl.SSLObject) -> None:
        self._gateway.metrics.handshake("ok", time.monotonic() - self._opened)
        self._standing = Standing(self._gateway.generation, peer_of(tls), time.time())
        self._rest()

    def handshake_failed(self, reason: str, detail: str) -> None:
        self._state = State.ENDED
        handshake_refused(self._gateway, self.address, time.monotonic() - self._opened, reason, detail)

    # Requests

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None and self._exchange.sending:
            self._feed(self._exchange, data)
        elif self._state is not State.ENDED:
            self._buffer = self._buffer + data if self._buffer else data
            if self._state is State.SKIPPING:
                self._skip()
            self._advance()

    def _rest(self) -> None:
        """Between two requests."""
        self._state = State.IDLE
        self._head_started = False
        self.stream.deadline = time.monotonic() + self._limits.idle_timeout
        if self._gateway.draining and not self._buffer:
            self._end()

    def _advance(self) -> None:
        """Takes up the requests that are here, one at a time; a loop, since a client may send thousands at once."""
        while self._state is State.IDLE and self._buffer and not self.stream.stalled and not self.stream.closed:
            end = self._buffer.find(END) + len(END)
            if end < len(END) and len(self._buffer) <= self._limits.max_head_size:
                self._await_head()
                break
            if end < len(END) or end > self._limits.max_head_size:
                self._unreadable(HeadTooLarge(f"The request head exceeds {self._limits.max_head_size} bytes"))
                break
            head, self._buffer = self._buffer[:end], self._buffer[end:]
            self._request(head)
        self.reading_changed()

    def _await_head(self) -> None:
        if has_bare_lf(self._buffer):
            self._unreadable(BadRequest("Header lines end with CRLF"))
        elif not self._head_started:
            self._head_started = True
            self.stream.deadline = time.monotonic() + self._limits.head_timeout

    def _current(self) -> tuple[Standing, float]:
        """The client's standing under the current generation, and the time."""
        standing, now = self._standing, time.time()
        if standing is None:
            raise RuntimeError("a request before the handshake")
        if standing.generation is not self._gateway.generation:
            standing.renew(self._gateway.generation, now)
        return standing, now

    def _unreadable(self, error: RequestError) -> None:
        standing, now = self._current()
        self._open_record(self._gateway.plans.unreadable(standing.principal, error), now)
        self._fail(error)

    def _open_record(self, plan: Plan, now: float) -> Record:
        self._record = record = Record(plan, now)
        self._body = _NO_BODY
        self.close = plan.close or self._gateway.draining
        return record

    def _request(self, head: bytes) -> None:
        standing, now = self._current()
        ended, plans = standing.ended(now), self._gateway.plans
        plan = (
            plans.of(standing.principal, head) if ended is None else plans.make(standing.principal, head, ended=ended)
        )
        record = self._open_record(plan, now)
        self.close |= ended is not None
        try:
            self._body = RequestBody(plan.length, plan.limit)
        except BodyTooLarge as error:
            self.close = True
            self._fail(error)
            return
        decision = plan.decision
        if not decision.allowed:
            self._refuse(decision.status, decision.text, decision.form)
        else:
            self._state = State.BUSY
            self._exchange = exchange = Exchange(self._gateway, self._pool, self, record, self._body)
            try:
                exchange.admit()
            except RequestError as error:
                self._fail(error)

    def upstream_ready(self, upstream: Upstream) -> None:
        exchange = self._exchange
        if exchange is None:
            raise RuntimeError("an upstream for nobody")
        try:
            self._buffer = exchange.begin(upstream, self._tail, self._buffer)
        except (ChunkedError, BodyTooLarge) as error:
            upstream.discard()
            self._fail(_body_error(error))
        self.reading_changed()

    def _feed(self, exchange: Exchange, data: bytes) -> None:
        try:
            self._buffer = exchange.send(data)
        except (ChunkedError, BodyTooLarge) as error:
            self._fail(_body_error(error))
        self.reading_changed()

    def reading_changed(self) -> None:
        """Reads on, unless the upstream takes no more of a body, or a client runs ahead of its answers."""
        exchange = self._exchange
        ahead = len(self._buffer) > self._limits.max_head_size and (self._state is State.BUSY or self.stream.stalled)
        if ahead or (exchange is not None and exchange.congested):
            self.stream.pause_reading()
        else:
            self.stream.resume_reading()

    # Responses

    def exchange_done(self) -> None:
        self._finish("")
        if self.close:
            self._end()
            return
        self._rest()
        if self.stream.stalled:
            self.stream.deadline = time.monotonic() + self._limits.write_timeout
        if self._buffer:
            self._advance()

    def exchange_failed(self, error: RequestError) -> None:
        self._fail(error)
        self._advance()

    def exchange_cut(self, error: RequestError) -> None:
        self._finish(error.reason)
        self._state = State.ENDED
        self.stream.abort()

    def _fail(self, error: RequestError) -> None:
        """Ends the current request with what went wrong, where the client can still be told."""
        if self._exchange is not None:
            self._exchange.abandon()
        if self._record is not None and self._record.status:
            self.exchange_cut(error)
        else:
            self._refuse(error.status, str(error), error.form, error.reason)

    def _refuse(self, status: int, text: str, form: Form, reason: str = "") -> None:
        record = self._record
        if record is None:
            raise RuntimeError("a refusal without a request")
        record.status = status
        plan, left = record.plan, self._body.left
        keep = not self.close and plan.framed and left is not None and left <= SMALL_REST
        keep = keep and (left == 0 or not plan.expects_continue)  # such a client may send its body, or the next head
        self.stream.write(refusal(status, text, form, close=not keep, to_head=plan.to_head))
        self._finish(reason)
        if not keep:
            self._end()
            return
        self._state = State.SKIPPING
        self.stream.deadline = time.monotonic() + self._limits.body_timeout
        self._skip()

    def _skip(self) -> None:
        if not self._body.done:
            self._buffer = self._buffer[self._body.feed(self._buffer)[1] :]
        if self._body.done:
            self._rest()

    def _finish(self, reason: str) -> None:
        if self._record is not None:
            self._record.finish(self._gateway, self._remote, reason)
        self._record = self._exchange = None

    def _end(self) -> None:
        """Nothing more is read as a request; what is queued still goes out."""
        self._state = State.ENDED
        self._buffer = b""
        self.stream.close()

    # What else the stream says

    def pause_writing(self) -> None:
        self.stream.deadline = time.monotonic() + self._limits.write_timeout
        if self._exchange is not None:
            self._exchange.pause_response()

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.resume_response()
        elif self._state is State.IDLE:
            self._rest()
            self._advance()

    def deadline_passed(self) -> None:
        if self._standing is None:
            self.handshake_failed("handshake_timeout", "")
            self.stream.abort()
        elif self.stream.stalled:
            self._cut("client_stalled")
        elif self._exchange is not None:
            self._fail(self._exchange.overdue)
            self._advance()
        elif self._state is State.IDLE and self._head_started:
            self._unreadable(RequestTimeout("The request head came too slowly"))
        else:
            self._end()

    def drain(self) -> None:
        """The service stops: idle connections end now, busy ones after their response."""
        self.close = True
        if self._state is State.IDLE and not self._buffer and self._standing is not None:
            self._end()

    def _cut(self, reason: str) -> None:
        if self._exchange is not None:
            self._exchange.abandon()
        if self._record is not None:
            self._record.status = self._record.status or CLIENT_GONE
        self._finish(reason)
        self._state = State.ENDED
        self.stream.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self._standing is None and self._state is not State.ENDED:
            self.handshake_failed("client_closed", str(error or ""))
        foreseen = error is None or isinstance(error, OSError)  # an SSLError is one
        self._cut("client_gone" if foreseen else "internal_error")
        self._gateway.metrics.connection_closed()
        self._when_ended(self)


_NO_BODY: Final = RequestBody(0, 0)


def _body_error(error: ChunkedError | BodyTooLarge) -> RequestError:
    return error if isinstance(error, BodyTooLarge) else BadRequest(f"Malformed chunked body: {error}")
