"""One allowed request and its response: bytes up, bytes down, neither faster than the other side takes them.

It is made once the decision is yes (:mod:`tlsproxy.proxy.rest.inspected` has those whose decision needs the body),
begins when the audit log and the upstream pool have room, and ends exactly once: done, failed (the client can still be
told), cut (it cannot, a part of the response is with it), or abandoned.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final, NoReturn

from tlsproxy.authz.access import Decision
from tlsproxy.errors import Overloaded, RequestError
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.record import Record, RequestBody
from tlsproxy.proxy.decision.attribution import account_of
from tlsproxy.proxy.decision.request_plan import READ_FIRST, Plan
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.proxy.rest.admitting import NO_UPSTREAM, SLOW_BODY, Admitting, Client
from tlsproxy.proxy.rest.responses import CONTINUE
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.upstream.connection import UpstreamConnection
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.http1_response import UNTIL_CLOSE, ResponseHead
from tlsproxy.wire.throughput import PARTS, Throughput
from tlsproxy.wire.tracing import NO_TRACING, id_line, upstream_lines

REPLAY: Final = 65_536
"""A request of at most this many bytes is kept until it is answered, to be sent again if that is safe."""


def _give_way(error: RequestError) -> NoReturn:
    raise error


class Exchange(Admitting):
    """``congested``: the upstream takes no more of the request for now."""

    __slots__ = (
        "_begun",
        "_came",
        "_first",
        "_gathering",
        "_head",
        "_ours",
        "_sent",
        "_upstream",
        "_whole_body",
        "body",
        "congested",
    )

    def __init__(
        self, gateway: Gateway, upstreams: Upstreams, client: Client, record: Record[Plan], body: RequestBody
    ) -> None:
        self._gateway = gateway
        self._upstreams = upstreams
        self._client = client
        self._late = NO_UPSTREAM
        self._ended = self.congested = self._gathering = self._begun = False
        self.record = record
        self.body = body
        self._upstream: UpstreamConnection | None = None
        self._sent: list[bytes] | None = None  # of the body, where it may be sent again
        self._head = self._ours = b""
        self._whole_body: Content = b""  # of a body that was read before the decision
        self._first = b""  # of a body, before there is an upstream for it
        self._came: Throughput | None = None

    def _connect(self) -> None:
        """No upstream waits for a small body."""
        plan, client = self.record.plan, self._client
        if self.body.done or plan.streamed or self.body.is_in(client.inbox):
            self._take_upstream()
            return
        self._gathering = True
        if plan.expects_continue:
            client.stream.write(CONTINUE)
        self._await_body()
        client.advance()

    def _gather(self) -> None:
        piece, taken = self.body.take(self._client.inbox)
        self.record.bytes_in += taken
        self._first += piece
        if self.body.done or len(self._first) >= READ_FIRST:
            self._gathering = False
            self._body_paused()
            self._take_upstream()

    def _take_upstream(self) -> None:
        self._client.stream.deadline = NEVER  # a connection that is dialled has a deadline of its own
        pool = self._upstreams.pool
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
            self._upstreams.pool.release(upstream, keep=True)
            return
        try:
            self._begin_on(upstream)
        except RequestError as error:
            self._client.exchange_failed(error)
        else:
            self._client.advance()

    @property
    def account(self) -> Account:
        return account_of(self._client.entry.account, self.record.plan.audit.who)

    @property
    def waits_for_client(self) -> bool:
        """For more of the request, or until more of the response is taken."""
        return self._client.stream.stalled or self.sending

    def give_way(self, error: RequestError) -> None:
        self._gateway.loop.call_soon(self._client.stream.tell, self._go_on, partial(_give_way, error))

    @property
    def sending(self) -> bool:
        """Whether what the client sends now belongs to this request, and is wanted."""
        return (self._gathering or self._upstream is not None) and not self.body.done and not self.congested

    @property
    def waiting(self) -> bool:
        """Whether no upstream has had any of it."""
        return not self._begun

    @property
    def whole(self) -> bool:
        """Whether the upstream has all of it."""
        upstream = self._upstream
        return self.body.done and upstream is not None and not upstream.stream.unsent

    @property
    def taken(self) -> bytes | None:
        """Body bytes as they came, where no upstream has had any of the request; None where they are not known."""
        return None if self._begun else self._first

    def request_sent(self) -> bool:
        return self.body.done

    def under(self, present: Plan) -> Plan | Decision:
        """The plan that it would go on by where its head is planned like this; or the refusal that it would meet."""
        return self.record.plan.under(present)

    def renew(self, present: Plan) -> Decision | None:
        """It goes on where its head is planned like this now; or the refusal that it meets."""
        outcome = self.under(present)
        if isinstance(outcome, Decision):
            return outcome
        self.record.plan = outcome
        return None

    # The request

    def _begin(self, upstream: UpstreamConnection) -> None:
        """Sends the head and what is here of the body. Raises as :meth:`RequestBody.take`, with nothing sent."""
        record, body, client = self.record, self.body, self._client
        plan, tail = record.plan, client.tail
        line = id_line(record.id)
        self._ours = line + plan.readable if plan.readable else line
        out = plan.upstream + line + tail
        if record.tracing is not NO_TRACING:
            out = plan.upstream + line + upstream_lines(record.tracing) + tail
        head = len(out)
        read, self._whole_body = self._whole_body, b""
        if len(read) <= REPLAY:
            out, read = out + read, b""
        if self._first:
            out, self._first = out + self._first, b""
        if client.inbox.data and not body.done:
            piece, taken = body.take(client.inbox)
            record.bytes_in += taken
            out += piece
        if plan.resend and len(out) <= REPLAY and not read and not plan.expects_continue:
            self._sent = [out[head:]]
        self._upstream = upstream
        self._begun = True
        whole = body.done
        upstream.begin(self, out, to_head=plan.to_head, whole=whole)
        if read:  # not copied to be sent with the head
            upstream.stream.write(read)
        if whole:
            client.stream.deadline = NEVER
        elif not self.congested:
            self._await_body()

    def send(self) -> None:
        """Passes on what has come of the body. Raises as :meth:`RequestBody.take` does, and Overloaded."""
        upstream = self._upstream
        if upstream is None:
            self._gather()
            return
        piece, taken = self.body.take(self._client.inbox)
        self.record.bytes_in += taken
        if self._sent is not None:
            self._sent = [*self._sent, piece] if self.record.bytes_in <= REPLAY else None
        upstream.stream.write(piece)
        if self.body.done or not self.congested:
            self._await()

    def _await(self) -> None:
        """Sets who is waited for: the client for its body, then the upstream for its response."""
        if self._upstream is None or self._client.stream.stalled:
            return
        if self.body.done:
            self._client.stream.deadline = NEVER
            self._upstream.await_response()
            return
        self._await_body()
        self._upstream.await_client()

    def _await_body(self) -> None:
        """It is the client that is waited for, as long as its body comes fast enough."""
        came = self._came
        if came is None:
            now, timeout = time.monotonic(), self._gateway.bounds.body_timeout
            self._came = came = Throughput(now, self.record.bytes_in, timeout)
        elif came.paused:
            came.resume(time.monotonic())
        self._late = SLOW_BODY
        self._client.stream.deadline = came.due

    def _body_paused(self) -> None:
        """It is not the client that is waited for."""
        if self._came is not None:
            self._came.pause(time.monotonic())

    def rearm(self) -> None:
        if self._came is not None and self._late is SLOW_BODY:
            due = time.monotonic() + self._gateway.bounds.body_timeout / PARTS
            self._client.stream.deadline = min(self._client.stream.deadline, due)
        else:
            super().rearm()

    def overdue(self) -> RequestError | None:
        bounds, came = self._gateway.bounds, self._came
        if self._late is not SLOW_BODY or came is None:
            return super().overdue()
        total = self.record.bytes_in + len(self._client.inbox)
        if came.too_low(time.monotonic(), total, bounds.body_timeout, bounds.min_data_rate):
            return super().overdue()
        self._await_body()
        return None

    def upstream_congested(self) -> None:
        self.congested = True
        self._body_paused()
        self._client.stream.deadline = NEVER
        self._client.reading_changed()

    def upstream_drained(self) -> None:
        self.congested = False
        self._await()
        self._client.advance()

    # The response

    def interim(self, head: ResponseHead) -> None:
        self._client.stream.write(head.restated(close=False))

    def response_head(self, head: ResponseHead) -> None:
        """It waits for what comes with it: one record, one send."""
        self.record.status = head.status
        client = self._client
        if head.length == UNTIL_CLOSE or not self.body.done:  # the next request could not be found
            client.close = True
        self._head = head.restated(self._ours, close=client.close)

    def response_body(self, data: bytes) -> None:
        self.record.bytes_out += len(data)
        out, self._head = self._head + data, b""
        if out:
            self._client.stream.write(out)

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

    # The ends that are not good

    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None:
        self._upstream = None
        self.congested = False
        if stale and self._sent is not None:
            self._send_again(self._sent)
        elif answered:
            self._client.exchange_cut(error)
        else:
            self._client.exchange_failed(error)

    def _send_again(self, sent: list[bytes]) -> None:
        """The read that is lost has not begun, and is not sent again a second time."""
        self._first, self._begun = b"".join(sent), False
        self._body_paused()
        self._client.present()
        if self._ended:
            return
        self._gateway.metrics.upstream_retry()
        self._client.stream.deadline = NEVER
        try:
            self._upstreams.pool.dial_again(self)
        except Overloaded as error:
            self._client.exchange_failed(error)

    def abandon(self) -> None:
        """The client is gone, or is told something else."""
        self._ended = True
        if self._upstream is None:
            self._upstreams.pool.forget(self)
        else:
            upstream, self._upstream = self._upstream, None
            upstream.discard()

    def over(self) -> None:
        """It has ended, in whichever way: what it held is given back, and what was to be done for it is not."""
        self._ended = True
