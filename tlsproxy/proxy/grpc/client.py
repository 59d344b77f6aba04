"""The client's side of a gRPC connection: its frames, which pass, or are handled here.

Settings, windows and pings that are no call's go from end to end; frames that cost their receiver more than their
sender have a budget. A client that breaks HTTP/2 is told so by a GOAWAY, one that breaks gRPC by a status.
"""

from __future__ import annotations

import time
from typing import Final

from tlsproxy.errors import RequestError
from tlsproxy.proxy.core.scheduler import SLICE
from tlsproxy.proxy.grpc.call import FRAME_MEMORY, Call
from tlsproxy.proxy.grpc.draining_upstream import Former
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.grpc.settings import SettingsExchange
from tlsproxy.proxy.grpc.states import ENDED, STREAM_CLOSED
from tlsproxy.proxy.grpc.streams import ClientStreams
from tlsproxy.wire import http2
from tlsproxy.wire.field_block import FieldReader
from tlsproxy.wire.flow_control import overspent
from tlsproxy.wire.grpc_metadata import split_fields
from tlsproxy.wire.http2 import (
    ACK,
    ANY_DATA,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLAGS,
    HEADER,
    HEADERS,
    KIND,
    MAX_WINDOW,
    PING,
    PREFACE,
    PRIORITY,
    WHOLE_FIELDS,
    Code,
    Frames,
    Http2Error,
    Kind,
)

TURN: Final = 64
"""Frames that do not just pass (calls that begin, messages that are read, windows) and are seen to in one turn. A PING
costs next to nothing, and a flood of them is to meet its budget before the upstream hears of it.
"""
MAX_DEFERRED: Final = 8192
"""Frames that wait for the upstream's room, of one connection."""
MAX_PENDING: Final = 262_144
"""Bytes of DATA that wait with their calls, those of one connection together; then its client has to."""
MAX_FRAGMENTS: Final = 32
"""Frames of one field block."""
DRAIN_PING: Final = b"tlsproxy"


