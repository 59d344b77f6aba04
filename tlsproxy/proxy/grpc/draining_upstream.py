"""The calls of a gRPC connection that go on at a former upstream, while the next ones go to the present one.

They keep what they had, a connection of their own towards that upstream, with its windows and budgets: a half, behind
the client's connection. :class:`Former` is its client's stream. Frames of its streams pass as they are in both
directions; what concerns the whole connection ends here:

- The connection's windows end here in both directions. The client has room again for what it sends as soon as that is
  on its way to the former upstream, whose grants it does not hear of, or waits here with little else; the upstream has
  room again for what it sends as soon as that is read. What is sent to the client uses its room like frames of the
  gateway's own; where there is none, frames wait here and nothing more is read.
- SETTINGS of the client are told to both. Those of the former upstream are not told to the client, whose streams have
  windows by the present one's: the half measures them itself (``cautious``), and counts how far the client is ahead.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from tlsproxy.errors import UpstreamChanged
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.grpc.session import GrpcSession
from tlsproxy.proxy.grpc.settings import SettingsExchange
from tlsproxy.proxy.grpc.streams import ClientStreams
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.wire.http2 import DATA, FIRST_WINDOW, HEADER, KIND, Frames, Http2Error, Kind

UNMEASURED: Final = 1 << 62
"""Bytes: the client's own connection measures what it sends, and grants it more."""
MAX_AHEAD: Final = 1 << 20
"""Bytes of DATA that wait for a former upstream while their client has room for others in their place: an upstream that
reads no more would hold up all calls else.
"""
SWEEP: Final = 1.0
"""Seconds between two looks at the waits of calls."""


class HalfClient(Protocol):
    """The client's side of a half."""

    @property
    def streams(self) -> ClientStreams: ...


class Half(GrpcSession, Protocol):
    """The connection of the calls."""

    entry: Entry
    relay: Relay[Call]
    settings: SettingsExchange

    @property
    def client(self) -> HalfClient: ...
    def judge(self, now: float) -> str: ...
    def expel(self, reason: str) -> None: ...
    def turn(self, data: bytes) -> None: ...
    def sweep(self, now: float) -> None: ...
    def cut(self, reason: str) -> None: ...
    def rearm(self) -> None: ...
    def resume_writing(self) -> None: ...


class PresentConnection(GrpcSession, Protocol):
    """The client's connection."""

    relay: Relay[Call]
    settings: SettingsExchange

    def left_by(self, former: Former) -> None: ...


class Former:
    """``half`` has the calls. ``since``: when the upstream changed (monotonic clock)."""

    __slots__ = ("_ahead", "_begun", "_client", "_ended", "_waiting", "deadline", "half", "reading", "since")

    half: Half

    def __init__(self, client: PresentConnection) -> None:
        self._client = client
        self._waiting: deque[bytes] = deque()
        self._begun = self._ended = False
        self._ahead = 0
        self.reading = True
        self.deadline = NEVER
        self.since = time.monotonic()

    def begin(self) -> None:
        relay = self.half.relay
        relay.to_upstream.credit = relay.to_upstream.debt = UNMEASURED
        self._count(relay.unsent)
        relay.give_back_upstream(max(0, FIRST_WINDOW - relay.to_client.credit))
        self._begun = True
        relay.gateway.deadlines.add(self)
        self.drain()

    def feed(self, frame: bytes) -> None:
        """A frame that the client sent on a stream of the half's."""
        if frame[KIND] == DATA:
            self._count(len(frame) - HEADER)
        self.half.turn(frame)

    def drain(self) -> None:
        """Ends the calls that take longer than they may."""
        half, relay = self.half, self.half.relay
        gateway = relay.gateway
        if relay.upstream_moved:
            gateway.former["grpc"].add(self)
        else:  # what was published next leads there again
            gateway.former["grpc"].discard(self)
            return
        bounds = gateway.bounds
        if bounds.drains_former and time.monotonic() - self.since >= bounds.drain_timeout:
            for call in list(relay.calls.values()):
                call.refuse(UpstreamChanged("The upstream is elsewhere now, and the call took too long to end"))
            half.settle()

    def end(self, reason: str) -> None:
        self._waiting.clear()
        if self._ended:
            self._leave()
        else:
            self.half.cut(reason)

    def broken(self, error: Http2Error) -> None:
        """The client broke the protocol on a stream of the half's."""
        self._client.broken(error)

    # The stream, as the half has it

    @property
    def stalled(self) -> bool:
        return bool(self._waiting) or self._client.relay.stream.stalled

    def write(self, data: bytes) -> None:
        if not self._begun:  # what every connection says first, which the client has heard
            return
        frames = Frames()
        frames.more = True
        while frames.more:
            frames.begin(data)
            while frames.advance():
                self._route(frames.what >> 8, frames.stream, frames.data[frames.start : frames.end])
            data = b""
        if self._waiting:
            self.half.reading_changed()
        self._client.settle()

    def _route(self, kind: int, stream: int, frame: bytes) -> None:
        if stream or kind == Kind.SETTINGS:
            self._waiting.append(frame)
            self._pass()
        elif kind == Kind.WINDOW_UPDATE:
            self._count(-int.from_bytes(frame[HEADER:], "big"))

    def _count(self, size: int) -> None:
        """So much more of the client's DATA waits here, or less. Beyond the limit it takes the client's room."""
        before = max(0, self._ahead - MAX_AHEAD)
        self._ahead += size
        self._client.relay.give_back(max(0, size) + before - max(0, self._ahead - MAX_AHEAD))

    def _pass(self) -> None:
        """As far as the client has room."""
        client, waiting = self._client.relay, self._waiting
        while waiting:
            frame = waiting[0]
            if frame[KIND] == DATA:
                size = len(frame) - HEADER
                if size > client.to_client.room:
                    return
                client.to_client.own(size)
            del waiting[0]
            if frame[KIND] == Kind.SETTINGS:  # its upstream has acknowledged the client's
                self.half.settings.told_window.settle()
                self._client.settings.agree()
            else:
                client.down.append(frame)

    def proceed(self) -> None:
        """The client has room that it had not."""
        half = self.half
        if self._waiting:
            self._pass()
            if self._waiting:
                return
            self._go_on()
        if not self._ended:
            half.relay.to_client.room = self._client.relay.to_client.room
            half.relay.unblock_upstream()
            half.relay.proceed()
            half.settle()

    def _go_on(self) -> None:
        if self._ended:
            self._leave()
            return
        self.half.resume_writing()
        self.half.settle()

    def tell(self, what: Callable[..., None], *args: object) -> None:
        self._client.relay.stream.tell(what, *args)

    def pause_reading(self) -> None:
        if self.reading and not self._ended:
            self.reading = False
            self._client.reading_changed()

    def resume_reading(self) -> None:
        if not self.reading:
            self.reading = True
            self._client.reading_changed()

    def close(self, _linger: float) -> None:
        """The half has ended: its last call has, or its upstream."""
        self.abort()

    def cease(self) -> None:
        """The client's own stream is told."""

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            gateway = self._client.relay.gateway
            gateway.deadlines.discard(self)
            gateway.former["grpc"].discard(self)
            self._count(-self._ahead)
            self.resume_reading()
            if not self._waiting:
                self._leave()

    def _leave(self) -> None:
        self._client.left_by(self)

    # As Deadlines has it

    def look(self) -> None:
        """Nothing comes here that was not looked at."""

    def expired(self) -> None:
        now = time.monotonic()
        self.deadline = now + SWEEP
        self.tell(self.half.sweep, now)

    def rearm(self) -> None:
        if self.deadline != NEVER:
            self.half.rearm()
