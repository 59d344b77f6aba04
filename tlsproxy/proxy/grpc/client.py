"""A client's connection that speaks gRPC: each call is decided, and relayed over an upstream connection of its own.

What is not a call's concern (settings, windows, pings) goes from end to end; what costs the receiver more than its
sender has a budget. A client that breaks HTTP/2 is told so by a GOAWAY, one that breaks gRPC by a status.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Final

from tlsproxy.errors import RequestError
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway, moved
from tlsproxy.proxy.core.scheduler import SLICE
from tlsproxy.proxy.grpc.call import FRAME_MEMORY
from tlsproxy.proxy.grpc.connection import DRAIN_PING, MEASURED, OWN, USUAL
from tlsproxy.proxy.grpc.draining_upstream import Former
from tlsproxy.proxy.grpc.streams import Streams
from tlsproxy.proxy.grpc.upstream import GrpcUpstream
from tlsproxy.proxy.grpc.upstream_dialer import Reach
from tlsproxy.proxy.transport.tls import TlsStream
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.wire import http2
from tlsproxy.wire.flow_control import Window, overspent
from tlsproxy.wire.http2 import (
    ACK,
    ANY_DATA,
    CONTINUATION,
    DATA,
    END_STREAM,
    FIRST_WINDOW,
    FLAGS,
    HEADER,
    HEADERS,
    KIND,
    MAX_STREAM,
    MAX_WINDOW,
    PING,
    PREFACE,
    PRIORITY,
    TABLE,
    WHOLE_FIELDS,
    Code,
    Http2Error,
    Kind,
    Setting,
)

if TYPE_CHECKING:
    from tlsproxy.snapshot.generation import Generation

TURN: Final = 64
"""Frames that do not just pass (calls that begin, messages that are read, windows) and are seen to in one turn. A PING
costs next to nothing, and a flood of them is to meet its budget before the upstream hears of it.
"""
MAX_LATE: Final = 8192
"""Frames that wait for the upstream's room, of one connection."""
MAX_HELD: Final = 262_144
"""Bytes of DATA that wait with their calls, those of one connection together; then its client has to."""


