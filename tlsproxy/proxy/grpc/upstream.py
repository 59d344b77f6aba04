"""The upstream's side of a gRPC connection: one h2c connection (RFC 9113 §3.3) for one of a client.

The upstream is told that there is no dynamic table for its field blocks, so that any of them can be left out or put in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from tlsproxy.errors import (
    DeadlineExceeded,
    GrpcStatus,
    RequestError,
    UpstreamBroken,
    UpstreamKeyRefused,
    UpstreamTimeout,
)
from tlsproxy.proxy.core.scheduler import SLICE
from tlsproxy.proxy.grpc.call import Call, ResponsePart
from tlsproxy.proxy.grpc.call_timeouts import deadline_passed
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.grpc.settings import SettingsExchange
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.transport.dial import dial, dial_failure
from tlsproxy.qdrant.own_key import DENIED_CALLS, refuses_call
from tlsproxy.snapshot.nodes import Node
from tlsproxy.tls.client_context import ServerRefused
from tlsproxy.wire import http2
from tlsproxy.wire.field_block import FieldReader, write
from tlsproxy.wire.flow_control import overspent
from tlsproxy.wire.grpc import Said, said_of
from tlsproxy.wire.http2 import (
    ACK,
    ANY_DATA,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADERS,
    MAX_STREAM,
    WHOLE_FIELDS,
    Code,
    Frames,
    Http2Error,
    Kind,
)

MAX_BLOCK: Final = 65_536
"""Bytes of a response's or trailer's fields."""

# Statuses that gRPC's libraries make of a reset (PROTOCOL-HTTP2.md, "Errors").
_RESET: Final[dict[int, GrpcStatus]] = {
    Code.CANCEL: GrpcStatus.CANCELLED,
    Code.REFUSED_STREAM: GrpcStatus.UNAVAILABLE,
    Code.ENHANCE_YOUR_CALM: GrpcStatus.RESOURCE_EXHAUSTED,
}


class GrpcUpstream:
    """One connection to a node, for as long as its client's. ``blocked``: the client has left no room for what comes
    next. ``leaving``: it takes no more calls, and the client does not hear of it.

    ``stands``: the upstream has taken it; ``established``: its SETTINGS have come. Handlers of a frame return what goes
    to the client in its place, None for the frame itself.
    """

    __slots__ = (
        "_block",
        "_block_begin",
        "_frames",
        "_own_settings",
        "_queued",
        "_raw",
        "_reader",
        "blocked",
        "established",
        "leaving",
        "relay",
        "settings",
        "stands",
        "stream",
    )

    def __init__(self, relay: Relay[Call], settings: SettingsExchange, node: Node) -> None:
        """Raises OSError where no socket is to be had."""
        self.relay = relay
        self.settings = settings
        self._frames = Frames()
        self._reader = FieldReader(MAX_BLOCK, said_of, table=False)
        self._block: bytearray | None = None
        self._raw: list[bytes] = []
        self._block_begin = (0, 0)
        self.established = self.stands = self.blocked = self.leaving = self._queued = False
        self._own_settings = True
        gateway = relay.gateway
        upstream, bounds = node.api("grpc"), gateway.bounds
        self.stream = dial(
            gateway.loop, upstream.addresses, self, gateway.deadlines, bounds.upstream_write, upstream.tls
        )
        self.stream.deadline = time.monotonic() + bounds.connect_timeout

    def serve(self, relay: Relay[Call], settings: SettingsExchange) -> None:
        """Goes on with the calls of ``relay``."""
        self.relay, self.settings = relay, settings

    def write(self, data: bytes) -> None:
        self.stream.write(data)

    def discard(self) -> None:
        """Ends it. Without calls it ends well, by a close_notify over TLS."""
        if self.relay.calls or self.stream.unsent:
            self.stream.abort()
        else:
            self.stream.close(0.0)

    def reading_changed(self) -> None:
        if self.relay.stream.stalled or self.blocked or self._queued:
            self.stream.pause_reading()
        elif self.stream.established:
            self.stream.resume_reading()

    def unblock(self) -> None:
        """The client has room again for what it was not sent."""
        if self.blocked:
            self.blocked = False
            self.data_received(b"")
            self.reading_changed()

    # Callbacks of the stream

    def connected(self) -> None:
        self.relay.gateway.metrics.upstream_connect("ok")
        self.relay.gateway.metrics.negotiated("upstream", self.stream.negotiated)
        self.stream.deadline = time.monotonic() + self.relay.limits.response_timeout
        relay = self.relay
        relay.session.present()
        if relay.upstream is self:
            self.write(self.settings.greeting())
            self.stands = True
            relay.session.unblock()
        relay.session.settle()

    def data_received(self, data: bytes) -> None:
        scheduler = self.relay.gateway.scheduler
        if scheduler.waiting and self._reduces and scheduler.crowded(self.relay.entry):
            self._frames.add(data)
            self._wait_for_turn()
        else:
            self._turn(data)

    @property
    def _reduces(self) -> bool:
        """Whether an answer may be work: many that come together are reduced in one turn, and written together."""
        return any(call.reduction is not None for call in self.relay.calls.values())

    def _wait_for_turn(self) -> None:
        if not self._queued:
            self._queued = True
            self.relay.gateway.scheduler.add(self.relay.entry, self.stream, self._take_turn)
            self.reading_changed()

    def _turn(self, data: bytes) -> None:
        self.relay.session.present()
        relay = self.relay  # by what is published now
        window = relay.to_client
        credit = window.credit
        try:
            self._read(data)
        except (Http2Error, UpstreamBroken) as error:
            relay.session.upstream_lost(UpstreamBroken(f"The upstream sent what is not HTTP/2: {error}"))
            self.stream.abort()
        if relay.former:  # of which the client hears when it is its turn
            relay.give_back_upstream(credit - window.credit)
        if self._frames.more:
            self._wait_for_turn()
        if self.leaving and relay.upstream is self:
            self.leaving = False
            relay.session.part()
        relay.session.settle()

    def _take_turn(self) -> None:
        self._queued = False
        if not (self.stream.closed or self.blocked):
            self._turn(b"")
            self.reading_changed()

    def pause_writing(self) -> None:
        self.relay.session.reading_changed()

    def resume_writing(self) -> None:
        self.stream.deadline = NEVER if self.established else time.monotonic() + self.relay.limits.response_timeout
        self.relay.session.reading_changed()

    def rearm(self) -> None:
        bounds = self.relay.limits
        timeout = bounds.response_timeout if self.stream.established else bounds.connect_timeout
        self.stream.deadline = time.monotonic() + timeout

    def deadline_passed(self) -> None:
        if not self.stream.established:
            self.relay.gateway.connect_failed("timeout")
        self.relay.session.upstream_lost(UpstreamTimeout("The upstream did not answer in time"))
        self.stream.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self.relay.upstream is not self:
            return  # it was left
        lost: RequestError = UpstreamBroken("The upstream closed the connection")
        if not self.stream.established or isinstance(error, ServerRefused):
            self.relay.gateway.connect_failed("failed", error)
            lost = dial_failure(error)
        self.relay.session.upstream_lost(lost)

    # Frames

    def _read(self, data: bytes) -> None:  # noqa: C901, PLR0912, PLR0915 - the usual frames are seen to in place
        """Frames that pass as they are go in one piece, up to the next that does not, or that ends its call."""
        relay, frames = self.relay, self._frames
        calls, window, down = relay.calls, relay.to_client, relay.down
        begin = passed = told = latest = 0
        plain: Call | None = None
        now = time.monotonic()
        ready = self.established and self._block is None
        try:
            frames.begin(data)
            while frames.advance():
                what, stream, start, end = frames.what, frames.stream, frames.start, frames.end
                if stream != latest:
                    latest, plain = stream, calls.get(stream) if ready else None
                    if plain is not None and plain.reduction is not None:
                        plain = None
                if plain is None or (what >= ANY_DATA and (what | END_STREAM != WHOLE_FIELDS or relay.restates)):
                    down.append(frames.data[begin:start])
                    begin = passed = end
                    instead = self._other(what >> 8, what & 0xFF, stream, start, end)
                    down.append(frames.data[start:end] if instead is None else instead)
                    latest, ready = 0, self.established and self._block is None
                    if time.monotonic() - now > SLICE:  # an answer was reduced
                        frames.keep(end)
                        frames.more = True
                        break
                    continue
                if what < ANY_DATA:
                    status, size = None, end - start - HEADER
                    if window.room < size:
                        self._wait(start)
                        break
                    window.room -= size
                    window.credit -= size  # as Window.spent has it
                    if window.credit < 0:
                        raise overspent()
                    plain.record.bytes_out += size
                    told += 1
                else:
                    block = frames.data[start + HEADER : end]
                    said = self._reader.read(block)
                    status = said.status
                    if status in DENIED_CALLS and refuses_call(said.fields):
                        down.append(frames.data[begin:start])
                        begin, passed, latest = end, end, 0
                        plain.refuse(UpstreamKeyRefused())
                        continue
                    plain.answered = True
                    if said.beginning:
                        if said.of_a_proxy:
                            relay.dialler.failed(now)
                        if begin < start:
                            down.append(frames.data[begin:start])
                        begin = end
                        down.append(http2.headers(stream, (said.restated or block) + plain.id_block, what))
                plain.last_activity = now
                passed = end
                if what & END_STREAM:
                    down.append(frames.data[begin:end])
                    begin, latest = end, 0
                    plain.response_ended(status)
        finally:
            down.append(frames.data[begin:passed])
            relay.budgets.data_sent(told)

    def _wait(self, position: int) -> None:
        """The client has no room for what is to be read from there on."""
        self._frames.keep(position)
        self.blocked = True
        self.reading_changed()

    def _other(self, kind: int, flags: int, stream: int, start: int, end: int) -> bytes | None:
        data = self._frames.data
        if not self.established and kind != Kind.SETTINGS:
            raise UpstreamBroken("no SETTINGS")
        if (kind == CONTINUATION) != (self._block is not None):
            raise UpstreamBroken("a field block that is interrupted")
        http2.check(kind, flags, stream, end - start - HEADER)
        if kind == DATA:
            return self._data(flags, stream, start, end)
        if kind in {HEADERS, CONTINUATION}:
            return self._fields(flags, stream, data[start:end])
        payload = data[start + HEADER : end]
        if kind == Kind.WINDOW_UPDATE:
            return self._granted(stream, int.from_bytes(payload, "big") & http2.MAX_WINDOW)
        if kind == Kind.RST_STREAM:
            return self._reset(stream, int.from_bytes(payload, "big"))
        return self._settings(flags, payload) if kind == Kind.SETTINGS else self._control(kind, flags, payload)

    def _control(self, kind: int, flags: int, payload: bytes) -> bytes | None:
        if kind == Kind.PUSH_PROMISE:
            raise UpstreamBroken("a push that nobody asked for")
        if kind == Kind.GOAWAY:
            self.leaving = not self.relay.session.upstream_leaves(int.from_bytes(payload[:4], "big") & MAX_STREAM)
        if kind == Kind.PING and not flags & ACK:
            self.relay.up.append(http2.frame(Kind.PING, ACK, 0, payload))
        return None if kind == Kind.GOAWAY and not self.leaving else b""

    def _data(self, flags: int, stream: int, start: int, end: int) -> bytes | None:
        """DATA of a call whose answer is reduced, or of none any more."""
        relay = self.relay
        relay.to_client.spent(end - start - HEADER)
        call = relay.calls.get(stream)
        if call is None or call.reduction is None:
            relay.give_back_upstream(end - start - HEADER)
            return b""
        call.last_activity = time.monotonic()
        return self._looked_at(call, lambda answer: answer.data(self._frames.data, start, end, flags))

    def _fields(self, flags: int, stream: int, raw: bytes) -> bytes | None:
        if self._block is None:
            self._block = bytearray(http2.fragment(flags, raw[HEADER:]))
            self._block_begin = (stream, flags)
        elif stream != self._block_begin[0]:
            raise UpstreamBroken("a field block that is interrupted")
        else:
            self._block += raw[HEADER:]
        self._raw.append(raw)
        if len(self._block) > MAX_BLOCK:
            raise UpstreamBroken("a field block that is too large")
        if not flags & END_HEADERS:
            return b""
        block, self._block = bytes(self._block), None
        raw = b"".join(self._raw)
        self._raw.clear()
        said = self._reader.read(block)
        call = self.relay.calls.get(stream)
        if call is None:
            return b""
        ends = bool(self._block_begin[1] & END_STREAM)
        if said.beginning or self.relay.restates:
            stated = write(said.fields) if self.relay.restates else said.restated or block
            more = call.id_block if said.beginning else b""
            raw = http2.headers(stream, stated + more, self._block_begin[1])
        self._heard(call, said)
        if said.status in DENIED_CALLS and refuses_call(said.fields):
            call.refuse(UpstreamKeyRefused())
            return b""
        if call.reduction is not None:
            return self._looked_at(call, lambda answer: answer.fields(raw, said.fields, end=ends))
        call.answered = True
        if ends:
            call.response_ended(said.status)
        return raw

    def _heard(self, call: Call, said: Said) -> None:
        call.last_activity = time.monotonic()
        if said.of_a_proxy:
            self.relay.dialler.failed(call.last_activity)

    def _looked_at(self, call: Call, look: Callable[[ResponsePart], bytes | None]) -> bytes | None:
        try:
            return look(call.reduction) if call.reduction is not None else b""
        except RequestError as error:
            call.refuse(error)
            return b""

    def _settings(self, flags: int, payload: bytes) -> bytes | None:
        if flags & ACK and self._own_settings:  # those that it was dialled with
            self._own_settings = False
            return b""
        if flags & ACK:
            self.settings.upstream_acknowledged()
            return b""
        values = http2.parse_settings(payload)
        self.stream.deadline = NEVER
        first, self.established = not self.established, True
        return self.settings.from_upstream(values, first=first)

    def _granted(self, stream: int, size: int) -> bytes | None:
        relay = self.relay
        if stream == 0:
            shared = relay.to_upstream.granted(size)
            relay.session.unblock()
            relay.proceed()
            return http2.window_update(0, shared)
        call = relay.calls.get(stream)
        if call is None:
            return b""
        call.upstream_granted += size
        call.last_activity = time.monotonic()
        if relay.measured:
            relay.session.unblock()
            relay.proceed()
        if call.reading is not None and call.reading.rebuilds:
            call.reading.granted(size)
            if call.state.client_done:
                return b""
        if not relay.former:
            return None
        ahead = min(call.client_lead, size)
        call.client_lead -= ahead
        return http2.window_update(stream, size - ahead)

    def _reset(self, stream: int, code: int) -> bytes | None:
        relay = self.relay
        call = relay.calls.get(stream)
        if call is None:
            return b""
        if call.reduction is not None:
            if not call.reduction.whole:
                call.refuse(UpstreamBroken("The upstream ended the call"))
            return b""
        if not call.recorded and deadline_passed(call, time.monotonic()):
            call.refuse(DeadlineExceeded())
            return b""
        if not call.recorded:
            call.record.grpc_status = _RESET.get(code, GrpcStatus.INTERNAL).value
        call.forget("upstream_reset")
        return None
