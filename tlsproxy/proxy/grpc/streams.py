"""The streams of a client's gRPC connection: how a call is opened on one, and what its frames do to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.errors import BadRequest, Overloaded, RequestError
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.decision.call_plan import Asked, CallPlan
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.connection import Life
from tlsproxy.proxy.grpc.draining_upstream import SWEEP, Former
from tlsproxy.proxy.grpc.messages import Reading, Rebuilding, Reduction
from tlsproxy.proxy.transport.tls import TlsStream
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.wire import http2
from tlsproxy.wire.field_block import FieldReader, Fields, literals
from tlsproxy.wire.grpc_metadata import CallFields, split_fields
from tlsproxy.wire.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FLAGS,
    HEADER,
    PADDED,
    Code,
    Frames,
    Http2Error,
    StreamError,
)
from tlsproxy.wire.tracing import upstream_block

LEAST_ROOM: Final = http2.FIRST_WINDOW // 2
"""Bytes that the client may send before there is an upstream connection: the rest of what any upstream has room for."""
MAX_FRAGMENTS: Final = 32
"""Frames of one field block."""


class Streams(Life):
    """``frames`` are the client's, ``now`` is when the latest came (monotonic clock)."""

    __slots__ = (
        "_begun",
        "_block",
        "_fragments",
        "_reads",
        "_since",
        "_standing",
        "_tail",
        "_upstreams",
        "frames",
        "now",
        "reader",
    )

    def __init__(
        self,
        gateway: Gateway,
        upstreams: Upstreams,
        stream: TlsStream | Former,
        entry: Entry,
        when_ended: Callable[[], None],
    ) -> None:
        super().__init__(gateway, stream, entry, when_ended)
        self.frames = Frames()
        self.now = 0.0
        self._upstreams = upstreams
        self._standing = entry.standing
        self._tail = literals(((b"x-forwarded-for", entry.address.encode()), (b"x-forwarded-proto", b"https")))
        self.reader = FieldReader(self.longest, split_fields)
        self._block: bytearray | None = None
        self._fragments = 0
        self._begun = (0, 0)
        self._since = 0.0
        self._reads = -1

    @property
    def begun(self) -> bool:
        """Whether there is the beginning of a frame, or of a field block."""
        return self._block is not None or self.frames.waiting

    def stands_still(self, now: float) -> bool:
        frames = self.frames
        if not (self.begun and self.stream.reading):
            return False
        limit = self.limits.head_timeout
        if self._block is None:
            if frames.reads != self._reads:  # another frame than the last time
                self._since, self._reads = now, frames.reads
            kind, stream = frames.begun or (None, 0)
            if kind == DATA:
                limit = self.limits.body_timeout
                call = self.calls.get(stream)
                if call is not None and not call.client_done:  # which has a rate to keep up
                    return False
        return now - self._since > limit

    def received(self, call: Call) -> int:
        """Bytes that have come of its message."""
        partly = len(self.frames.rest) if self.frames.begun == (DATA, call.stream) else 0
        return call.record.bytes_in + partly

    def on_data(self, data: bytes, flags: int, stream: int, start: int, end: int) -> bytes | None:
        """``data[start:end]`` is the frame: what goes upstream in its place, None for itself."""
        size = end - start - HEADER
        call = self.calls.get(stream)
        if call is None or call.client_done:
            self.give_back(size)
            return self._stray(stream, call)
        if padded := flags & PADDED:
            data, flags = self._without_padding(data[start + HEADER : end], flags, stream)
            start, end = 0, len(data)
            size = end - HEADER
        if not size and not flags & END_STREAM:
            self.budgets.empty.spend(self.now)
        call.record.bytes_in += size
        if call.belied(flags):
            self.give_back(size)
            return self._wrong(call, Code.PROTOCOL_ERROR, "content_length")
        if flags & END_STREAM:
            call.client_done = True
            call.touched = self.now
        try:
            instead = call.request(data, start, end, flags)
            if not self.connected and self.to_upstream.room < LEAST_ROOM:
                self.reach.ask(call)  # its message says late what it is about
        except RequestError as error:
            self.give_back(size)
            self.refuse(call, error)
            return b""
        if instead is None:
            self.passed(size)
        if call.client_done and call.upstream_done:
            self.forget(call, "")
        return data if instead is None and padded else instead

    def _without_padding(self, payload: bytes, flags: int, stream: int) -> tuple[bytes, int]:
        """The frame without it, and its flags: not every server takes padding, as gRPC's C library does not."""
        content = http2.unpadded(flags, payload)
        padding = len(payload) - len(content)
        self.give_back(padding)
        if not flags & END_STREAM:
            self.down.append(http2.window_update(stream, padding))
        return http2.frame(DATA, flags ^ PADDED, stream, content), flags ^ PADDED

    def _stray(self, stream: int, call: Call | None) -> bytes:
        """A frame on a stream that its client has ended (RFC 9113 §5.1), or that has just ended here."""
        if call is not None:
            self._wrong(call, Code.STREAM_CLOSED, "stream_closed")
        elif stream in self.over:
            self.budgets.late.spend(self.now)
        elif stream > self.last or not stream & 1:
            raise Http2Error(Code.PROTOCOL_ERROR, "a frame on a stream that was never opened")
        else:
            raise Http2Error(Code.STREAM_CLOSED, "a frame on a stream that is closed")
        return b""

    def _wrong(self, call: Call, code: Code, reason: str) -> bytes:
        """A stream error (RFC 9113 §5.4.2). Nothing goes upstream in the frame's place."""
        self.budgets.wrong.spend(self.now)
        self.reset(call, code, reason)
        return b""

    def on_fields(self, flags: int, stream: int, payload: bytes) -> bytes:
        if self._block is None:
            self._block, self._fragments, self._begun = bytearray(http2.fragment(flags, payload)), 0, (stream, flags)
            self._since = self.now
        else:
            self._block += payload
            self._fragments += 1
        if self._fragments > MAX_FRAGMENTS or len(self._block) > self.longest:
            raise Http2Error(Code.ENHANCE_YOUR_CALM, "a field block that is too large", "flood_fields")
        if not flags & END_HEADERS:
            return b""
        block, self._block = bytes(self._block), None
        fields = self.reader.read(block)
        if self.formers and (former := self.former_of(stream)) is not None:
            former.half.on_trailers(stream)
            return b""
        call = self.calls.get(stream)
        if call is not None and not call.client_done:
            return self._wrong(call, Code.PROTOCOL_ERROR, "request_trailers")  # gRPC has none
        if call is not None or stream <= self.last or not stream & 1:
            return self._stray(stream if stream & 1 else 0, call)
        return self.opened(stream, fields, self._begun[1])

    def on_trailers(self, stream: int) -> None:
        """Fields on a stream of a half's, which have been read: gRPC has none, and after its end nothing may come."""
        call = self.calls[stream]
        code = Code.STREAM_CLOSED if call.client_done else Code.PROTOCOL_ERROR
        self._wrong(call, code, "request_trailers")
        self.settle()

    def opened(self, stream: int, fields: CallFields, flags: int) -> bytes:
        """A new call: what of it goes upstream now."""
        done = flags & END_STREAM != 0
        self.last = stream
        self.budgets.streams.spend(self.now)
        gateway, standing = self.gateway, self._standing
        now = gateway.clock.now()
        calls = gateway.calls
        ended = standing.ended(gateway.generation, now)
        principal = standing.principal
        repeated, tracing, deadline = fields
        elsewhere = self.elsewhere if self.formers else 0
        if self.leaving or len(self.calls) + elsewhere >= self.most:
            plan = calls.unreadable(principal, Overloaded("No more calls are taken on this connection"))
            return self._turned_away(Record(plan, now, tracing), stream, done=done, code=Code.REFUSED_STREAM)
        try:
            plan = self._planned(repeated, now, ended, done=done)
        except StreamError as error:
            record = Record(calls.unreadable(principal, error), now, tracing)
            return self._turned_away(record, stream, done=done, code=error.code)
        record = Record(plan, now, tracing)
        if plan.toll is not None and ended is None:
            record.count(gateway, plan.toll, self.entry)
            plan = record.plan
        if not plan.block and record.admit(gateway):
            self.refuse_stream(record, stream, done=done)
        else:  # where a refusal's line has no room it waits for that, like a call that is made
            call = Call(self, stream, record, self.now)
            call.client_done = done
            if plan.block:
                return self._begin(call, plan, deadline)
            self._admit(call)
        if ended is not None:
            self.leave()
        return b""

    def _planned(self, fields: Fields, now: float, ended: Decision | None, *, done: bool) -> CallPlan:
        """``ended``: why the connection may make no calls any more. Raises StreamError."""
        calls, principal = self.gateway.calls, self._standing.principal
        plan = calls.of(principal, fields, now) if ended is None else calls.make(principal, fields, now, ended=ended)
        if done and plan.length:
            raise StreamError(Code.PROTOCOL_ERROR, "a content-length where there is no content")
        return plan

    def _turned_away(self, record: Record[CallPlan], stream: int, *, done: bool, code: Code) -> bytes:
        self.budgets.wrong.spend(self.now)
        self.refuse_stream(record, stream, done=done, code=code)
        return b""

    def _begin(self, call: Call, plan: CallPlan, deadline: bytes) -> bytes:
        """``deadline``: what the upstream is told of it, as a part of a field block."""
        if plan.asked is not None:
            self._look(call, plan.asked, unread=plan.unread)
        if not self._admit(call):
            if self.lost is not None:
                self.leave()
            return b""
        call.deadline = deadline
        opening = self._opening(call, END_STREAM if call.client_done else 0)
        call.opening = opening
        return opening

    def _opening(self, call: Call, flags: int) -> bytes:
        """What tells the upstream of it."""
        record = call.record
        block = record.plan.block + call.deadline + call.id_block + upstream_block(record.tracing) + self._tail
        opening = http2.headers(call.stream, block, flags)
        return opening if call.reduction is None else opening + call.reduction.room

    def restate(self) -> None:
        """Nothing was sent of the calls that there are: they are told of as the upstream is to hear it now."""
        for call in self.calls.values():
            if call.opening and call.record.plan.block:
                former, call.opening = call.opening, self._opening(call, call.opening[FLAGS])
                self.up[:] = [call.opening if one is former else one for one in self.up]

    def _admit(self, call: Call) -> bool:
        """Whether it goes on, now or later."""
        if not self.calls:
            self.swept = self.now
            self.stream.deadline = self.now + SWEEP
        self.calls[call.stream] = call
        try:
            if self.lost is not None:
                raise self.lost
            call.admit(self._upstreams.points)
            if call.record.plan.unread and call.client_done:
                raise BadRequest("The request ended before its message")
            call.begin()
        except RequestError as error:
            self.refuse(call, error)
            return False
        return True

    def _look(self, call: Call, asked: Asked, *, unread: bool) -> None:
        """Gives the call the parts that look at its messages."""
        if unread and asked.conditions:
            call.reading = Rebuilding(call, asked, self._upstreams.facts)
        elif unread:
            call.reading = Reading(call, asked)
        if asked.listing is not None:
            call.reduction = Reduction(call, asked.listing)

    def on_reset(self, stream: int) -> bytes | None:
        call = self.calls.get(stream)
        if call is None:
            if stream > self.last or not stream & 1:
                raise Http2Error(Code.PROTOCOL_ERROR, "a frame on a stream that was never opened")
            self.budgets.late.spend(self.now)
            self.over.pop(stream, None)
            return b""
        self.budgets.resets.spend(self.now)
        call.client_done = True
        known = bool(call.opening) and not self.taken_back(call)
        self.forget(call, "client_cancelled")
        self.over.pop(stream, None)  # whoever resets a stream sends nothing more on it (RFC 9113 §5.1)
        return None if known else b""
