"""Keep-alive connection to the upstream, which relays one response at a time.

Qdrant closes a connection after 5 idle seconds, sometimes just as the next request is sent on it. This race cannot be
avoided: the request learns that the connection was stale, and decides whether to be sent again.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final, Protocol

from tlsproxy.errors import RequestError, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from tlsproxy.proxy.core.balancer import NodeState
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.scheduler import Work
from tlsproxy.proxy.limits.fair_shares import Account, Holder, Share
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.transport.dial import dial, dial_failure
from tlsproxy.proxy.upstream.denied_response import DeniedResponse
from tlsproxy.qdrant.own_key import DENIED
from tlsproxy.tls.client_context import ServerRefused
from tlsproxy.wire.chunked import LAST_CHUNK, ChunkedBody, chunk
from tlsproxy.wire.http1 import CHUNKED, END
from tlsproxy.wire.http1_response import UNTIL_CLOSE, ResponseHead, parse_response

MAX_HEAD: Final = 65_536
MAX_INTERIM: Final = 16
"""Heads with a status 1xx before a final one, at most."""
_FINAL: Final = 200
_SWITCHING: Final = 101


class UpstreamRequest(Holder, Protocol):
    """Request, as an upstream connection sees it, with the ``account`` that its connection counts for.

    ``response_done`` and ``upstream_lost`` end it: ``stale`` for a reused connection that ended before any byte of a
    response, ``answered`` if the response's head has come. ``request_sent``: the request is written whole.
    ``repeatable``: it may be sent again as long as no byte of a response has come. ``later``: as in
    :class:`tlsproxy.proxy.core.scheduler.SlicedJob`.
    """

    @property
    def account(self) -> Account: ...
    @property
    def repeatable(self) -> bool: ...
    def request_sent(self) -> bool: ...
    def later(self, go_on: Work) -> None: ...
    def upstream_ready(self, upstream: UpstreamConnection) -> None: ...
    def interim(self, head: ResponseHead) -> None: ...
    def response_head(self, head: ResponseHead) -> None: ...
    def response_body(self, data: bytes) -> None: ...
    def response_done(self) -> None: ...
    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None: ...
    def upstream_congested(self) -> None: ...
    def upstream_drained(self) -> None: ...


class Keeper(Protocol):
    """Pool of a connection. ``keep``: another request may use it. ``failed``: it was lost before its request's answer
    was whole. ``elsewhere``: whether its request, of which nothing was sent, goes to another node.
    """

    def failed(self, upstream: UpstreamConnection, error: RequestError) -> None: ...
    def elsewhere(self, upstream: UpstreamConnection, request: UpstreamRequest) -> bool: ...
    def release(self, upstream: UpstreamConnection, *, keep: bool) -> None: ...
    def lost(self, upstream: UpstreamConnection) -> None: ...


class UpstreamConnection:
    """Connection with its current ``request``, also while it is dialled for one; None while idle.

    It leads to ``node``; those in ``tried`` have failed its request before. ``used`` counts responses. ``place`` is the
    request's share of all connections; None while idle. ``_buffer`` is the beginning of a head, or the rest of a body
    after a turn, with reading paused.
    """

    __slots__ = (
        "_asked",
        "_awaited",
        "_buffer",
        "_chunks",
        "_denied",
        "_gateway",
        "_head",
        "_keeper",
        "_paused",
        "_remaining",
        "_timeout",
        "_to_head",
        "node",
        "place",
        "request",
        "stream",
        "tried",
        "used",
    )

    def __init__(
        self,
        gateway: Gateway,
        keeper: Keeper,
        place: Share,
        request: UpstreamRequest,
        node: NodeState,
        tried: tuple[NodeState, ...] = (),
    ) -> None:
        """Raises OSError if no socket can be opened."""
        self._gateway = gateway
        self._keeper = keeper
        self.place: Share | None = place
        self.request: UpstreamRequest | None = request
        self.node = node
        self.tried = tried
        self.used = 0
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._remaining = 0
        self._chunks: ChunkedBody | None = None
        self._denied: DeniedResponse | None = None
        self._to_head = self._awaited = self._paused = False
        upstream, bounds = node.node.rest, gateway.bounds
        self._asked, self._timeout = 0.0, bounds.response_timeout
        self.stream = dial(gateway.loop, upstream.addresses, self, gateway.deadlines, self._lowest, upstream.tls)
        self.stream.deadline = time.monotonic() + bounds.connect_timeout

    def begin(self, request: UpstreamRequest, data: bytes, *, to_head: bool, whole: bool, asked: float = 0.0) -> None:
        """Sends the first bytes of a request on an established connection. ``whole``: they are all of it.

        ``asked``: seconds that its client gives it, as in :meth:`RuntimeLimits.response_wait`.
        """
        self.request = request
        self._buffer, self._head, self._chunks, self._denied = b"", None, None, None
        self._to_head, self._awaited, self._paused = to_head, whole, False
        bounds, self._asked = self._gateway.bounds, asked
        self._timeout = timeout = bounds.response_wait(asked) if asked else bounds.response_timeout
        stream = self.stream
        stream.deadline = time.monotonic() + timeout if whole else NEVER
        stream.write(data)

    def await_response(self) -> None:
        """Sets the upstream's deadline: the request is whole, or its next bytes wait for the upstream to read."""
        self._awaited = True
        self._await()

    def await_client(self) -> None:
        """Lifts the upstream's deadline: the client has to send the next bytes of the request."""
        self._awaited = False
        self._await()

    def _await(self) -> None:
        stream = self.stream
        if not stream.stalled:  # else the deadline is that of the write
            stream.deadline = time.monotonic() + self._timeout if self._awaited else NEVER

    def _lowest(self) -> tuple[float, float]:
        """Slowest rate at which the upstream may read the request: (seconds of the window, bytes per second)."""
        return self._timeout, self._gateway.bounds.min_data_rate

    def pause(self) -> None:
        """Stops reading: the client takes the response slower than it comes."""
        self._paused = True
        if not self.stream.stalled:
            self.stream.deadline = NEVER
        self.stream.pause_reading()

    def resume(self) -> None:
        self._paused = False
        self.await_response()
        if self._head is not None and self._buffer:
            self._wait_for_turn()
        else:
            self.stream.resume_reading()

    def discard(self) -> None:
        """Ends the connection, without a callback to its request. An idle one ends well, by a close_notify over TLS."""
        request, self.request = self.request, None
        if request is None and not self.stream.unsent:
            self.stream.close(0.0)
        else:
            self.stream.abort()

    # Callbacks of the stream

    def connected(self) -> None:
        self._gateway.metrics.upstream_connect("ok")
        self._gateway.metrics.negotiated("upstream", self.stream.negotiated)
        request, self.request = self.request, None
        if request is not None:
            request.upstream_ready(self)

    def data_received(self, data: bytes) -> None:
        request = self.request
        if request is None:  # unsolicited: it must not become the next request's response
            self.stream.abort()
            return
        head = self._head
        try:
            if head is None:
                self._read_head(request, self._buffer + data if self._buffer else data)
            else:
                self._read_body(request, head, self._buffer + data if self._buffer else data)
        except ValueError as error:
            self._fail(UpstreamBroken(f"The upstream sent what is not HTTP/1.1: {error}"))

    def _read_head(self, request: UpstreamRequest, data: bytes) -> None:
        for _ in range(MAX_INTERIM):
            self._buffer = data
            end = data.find(END)
            if end < 0:
                if len(data) > MAX_HEAD:
                    raise ValueError("a head without an end")
                self.await_response()
                return
            end += len(END)
            head = parse_response(data[:end], to_head=self._to_head)
            data = data[end:]
            if head.status >= _FINAL:
                break
            if head.status == _SWITCHING:
                raise ValueError("an upgrade that nobody asked for")
            request.interim(head)
        else:
            raise ValueError("too many interim responses")
        self._buffer = b""
        self._head = head
        if head.length == CHUNKED:
            self._chunks = ChunkedBody()
        self._remaining = head.length
        told = head.delimited() if head.length == UNTIL_CLOSE else head
        if head.status in DENIED:
            self._denied = DeniedResponse(request, told)
        else:
            request.response_head(told)
        self._read_body(request, head, data)

    def _read_body(self, request: UpstreamRequest, head: ResponseHead, data: bytes) -> None:
        surplus = 0
        if head.length >= 0:
            self._remaining = left = self._remaining - len(data)
            done = left <= 0
            if left < 0:
                data, surplus = data[:left], -left
        elif self._chunks is not None:
            size, whole = len(data), data
            data, end = self._chunks.feed(data) if data else (data, 0)
            done, surplus = self._chunks.done, size - end
            self._buffer = b"" if done else whole[end:]
        else:
            data, done = chunk(data), False
        if not done:
            self.await_response()
        if not self._pass_on(request, data):
            return
        if done:
            self._finish(request, keep=head.keep and not surplus)
        elif self._buffer:
            self.stream.pause_reading()
            if not self._paused:
                self._wait_for_turn()

    def _pass_on(self, request: UpstreamRequest, data: bytes) -> bool:
        """Whether the request goes on with this part of its response."""
        (request.response_body if self._denied is None else self._denied.body)(data)
        return self.request is request

    def _wait_for_turn(self) -> None:
        request = self.request
        if request is not None:
            request.later(partial(self.stream.tell, self._take_turn, request))

    def _take_turn(self, request: UpstreamRequest) -> None:
        if self.request is not request or self._paused:
            return
        self.data_received(b"")
        if self.request is request and not (self._paused or self._buffer):
            self.stream.resume_reading()

    def _finish(self, request: UpstreamRequest, *, keep: bool) -> None:
        """Hands the connection back. After an early response it still expects the request's rest: it is not reused."""
        self.used += 1
        self.request = None
        denied = self._denied
        self._keeper.release(self, keep=keep and request.request_sent())
        if denied is None:
            request.response_done()
        else:
            denied.done()

    def pause_writing(self) -> None:
        if self.request is not None:
            self.request.upstream_congested()

    def resume_writing(self) -> None:
        if self.request is not None:
            self.request.upstream_drained()

    def rearm(self) -> None:
        bounds, now = self._gateway.bounds, time.monotonic()
        if self.request is None:
            self.stream.deadline = now + bounds.kept_timeout
        elif self.stream.established:
            self._timeout = bounds.response_wait(self._asked)
            self._await()
        else:
            self.stream.deadline = now + bounds.connect_timeout

    def deadline_passed(self) -> None:
        if self.request is None:  # idle for too long
            self.discard()
        elif self.stream.established:
            if not self.stream.takes():  # else it is still taking the request
                self._fail(UpstreamTimeout("The upstream did not answer in time"))
        else:
            self._gateway.connect_failed("timeout")
            self._fail(UpstreamTimeout("The upstream could not be reached in time"))

    @property
    def moves(self) -> bool:
        """Whether it has a request that may be asked of another node: nothing was sent, or no answer has begun."""
        request = self.request
        return request is not None and (not self.stream.established or (self.untouched and request.repeatable))

    def give_up(self) -> None:
        self._fail(UpstreamUnreachable("The upstream's node serves no more"))

    def _fail(self, error: RequestError) -> None:
        request = self.request
        self.discard()
        if request is not None:
            self._tell_lost(request, error, stale=False)

    def _tell_lost(self, request: UpstreamRequest, error: RequestError, *, stale: bool) -> None:
        if not stale:
            self._keeper.failed(self, error)
            if not self.stream.established and self._keeper.elsewhere(self, request):
                return
        request.upstream_lost(error, stale=stale, answered=self._answered)

    def connection_lost(self, error: Exception | None) -> None:
        request, self.request = self.request, None
        try:
            if request is not None:
                self._lose(request, self._head, error)
        finally:  # last: a retry takes over the place first
            self._keeper.lost(self)

    def _lose(self, request: UpstreamRequest, head: ResponseHead | None, error: Exception | None) -> None:
        if not self.stream.established or isinstance(error, ServerRefused):
            self._gateway.connect_failed("failed", error)
            self._tell_lost(request, dial_failure(error), stale=False)
        elif head is not None and head.length == UNTIL_CLOSE and error is None:
            self.request = request
            if self._pass_on(request, LAST_CHUNK):
                self._finish(request, keep=False)
        else:
            error = UpstreamBroken("The upstream closed the connection before its response was whole")
            self._tell_lost(request, error, stale=self.untouched and self.used > 0)

    @property
    def untouched(self) -> bool:
        """Whether no byte of a response has come."""
        return self._head is None and not self._buffer

    @property
    def of_a_proxy(self) -> bool:
        """Whether the last response says that Qdrant cannot be had."""
        return self._head is not None and self._head.of_a_proxy

    @property
    def _answered(self) -> bool:
        """Whether the request has had the beginning of a response."""
        return self._head is not None if self._denied is None else self._denied.answered
