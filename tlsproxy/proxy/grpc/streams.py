"""The streams of a client's gRPC connection: opening of a call on one, and the effect of its frames."""

from __future__ import annotations

from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.errors import BadRequest, Overloaded, RequestError
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.decision.call_plan import Asked, CallPlan
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.messages import FollowedMessage, RebuiltMessage, ReducedAnswer
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.grpc.settings import SettingsExchange
from tlsproxy.proxy.grpc.states import LEAVING, REQUEST_WHOLE, STREAM_CLOSED, STREAM_OPEN
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.wire import http2
from tlsproxy.wire.field_block import Fields, literals
from tlsproxy.wire.grpc_metadata import CallFields
from tlsproxy.wire.http2 import DATA, END_STREAM, FLAGS, HEADER, MAX_WINDOW, PADDED, Code, Http2Error, StreamError
from tlsproxy.wire.tracing import upstream_block

LEAST_ROOM: Final = http2.FIRST_WINDOW // 2
"""Bytes that the client may send before there is an upstream connection: the rest of what any upstream has room for."""


class ClientStreams:
    """Calls of one connection, by their streams. ``now`` is when the client's latest frames came (monotonic clock).

    The calls of one turn are decided at one moment: the gateway's clock is read for the first of them. Handlers of a
    frame return what goes upstream in its place, None for the frame itself.
    """

    __slots__ = ("_relay", "_settings", "_standing", "_tail", "_upstreams", "_when", "now")

    def __init__(self, relay: Relay[Call], settings: SettingsExchange, upstreams: Upstreams) -> None:
        self._relay = relay
        self._settings = settings
        self._upstreams = upstreams
        self.now = self._when = 0.0
        self._standing = relay.entry.standing
        address = relay.entry.address.encode()
        self._tail = literals(((b"x-forwarded-for", address), (b"x-forwarded-proto", b"https")))

    def begin_turn(self, now: float) -> None:
        self.now, self._when = now, 0.0

    def open(self, stream: int, fields: CallFields, flags: int) -> bytes:
        """The frames of a new call that go upstream now."""
        relay, standing = self._relay, self._standing
        done = flags & END_STREAM != 0
        relay.last_stream = stream
        relay.budgets.streams.spend(self.now)
        gateway, session = relay.gateway, relay.session
        now = self._when = self._when or gateway.clock.now()
        calls = gateway.calls
        ended = standing.ended(gateway.generation, now)
        principal = standing.principal
        repeated, tracing, deadline = fields
        settings = self._settings
        open_calls = len(relay.calls) + (settings.calls_at_formers if settings.formers else 0)
        if session.state is LEAVING or open_calls >= settings.max_streams:
            plan = calls.unreadable(principal, Overloaded("No more calls are taken on this connection"))
            return self._turn_away(Record(plan, now, tracing), stream, done=done, code=Code.REFUSED_STREAM)
        try:
            plan = self._planned(repeated, now, ended, done=done)
        except StreamError as error:
            record = Record(calls.unreadable(principal, error), now, tracing)
            return self._turn_away(record, stream, done=done, code=error.code)
        record = Record(plan, now, tracing)
        if plan.limit_check is not None and ended is None:
            record.count(gateway, plan.limit_check, relay.entry)
            plan = record.plan
        if not plan.block and record.admit(gateway):
            relay.refuse_stream(record, stream, done=done)
        else:  # where a refusal's line has no room it waits for that, like a call that is made
            call = Call(relay, stream, record, self.now)
            call.state = REQUEST_WHOLE if done else STREAM_OPEN
            if plan.block:
                return self._begin(call, plan, deadline)
            self._admit(call)
        if ended is not None:
            session.leave()
        return b""

    def _planned(self, fields: Fields, now: float, ended: Decision | None, *, done: bool) -> CallPlan:
        """``ended``: why the connection may make no calls any more. Raises StreamError."""
        calls, principal = self._relay.gateway.calls, self._standing.principal
        plan = calls.of(principal, fields, now) if ended is None else calls.make(principal, fields, now, ended=ended)
        if done and plan.length:
            raise StreamError(Code.PROTOCOL_ERROR, "a content-length where there is no content")
        return plan

    def _turn_away(self, record: Record[CallPlan], stream: int, *, done: bool, code: Code) -> bytes:
        self._relay.budgets.wrong.spend(self.now)
        self._relay.refuse_stream(record, stream, done=done, code=code)
        return b""

    def _begin(self, call: Call, plan: CallPlan, deadline: bytes) -> bytes:
        """``deadline``: what the upstream is told of it, as a part of a field block."""
        if plan.asked is not None:
            self._look(call, plan.asked, unread=plan.unread)
        if not self._admit(call):
            if self._relay.session.upstream_error is not None:
                self._relay.session.leave()
            return b""
        call.deadline = deadline
        opening = self._opening(call, END_STREAM if call.state.client_done else 0)
        call.opening = opening
        return opening

    def _opening(self, call: Call, flags: int) -> bytes:
        """The frames that tell the upstream of it."""
        record, origin = call.record, self._relay.origin
        block = record.plan.block
        if origin:
            block = block.replace(self._relay.gateway.calls.origin, origin, 1)
        block += call.deadline + call.id_block + upstream_block(record.tracing) + self._tail
        opening = http2.headers(call.stream, block, flags)
        return opening if call.reduction is None else opening + call.reduction.room

    def restate(self) -> None:
        """Nothing was sent of the calls that there are: they are told of as the upstream is to hear it now."""
        up = self._relay.up
        for call in self._relay.calls.values():
            if call.opening and call.record.plan.block:
                former, call.opening = call.opening, self._opening(call, call.opening[FLAGS])
                up[:] = [call.opening if frame is former else frame for frame in up]

    def _admit(self, call: Call) -> bool:
        """Whether it goes on, now or later."""
        relay = self._relay
        session = relay.session
        if not relay.calls:
            session.begin_sweeps(self.now)
        relay.calls[call.stream] = call
        try:
            lost = session.upstream_error
            if lost is not None:
                raise lost
            call.admit(self._upstreams.points)
            if call.record.plan.unread and call.state.client_done:
                raise BadRequest("The request ended before its message")
            call.begin()
        except RequestError as error:
            call.refuse(error)
            return False
        return True

    def _look(self, call: Call, asked: Asked, *, unread: bool) -> None:
        """Gives the call the parts that look at its messages."""
        if unread and asked.rewritten:
            call.reading = RebuiltMessage(call, asked, self._upstreams)
        elif unread:
            call.reading = FollowedMessage(call, asked)
        if asked.listing is not None:
            call.reduction = ReducedAnswer(call, asked.listing)

    # Frames

    def on_data(self, data: bytes, flags: int, stream: int, start: int, end: int) -> bytes | None:
        """``data[start:end]`` is the frame: what goes upstream in its place, None for itself."""
        size = end - start - HEADER
        call = self._relay.calls.get(stream)
        if call is None or call.state.client_done:
            self._relay.give_back(size)
            return self._late(stream, call, size, flags)
        if padded := flags & PADDED:
            data, flags = self._without_padding(data[start + HEADER : end], flags, stream)
            start, end = 0, len(data)
            size = end - HEADER
        if not size and not flags & END_STREAM:
            self._relay.budgets.empty.spend(self.now)
        call.record.bytes_in += size
        if call.breaks_content_length(flags):
            self._relay.give_back(size)
            return self.end_wrong(call, Code.PROTOCOL_ERROR, "content_length")
        if flags & END_STREAM:
            call.state = call.state.client_ends
            call.last_activity = self.now
        try:
            instead = call.request(data, start, end, flags)
            if not self._relay.connected and self._relay.to_upstream.room < LEAST_ROOM:
                self._relay.dialler.ask(call)  # its message says late what it is about
        except RequestError as error:
            self._relay.give_back(size)
            call.refuse(error)
            return b""
        if instead is None:
            self._relay.passed(size)
        if call.state is STREAM_CLOSED:
            call.forget("")
        return data if instead is None and padded else instead

    def _late(self, stream: int, call: Call | None, size: int, flags: int) -> bytes:
        """DATA on a stream that is over. The body of a request that was no call is dropped, up to a limit."""
        relay = self._relay
        left = relay.ended_streams.get(stream) if call is None else None
        if not left:
            return self._stray(stream, call)
        relay.budgets.late.spend(self.now)
        relay.ended_streams[stream] = left = 0 if flags & END_STREAM else max(0, left - size)
        if not flags & END_STREAM:
            relay.down.append(http2.window_update(stream, size) if left else http2.reset(stream, Code.NO_ERROR))
        return b""

    def _without_padding(self, payload: bytes, flags: int, stream: int) -> tuple[bytes, int]:
        """The frame without it, and its flags: not every server takes padding, as gRPC's C library does not."""
        content = http2.unpadded(flags, payload)
        padding = len(payload) - len(content)
        self._relay.give_back(padding)
        if not flags & END_STREAM:
            self._relay.down.append(http2.window_update(stream, padding))
        return http2.frame(DATA, flags ^ PADDED, stream, content), flags ^ PADDED

    def _stray(self, stream: int, call: Call | None) -> bytes:
        """A frame on a stream that its client has ended (RFC 9113 §5.1), or that has just ended here."""
        if call is not None:
            self.end_wrong(call, Code.STREAM_CLOSED, "stream_closed")
        elif stream in self._relay.ended_streams:
            self._relay.budgets.late.spend(self.now)
        elif stream > self._relay.last_stream or not stream & 1:
            raise Http2Error(Code.PROTOCOL_ERROR, "a frame on a stream that was never opened")
        else:
            raise Http2Error(Code.STREAM_CLOSED, "a frame on a stream that is closed")
        return b""

    def end_wrong(self, call: Call, code: Code, reason: str) -> bytes:
        """A stream error (RFC 9113 §5.4.2). Nothing goes upstream in the frame's place."""
        self._relay.budgets.wrong.spend(self.now)
        call.reset(code, reason)
        return b""

    def on_fields(self, stream: int, fields: CallFields, flags: int) -> bytes:
        """A whole field block: of a new call, as nothing else has one."""
        call = self._relay.calls.get(stream)
        if call is not None and not call.state.client_done:
            return self.end_wrong(call, Code.PROTOCOL_ERROR, "request_trailers")  # gRPC has none
        if call is not None or stream <= self._relay.last_stream or not stream & 1:
            return self._stray(stream if stream & 1 else 0, call)
        return self.open(stream, fields, flags)

    def on_trailers(self, stream: int) -> None:
        """Fields on a stream of a half's, which have been read: gRPC has none, and after its end nothing may come."""
        call = self._relay.calls[stream]
        code = Code.STREAM_CLOSED if call.state.client_done else Code.PROTOCOL_ERROR
        self.end_wrong(call, code, "request_trailers")
        self._relay.session.settle()

    def on_reset(self, stream: int) -> bytes | None:
        call = self._relay.calls.get(stream)
        if call is None:
            if stream > self._relay.last_stream or not stream & 1:
                raise Http2Error(Code.PROTOCOL_ERROR, "a frame on a stream that was never opened")
            self._relay.budgets.late.spend(self.now)
            self._relay.ended_streams.pop(stream, None)
            return b""
        self._relay.budgets.resets.spend(self.now)
        call.state = call.state.client_ends
        known = bool(call.opening) and not call.taken_back()
        call.forget("client_cancelled")
        self._relay.ended_streams.pop(stream, None)  # whoever resets a stream sends nothing more on it (RFC 9113 §5.1)
        return None if known else b""

    def on_window_update(self, stream: int, size: int) -> bytes | None:
        """Room on the stream towards the client."""
        call = self._relay.calls.get(stream)
        if call is None:
            if stream > self._relay.last_stream or not stream & 1:
                raise Http2Error(Code.PROTOCOL_ERROR, "a frame on a stream that was never opened")
            return b""
        if not size:
            return self.end_wrong(call, Code.PROTOCOL_ERROR, "window_update")
        call.client_granted += size
        if self._relay.to_client.initial.least + call.room_given > MAX_WINDOW:  # RFC 9113 §6.9.1
            return self.end_wrong(call, Code.FLOW_CONTROL_ERROR, "window_update")
        if call.reduction is None:
            return None if call.opening else b""  # of one that goes no further the upstream never heard
        call.reduction.granted(size)
        return b""