class GrpcConnection(Streams):
    """The owner of one TLS stream, from its handshake on."""

    __slots__ = ("_before", "_blocked", "_passing", "_preface", "_queued")

    def __init__(
        self,
        gateway: Gateway,
        upstreams: Upstreams,
        stream: TlsStream | Former,
        entry: Entry,
        when_ended: Callable[[], None],
    ) -> None:
        super().__init__(gateway, upstreams, stream, entry, when_ended)
        self.reach = Reach(self, upstreams.pool)
        self._preface = b""
        self._blocked = self._passing = self._queued = False
        self._before = MAX_STREAM
        if gateway.draining:
            self.drain()
        self.settle()

    def dial(self) -> None:
        """There is a call for the upstream. Raises OSError."""
        self._side = GrpcUpstream(self)

    # Another upstream

    def follow(self, former: Generation) -> None:
        generation, side = self.gateway.generation, self._side
        if self._ended or self.half or self.leaving or self.lost or not moved(former, generation, "grpc"):
            return
        if side is None:
            self.restate()
        elif not side.stands:
            self.restate()
            self._side = None
            side.discard()
            self.reach.dial_again()
            self.reading_changed()
        elif self.is_former:
            self._part(side)

    def _part(self, side: GrpcUpstream) -> None:
        """Leaves the upstream connection, to the calls that are there."""
        former = None
        if self.calls:
            former = Former(self)
            former.half = GrpcConnection(self.gateway, self._upstreams, former, copy(self.entry), lambda: None)
            former.half.succeed(self, side)
            self.formers.append(former)
            self.reach = Reach(self, self._upstreams.pool)
        else:
            side.discard()
            self.reach.close()
        self.begin_anew(former)
        self.rest()

    def begin_anew(self, former: Former | None = None) -> None:
        self._side = None
        for frame in self.late:
            if frame[KIND] == DATA:
                self.give_back(len(frame) - HEADER)
            else:  # an acknowledgement
                self.told.popleft()
        self.up, self.late, self.wanting, self.held = [], deque(), {}, 0
        window, self.to_upstream = self.to_upstream, Window()
        self.down.append(http2.window_update(0, self.to_upstream.begin(window.credit)))
        self.cautious, self._before = True, MAX_STREAM
        # A client without room on its streams could not say what is to be dialled for. One that has more keeps it: if
        # the next upstream gives as much, it is no further than the former one lets it.
        self.told.append(OWN)
        self.down.append(self.server_settings({**USUAL, Setting.INITIAL_WINDOW_SIZE: max(self._first, FIRST_WINDOW)}))
        if former is not None:
            former.begin()
        self.agree()
        self.unblock()
        self.reading_changed()

    def succeed(self, client: GrpcConnection, side: GrpcUpstream) -> None:
        """Takes over the calls, with all that they have towards their upstream."""
        self.half = self.greeted = self.leaving = self.cautious = True
        self._preface = PREFACE
        self.down.clear()
        self.entry.requests = self.entry.bytes_in = self.entry.bytes_out = 0
        self.budgets, self.over, self.last, self.swept = client.budgets, client.over, client.last, client.swept
        self.restates = client.restates
        self.calls, client.calls = client.calls, {}
        self.up, self.wanting, self.held = client.up, client.wanting, client.held
        self.late.extend(frame for frame in client.late if frame[KIND] == DATA)
        client.late = deque(frame for frame in client.late if frame[KIND] != DATA)
        self.to_upstream, self.heard_window = client.to_upstream, client.heard_window
        self._owed_upstream, client._owed_upstream = client._owed_upstream, 0
        self.acknowledge()
        self.to_client, client.to_client = client.to_client, client.to_client.again()
        self.reach, self._side = client.reach, side
        self.reach.client = side.client = self
        for call in self.calls.values():
            call.relay = self
        self.wait()

    def left_by(self, former: Former) -> None:
        """Its calls have ended, and the client has had all of their answers."""
        self.formers.remove(former)
        ended = former.half.entry
        self.entry.requests += ended.requests
        self.entry.bytes_in += ended.bytes_in
        self.entry.bytes_out += ended.bytes_out
        del former.half.reach  # which refers to it
        if not self._ended:
            self.agree()
            self.limit_streams()
            if not self.calls:
                self.rest()
            self.reading_changed()
            self.settle()

    # What the stream says

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        scheduler = self.gateway.scheduler
        if scheduler.waiting and len(self._preface) == len(PREFACE) and scheduler.crowded(self.entry):
            self.frames.add(data)
            self._wait_for_turn()
        else:
            self.turn(data)

    def _wait_for_turn(self) -> None:
        if not self._queued:
            self._queued = True
            self.gateway.scheduler.add(self.entry, self.stream, self._take_turn)
            self.reading_changed()

    def _take_turn(self) -> None:
        self._queued = False
        if not self._ended:
            self.turn(b"")
            self.reading_changed()

    def turn(self, data: bytes) -> None:
        self.now = time.monotonic()
        self.present()
        if self.cautious and not self.half:
            earliest = min(self.calls, default=MAX_STREAM)
            self.cautious = bool(self.late) or MEASURED in self.told or earliest <= self._before
        try:
            if len(self._preface) < len(PREFACE):
                data = self._prefaced(data)
            if self._ended:
                return
            self._read(data)
        except Http2Error as error:
            self.broken(error)
        if self.up and not self.reached and sum(map(len, self.up)) > MAX_HELD:
            self._crowded()
        elif self.frames.more and not self._ended:
            self._wait_for_turn()
        self.settle()
        if not self.calls and self.greeted and self.begun:
            self.wait()

    def _crowded(self) -> None:
        """More than may wait for an upstream connection waits for one, or for the decisions of its calls."""
        self._blocked = True
        self.reading_changed()
        for call in list(self.calls.values())[:1]:
            try:
                self.reach.ask(call)
            except RequestError as error:
                self.refuse(call, error)
                self.unblock()

    def pause_writing(self) -> None:
        self.reading_changed()

    def resume_writing(self) -> None:
        self.reading_changed()
        self.wait()

    def reading_changed(self) -> None:
        """Reads what can go on, in either direction; a client that takes no answers gets to ask no more."""
        side = self._side
        crowded = side is not None and side.stream.stalled
        crowded = crowded or any(not former.reading for former in self.formers)
        # A half's client has to be read, where it has no room for answers: it says there that it has.
        if (self.stream.stalled and not self.half) or self._blocked or self._queued or crowded:
            self.stream.pause_reading()
        else:
            self.stream.resume_reading()
        if side is not None:
            side.reading_changed()
        for former in list(self.formers):
            former.half.reading_changed()

    def unblock(self) -> None:
        if not self._passing:  # else who passes it on sees that there is room
            self._passing = True
            try:
                self._pass_late()
            except Http2Error as error:
                self.broken(error)
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
        frames, calls, window, up = self.frames, self.calls, self.to_upstream, self.up
        longest = self.longest
        begin = position = 0
        left = TURN
        ready = self._is_ready
        for what, stream, start, end in frames.cut(data):
            size = end - start - HEADER
            usual, call = False, None
            if what < ANY_DATA:
                call = calls.get(stream)
                if call is not None and call.waiting and self.held + size + FRAME_MEMORY > MAX_HELD:
                    self._wait(start)
                    break
                usual = ready and call is not None and what <= END_STREAM and 0 < size <= window.room
                window.credit -= size  # as Window.spent has it
                if window.credit < 0:
                    raise overspent()
                if usual and call is not None and call.plain and not call.client_done:
                    window.room -= size
                    call.record.bytes_in += size
                    position = end
                    if what:
                        call.client_done = True
                        call.touched = self.now
                        if call.upstream_done:
                            self.forget(call, "")
                    continue
            if begin < start:  # else the fields of a call may be what was said last, which can be taken back
                up.append(frames.data[begin:start])
            begin = position = end
            if ready and what in WHOLE_FIELDS and stream & 1 and stream > self.last and size <= longest:
                up.append(self.opened(stream, self.reader.read(frames.data[start + HEADER : end]), what))
            else:
                look = self._at_former if self.formers else self._frame
                instead = (
                    self.on_data(frames.data, what, stream, start, end)
                    if usual
                    else look(what >> 8, what & 0xFF, stream, start, end)
                )
                ready = self._is_ready
                if self._ended:
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
        return self.greeted and self._block is None and not (self.late or self.cautious) and self.reached

    def _wait(self, position: int) -> None:
        """Stops reading at ``position``: frames from there on wait for room."""
        self.frames.keep(position)
        self._blocked = True
        self.reading_changed()

    def _is_late(self, kind: int, flags: int, stream: int, size: int) -> bool:
        """Whether it has to wait for the upstream's room: then so does all DATA, and no acknowledgement passes it.

        What a client sent before it acknowledged a smaller window is measured by the one from before.
        """
        if kind == DATA:
            return bool(self.late) or self.to_upstream.room < size or (self.cautious and self._exceeds(stream, size))
        return kind == Kind.SETTINGS and bool(flags & ACK) and bool(self.late or self.held)

    def _exceeds(self, stream: int, size: int) -> bool:
        """Whether so much DATA is more than the upstream has room for on the stream."""
        call = self.calls.get(stream)
        return call is not None and not call.holds and call.room_here < size

    def _put_off(self, kind: int, flags: int, frame: bytes) -> bytes:
        if kind != DATA:
            self.budgets.control.spend(self.now)
        elif len(frame) == HEADER and not flags & END_STREAM:
            self.budgets.empty.spend(self.now)
        self.late.append(frame)
        if len(self.late) > MAX_LATE:
            raise Http2Error(Code.ENHANCE_YOUR_CALM, "too many frames beyond the upstream's room", "flood_late_frames")
        return b""

    def _pass_late(self) -> None:
        """What waited for room goes on, in its order."""
        late, window = self.late, self.to_upstream
        while late:
            frame = late[0]
            is_data, size = frame[KIND] == DATA, len(frame) - HEADER
            if (size > window.room) if is_data else self.held:
                return
            if is_data and self.cautious and self._exceeds(http2.stream_of(frame), size):
                return
            del late[0]
            if not is_data:
                self.acknowledged()
                continue
            instead = self.on_data(frame, frame[FLAGS], http2.stream_of(frame), 0, len(frame))
            self.up.append(frame if instead is None else instead)

    def _at_former(self, kind: int, flags: int, stream: int, start: int, end: int) -> bytes | None:
        """The same where there are calls at a former upstream, which have frames of their own."""
        former = None if kind in {HEADERS, CONTINUATION} or self._block is not None else self.former_of(stream)
        if former is None:
            return self._frame(kind, flags, stream, start, end)
        former.feed(self.frames.data[start:end])
        return b""

    def _frame(self, kind: int, flags: int, stream: int, start: int, end: int) -> bytes | None:
        """What goes upstream in its place; None for itself."""
        data = self.frames.data
        if not self.greeted and (kind != Kind.SETTINGS or flags & ACK):
            raise Http2Error(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS", "http2_preface")
        if (kind == CONTINUATION) != (self._block is not None) or (
            self._block is not None and stream != self._begun[0]
        ):
            raise Http2Error(Code.PROTOCOL_ERROR, "a field block that is interrupted")
        size = end - start - HEADER
        if kind == Kind.PRIORITY and size != PRIORITY and stream in self.calls:
            return self._wrong(self.calls[stream], Code.FRAME_SIZE_ERROR, "priority")
        http2.check(kind, flags, stream, size)
        if self._is_late(kind, flags, stream, size):
            return self._put_off(kind, flags, data[start:end])
        if kind == DATA:
            return self.on_data(data, flags, stream, start, end)
        payload = data[start + HEADER : end]
        if kind in {HEADERS, CONTINUATION}:
            return self.on_fields(flags, stream, payload)
        if kind == Kind.WINDOW_UPDATE:
            return self._granted(stream, int.from_bytes(payload, "big") & MAX_WINDOW)
        if kind == Kind.RST_STREAM:
            return self.on_reset(stream)
        return self._settings(flags, payload) if kind == Kind.SETTINGS else self._control(kind, flags, payload)

    def _control(self, kind: int, flags: int, payload: bytes) -> bytes | None:
        """Handles frames that are not for the other side: PING, PRIORITY, GOAWAY, and unknown types."""
        self.budgets.control.spend(self.now)
        if kind == Kind.PUSH_PROMISE:
            raise Http2Error(Code.PROTOCOL_ERROR, "a push from a client")
        if kind != Kind.PING:
            return b""
        if flags & ACK and payload == DRAIN_PING:
            self.drained()
            return b""
        if not flags & ACK:
            self.down.append(http2.frame(Kind.PING, ACK, 0, payload))
        return b""

    def _settings(self, flags: int, payload: bytes) -> bytes | None:
        if flags & ACK:
            self.budgets.control.spend(self.now)
            self.acknowledged()
            return b""
        self.budgets.settings.spend(self.now)
        values = http2.parse_settings(payload)
        told = http2.kept(values, (Setting.MAX_HEADER_LIST_SIZE,))
        halves = [former.half for former in self.formers]
        if values.get(Setting.HEADER_TABLE_SIZE, TABLE) < TABLE:
            for one in (self, *halves):
                one.restates = True
        first = values.get(Setting.INITIAL_WINDOW_SIZE)
        if first is not None:
            calls = (call for one in (self, *halves) for call in one.calls.values())
            if any(first + call.room_given > MAX_WINDOW for call in calls):  # RFC 9113 §6.9.2
                raise Http2Error(Code.FLOW_CONTROL_ERROR, "a stream's window of more than 2^31-1")
        self.to_client.initial.offer(first)
        self.settings |= told
        for relay in self.relays:
            relay.tell(told)
        if not self.greeted:
            self.greeted = True
            self.rest()
        self.agree()
        return b""

    def acknowledged(self) -> None:
        """The client has heard of the earliest SETTINGS that it has not acknowledged; else it acknowledges nothing."""
        told = self.told.popleft() if self.told else None
        if told is MEASURED:
            self._before = self.last
        elif told is self.to_upstream:
            self.up.append(http2.SETTINGS_ACK)
            self.to_upstream.initial.settle()
            self.proceed()

    def _granted(self, stream: int, size: int) -> bytes | None:
        self.budgets.updates.spend(self.now)
        if stream == 0:
            shared = self.to_client.granted(size)
            self.unblock_side()
            self.proceed()
            for former in list(self.formers):
                former.proceed()
            return http2.window_update(0, shared) if self.reached else b""
        call = self.calls.get(stream)
        if call is None:
            if stream > self.last or not stream & 1:
                raise Http2Error(Code.PROTOCOL_ERROR, "a frame on a stream that was never opened")
            return b""
        if not size:
            return self._wrong(call, Code.PROTOCOL_ERROR, "window_update")
        call.given += size
        if self.to_client.initial.least + call.room_given > MAX_WINDOW:  # RFC 9113 §6.9.1
            return self._wrong(call, Code.FLOW_CONTROL_ERROR, "window_update")
        if call.reduction is None:
            return None if call.opening else b""  # of one that goes no further the upstream never heard
        call.reduction.granted(size)
        return b""