class ClientFrames:
    """``greeted``: the client's SETTINGS have come. ``now`` is when its latest frames came (monotonic clock).

    ``formers`` are the former upstreams that have calls of the client's. Handlers of a frame return what goes upstream
    in its place, None for the frame itself.
    """

    __slots__ = (
        "_block",
        "_block_begin",
        "_blocked",
        "_formers",
        "_fragments",
        "_frames",
        "_passing",
        "_preface",
        "_queued",
        "_reader",
        "_reads",
        "_relay",
        "_settings",
        "_since",
        "greeted",
        "now",
        "streams",
    )

    def __init__(
        self, relay: Relay[Call], settings: SettingsExchange, streams: ClientStreams, formers: list[Former]
    ) -> None:
        self._relay = relay
        self._settings = settings
        self.streams = streams
        self._formers = formers
        self._frames = Frames()
        self._reader = FieldReader(settings.max_head_size, split_fields)
        self._preface = b""
        self.greeted = False
        self.now = 0.0
        self._block: bytearray | None = None
        self._block_begin = (0, 0)
        self._fragments = 0
        self._since = 0.0
        self._reads = -1
        self._blocked = self._passing = self._queued = False

    def skip_greeting(self) -> None:
        """Its preface and SETTINGS have been read elsewhere."""
        self._preface = PREFACE
        self.greeted = True

    # Turns

    def data_received(self, data: bytes) -> None:
        relay = self._relay
        scheduler = relay.gateway.scheduler
        if scheduler.waiting and len(self._preface) == len(PREFACE) and scheduler.crowded(relay.entry):
            self._frames.add(data)
            self._wait_for_turn()
        else:
            self.turn(data)

    @property
    def paused(self) -> bool:
        """Whether no more is to be read: what was read waits for its turn, or for room."""
        return self._blocked or self._queued

    def _wait_for_turn(self) -> None:
        if not self._queued:
            self._queued = True
            self._relay.gateway.scheduler.add(self._relay.entry, self._relay.stream, self._take_turn)
            self._relay.session.reading_changed()

    def _take_turn(self) -> None:
        self._queued = False
        if self._relay.session.state is not ENDED:
            self.turn(b"")
            self._relay.session.reading_changed()

    def turn(self, data: bytes) -> None:
        self.now = time.monotonic()
        self.streams.begin_turn(self.now)
        relay, session = self._relay, self._relay.session
        session.present()
        if relay.measured and not relay.former:
            relay.measured = self._settings.still_measured
        try:
            if len(self._preface) < len(PREFACE):
                data = self._prefaced(data)
            if session.state is ENDED:
                return
            self._read(data)
        except Http2Error as error:
            session.broken(error)
        if relay.up and not relay.reached and sum(map(len, relay.up)) > MAX_PENDING:
            self._crowded()
        elif self._frames.more and session.state is not ENDED:
            self._wait_for_turn()
        session.settle()
        if not relay.calls and self.greeted and self.begun:
            session.wait()

    def _crowded(self) -> None:
        """More than may wait for an upstream connection waits for one, or for the decisions of its calls."""
        self._blocked = True
        self._relay.session.reading_changed()
        for call in list(self._relay.calls.values())[:1]:
            try:
                self._relay.dialler.ask(call)
            except RequestError as error:
                call.refuse(error)
                self.unblock()

    def unblock(self) -> None:
        """There may be room for what the client was not let say."""
        if not self._passing:  # else who passes it on sees that there is room
            self._passing = True
            try:
                self._pass_deferred()
            except Http2Error as error:
                self._relay.session.broken(error)
            finally:
                self._passing = False
        if self._blocked:
            self._blocked = False
            self._wait_for_turn()

    # Frames

    def _prefaced(self, data: bytes) -> bytes:
        """RFC 9113 §3.4. Returns what follows the preface."""
        taken = len(PREFACE) - len(self._preface)
        self._preface += data[:taken]
        if not PREFACE.startswith(self._preface):
            raise Http2Error(Code.PROTOCOL_ERROR, "no HTTP/2 preface", "http2_preface")
        return data[taken:]

    def _read(self, data: bytes) -> None:  # noqa: C901 - the usual frames are seen to in place
        relay, streams, frames = self._relay, self.streams, self._frames
        calls, window, up = relay.calls, relay.to_upstream, relay.up
        longest = self._settings.max_head_size
        begin = position = 0
        left = TURN
        ready = self._is_ready
        frames.begin(data)
        while frames.advance():
            what, stream, start, end = frames.what, frames.stream, frames.start, frames.end
            size = end - start - HEADER
            usual, call = False, None
            if what < ANY_DATA:
                call = calls.get(stream)
                if call is not None and call.waiting and relay.pending_size + size + FRAME_MEMORY > MAX_PENDING:
                    self._wait(start)
                    break
                usual = ready and call is not None and what <= END_STREAM and 0 < size <= window.room
                window.credit -= size  # as Window.spent has it
                if window.credit < 0:
                    raise overspent()
                if usual and call is not None and call.plain and not call.state.client_done:
                    window.room -= size
                    call.record.bytes_in += size
                    position = end
                    if what:
                        call.state = call.state.client_ends
                        call.last_activity = self.now
                        if call.state is STREAM_CLOSED:
                            call.forget("")
                    continue
            if begin < start:  # else the fields of a call may be what was said last, which can be taken back
                up.append(frames.data[begin:start])
            begin = position = end
            if (
                ready
                and what | END_STREAM == WHOLE_FIELDS
                and stream & 1
                and stream > relay.last_stream
                and size <= longest
            ):
                up.append(streams.open(stream, self._reader.read(frames.data[start + HEADER : end]), what))
            else:
                look = self._at_former if self._formers else self._frame
                instead = (
                    streams.on_data(frames.data, what, stream, start, end)
                    if usual
                    else look(what >> 8, what & 0xFF, stream, start, end)
                )
                ready = self._is_ready
                if relay.session.state is ENDED:
                    return
                up.append(frames.data[start:end] if instead is None else instead)
            left -= what >> 8 != PING
            if not left or (what < ANY_DATA and time.monotonic() - self.now > SLICE):  # of what was read
                frames.keep(end)
                frames.more = True
                break
        up.append(frames.data[begin:position])

    @property
    def _is_ready(self) -> bool:
        """Whether frames that pass may go in one piece."""
        return (
            self.greeted
            and self._block is None
            and not (self._relay.deferred or self._relay.measured)
            and self._relay.reached
        )

    def _wait(self, position: int) -> None:
        """Stops reading at ``position``: frames from there on wait for room."""
        self._frames.keep(position)
        self._blocked = True
        self._relay.session.reading_changed()

    def _must_wait(self, kind: int, flags: int, stream: int, size: int) -> bool:
        """Whether it has to wait for the upstream's room: then so does all DATA, and no acknowledgement passes it.

        What a client sent before it acknowledged a smaller window is measured by the one from before.
        """
        if kind == DATA:
            return (
                bool(self._relay.deferred)
                or self._relay.to_upstream.room < size
                or (self._relay.measured and self._exceeds(stream, size))
            )
        return kind == Kind.SETTINGS and bool(flags & ACK) and bool(self._relay.deferred or self._relay.pending_size)

    def _exceeds(self, stream: int, size: int) -> bool:
        """Whether so much DATA is more than the upstream has room for on the stream."""
        call = self._relay.calls.get(stream)
        return call is not None and not call.holds_data and call.room_here < size

    def _defer(self, kind: int, flags: int, frame: bytes) -> bytes:
        if kind != DATA:
            self._relay.budgets.control.spend(self.now)
        elif len(frame) == HEADER and not flags & END_STREAM:
            self._relay.budgets.empty.spend(self.now)
        self._relay.deferred.append(frame)
        if len(self._relay.deferred) > MAX_DEFERRED:
            raise Http2Error(Code.ENHANCE_YOUR_CALM, "too many frames beyond the upstream's room", "flood_late_frames")
        return b""

    def _pass_deferred(self) -> None:
        """Passes deferred frames on, in their order."""
        deferred, window = self._relay.deferred, self._relay.to_upstream
        while deferred:
            frame = deferred[0]
            is_data, size = frame[KIND] == DATA, len(frame) - HEADER
            if (size > window.room) if is_data else self._relay.pending_size:
                return
            if is_data and self._relay.measured and self._exceeds(http2.stream_of(frame), size):
                return
            del deferred[0]
            if not is_data:
                self._settings.acknowledged()
                continue
            instead = self.streams.on_data(frame, frame[FLAGS], http2.stream_of(frame), 0, len(frame))
            self._relay.up.append(frame if instead is None else instead)

    def _former_of(self, stream: int) -> Former | None:
        """The former upstream that has the call."""
        return next((former for former in self._formers if stream in former.half.relay.calls), None)

    def _at_former(self, kind: int, flags: int, stream: int, start: int, end: int) -> bytes | None:
        """The same where there are calls at a former upstream, which have frames of their own."""
        former = None if kind in {HEADERS, CONTINUATION} or self._block is not None else self._former_of(stream)
        if former is None:
            return self._frame(kind, flags, stream, start, end)
        former.feed(self._frames.data[start:end])
        return b""

    def _frame(self, kind: int, flags: int, stream: int, start: int, end: int) -> bytes | None:
        """The frame that goes upstream in its place; None for itself."""
        data = self._frames.data
        if not self.greeted and (kind != Kind.SETTINGS or flags & ACK):
            raise Http2Error(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS", "http2_preface")
        if (kind == CONTINUATION) != (self._block is not None) or (
            self._block is not None and stream != self._block_begin[0]
        ):
            raise Http2Error(Code.PROTOCOL_ERROR, "a field block that is interrupted")
        size = end - start - HEADER
        if kind == Kind.PRIORITY and size != PRIORITY and stream in self._relay.calls:
            return self.streams.end_wrong(self._relay.calls[stream], Code.FRAME_SIZE_ERROR, "priority")
        http2.check(kind, flags, stream, size)
        if self._must_wait(kind, flags, stream, size):
            return self._defer(kind, flags, data[start:end])
        if kind == DATA:
            return self.streams.on_data(data, flags, stream, start, end)
        payload = data[start + HEADER : end]
        if kind in {HEADERS, CONTINUATION}:
            return self._on_fields(flags, stream, payload)
        if kind == Kind.WINDOW_UPDATE:
            return self._granted(stream, int.from_bytes(payload, "big") & MAX_WINDOW)
        if kind == Kind.RST_STREAM:
            return self.streams.on_reset(stream)
        return self._client_settings(flags, payload) if kind == Kind.SETTINGS else self._control(kind, flags, payload)

    def _control(self, kind: int, flags: int, payload: bytes) -> bytes | None:
        """Handles frames that are not for the other side: PING, PRIORITY, GOAWAY, and unknown types."""
        self._relay.budgets.control.spend(self.now)
        if kind == Kind.PUSH_PROMISE:
            raise Http2Error(Code.PROTOCOL_ERROR, "a push from a client")
        if kind != Kind.PING:
            return b""
        if flags & ACK and payload == DRAIN_PING:
            self._relay.session.drained()
            return b""
        if not flags & ACK:
            self._relay.down.append(http2.frame(Kind.PING, ACK, 0, payload))
        return b""

    def _client_settings(self, flags: int, payload: bytes) -> bytes:
        budgets = self._relay.budgets
        if flags & ACK:
            budgets.control.spend(self.now)
            self._settings.acknowledged()
            return b""
        budgets.settings.spend(self.now)
        self._settings.client_settings(http2.parse_settings(payload))
        if not self.greeted:
            self.greeted = True
            self._relay.session.rest()
        self._settings.agree()
        return b""

    def _granted(self, stream: int, size: int) -> bytes | None:
        self._relay.budgets.updates.spend(self.now)
        if stream == 0:
            shared = self._relay.to_client.granted(size)
            self._relay.unblock_upstream()
            self._relay.proceed()
            for former in list(self._formers):
                former.proceed()
            return http2.window_update(0, shared) if self._relay.reached else b""
        return self.streams.on_window_update(stream, size)

    # Field blocks

    def _on_fields(self, flags: int, stream: int, payload: bytes) -> bytes:
        if self._block is None:
            self._block, self._fragments, self._block_begin = (
                bytearray(http2.fragment(flags, payload)),
                0,
                (stream, flags),
            )
            self._since = self.now
        else:
            self._block += payload
            self._fragments += 1
        if self._fragments > MAX_FRAGMENTS or len(self._block) > self._settings.max_head_size:
            raise Http2Error(Code.ENHANCE_YOUR_CALM, "a field block that is too large", "flood_fields")
        if not flags & END_HEADERS:
            return b""
        block, self._block = bytes(self._block), None
        fields = self._reader.read(block)
        if self._formers and (former := self._former_of(stream)) is not None:
            former.half.client.streams.on_trailers(stream)
            return b""
        return self.streams.on_fields(stream, fields, self._block_begin[1])

    # Waits

    @property
    def begun(self) -> bool:
        """Whether there is the beginning of a frame, or of a field block."""
        return self._block is not None or self._frames.waiting

    def stands_still(self, now: float) -> bool:
        frames = self._frames
        if not (self.begun and self._relay.stream.reading):
            return False
        limit = self._relay.limits.head_timeout
        if self._block is None:
            if frames.reads != self._reads:  # another frame than the last time
                self._since, self._reads = now, frames.reads
            kind, stream = frames.begun or (None, 0)
            if kind == DATA:
                limit = self._relay.limits.body_timeout
                call = self._relay.calls.get(stream)
                if call is not None and not call.state.client_done:  # which has a rate to keep up
                    return False
        return now - self._since > limit

    def unfinished_data(self, stream: int) -> int:
        """Bytes of a DATA frame of the stream that has not come whole."""
        return len(self._frames.rest) if self._frames.begun == (DATA, stream) else 0
