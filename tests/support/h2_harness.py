"""A real GrpcConnection in memory, with the h2 library at both ends: nothing moves until a test says how far.

Both ends are strict: whatever they are sent that HTTP/2 or a window of theirs does not allow raises an exception.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes

from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.connection_manager import ConnectionManager
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.scheduler import Scheduler
from tlsproxy.proxy.grpc import upstream
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.connection import GrpcConnection
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.upstream.facts import CollectionFacts
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.snapshot.generation import Generation

Fields = list[tuple[str, str]]
ANSWERED: Fields = [(":status", "200"), ("content-type", "application/grpc")]
PLENTY = 1 << 24
_TABLE = LimitTable.private()


def prefixed(message: bytes, *, compressed: bool = False) -> bytes:
    return bytes((compressed,)) + len(message).to_bytes(4, "big") + message


@dataclass(slots=True)
class Sent:
    """One stream as an end sees it. ``waiting`` is what it has still to send; ``unread`` what it has not granted."""

    fields: Fields = field(default_factory=list)
    data: bytes = b""
    trailers: Fields = field(default_factory=list)
    waiting: bytes = b""
    last: Fields | None = None
    unread: int = 0
    done: bool = False
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.reset is not None or (self.done and self.ended)

    @property
    def status(self) -> int | None:
        said = dict(self.trailers) or dict(self.fields)
        return int(said["grpc-status"]) if "grpc-status" in said else None


class End:
    """``streams`` by their numbers. ``wire`` takes what it has to say."""

    def __init__(self, *, client: bool) -> None:
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
        )
        self.streams: dict[int, Sent] = {}
        self.unread = 0
        self.on_request: Callable[[int, Sent], None] = lambda _stream, _sent: None
        self._settings: deque[dict[SettingCodes, int]] = deque()
        self._acknowledged = False
        self.connection.initiate_connection()

    def receive(self, data: bytes) -> None:
        events = self.connection.receive_data(data)
        for event in events:
            self._on(event)
        for event in events:  # one that is given up by now has no answer
            if isinstance(event, h2.events.StreamEnded) and self.streams[event.stream_id].reset is None:
                self.on_request(event.stream_id, self.streams[event.stream_id])
        self.send()

    def _on(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            assert event.error_code == 0, event
        if isinstance(event, h2.events.SettingsAcknowledged):
            self._say_settings()
        stream = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
            self.streams.setdefault(stream, Sent()).fields = list(event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            self.streams[stream].trailers = list(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            sent = self.streams[stream]
            sent.data += event.data
            sent.unread += event.flow_controlled_length
            self.unread += event.flow_controlled_length
        elif isinstance(event, h2.events.StreamReset):
            self.streams[stream].reset = int(event.error_code)
        elif isinstance(event, h2.events.StreamEnded):
            self.streams[stream].ended = True

    def open(self, fields: Fields) -> int:
        stream = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream, fields)
        self.streams[stream] = Sent()
        return stream

    def say(self, stream: int, data: bytes, last: Fields | None = None) -> None:
        """As the windows let it. ``last``: trailers that end the stream then, [] for none, None: more is to come."""
        sent = self.streams[stream]
        sent.waiting += data
        sent.last = last
        self.send()

    def send(self) -> None:
        for stream, sent in self.streams.items():
            if not sent.done and sent.reset is None and (sent.waiting or sent.last is not None):
                self._send(stream, sent)

    def _send(self, stream: int, sent: Sent) -> None:
        while sent.waiting:
            size = min(self.connection.local_flow_control_window(stream), self.connection.max_outbound_frame_size)
            if size <= 0:
                return
            piece, sent.waiting = sent.waiting[:size], sent.waiting[size:]
            self.connection.send_data(stream, piece)
        if sent.last is None:
            return
        if sent.last:
            self.connection.send_headers(stream, sent.last, end_stream=True)
        else:
            self.connection.end_stream(stream)
        sent.done = True

    def cancel(self, stream: int) -> None:
        if not self.streams[stream].over:
            self.connection.reset_stream(stream, 8)
            self.streams[stream].reset = 8

    def grant(self, stream: int, size: int) -> None:
        """Room of the connection and of one stream, beyond what it has read."""
        self.connection.increment_flow_control_window(size)
        if stream in self.streams and not self.streams[stream].ended and self.streams[stream].reset is None:
            self.connection.increment_flow_control_window(size, stream)

    def read(self) -> None:
        """Grants again what it has been sent."""
        if self.unread:
            self.connection.increment_flow_control_window(self.unread)
            self.unread = 0
        for stream, sent in self.streams.items():
            if sent.unread and not sent.ended and sent.reset is None:
                self.connection.increment_flow_control_window(sent.unread, stream)
            sent.unread = 0

    def window_out(self) -> int:
        """What it may still send on the connection."""
        return self.connection.outbound_flow_control_window

    def window_in(self) -> int:
        """What it may still be sent."""
        return self.connection.inbound_flow_control_window

    def settings(self, **values: int) -> None:
        """One frame after the other: h2 takes an acknowledgement for one of all that it has sent by then."""
        self._settings.append({getattr(SettingCodes, name): value for name, value in values.items()})
        if len(self._settings) == 1 and self._acknowledged:
            self._say_settings()

    def _say_settings(self) -> None:
        self._acknowledged = not self._settings
        if self._settings:
            self.connection.update_settings(self._settings.popleft())


_NO_LOOP = MagicMock(get_debug=lambda: False)


class Loop:
    """Runs what is soon to be run when it is told to."""

    def __init__(self) -> None:
        self._soon: list[tuple[asyncio.Handle, Callable[[], None]]] = []

    def call_soon(self, callback: Callable[..., None], *args: Any) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, _NO_LOOP)
        self._soon.append((handle, partial(callback, *args)))
        return handle

    def call_later(self, _delay: float, _callback: Callable[..., None]) -> MagicMock:
        return MagicMock(spec=asyncio.TimerHandle)

    def run(self) -> bool:
        soon, self._soon = self._soon, []
        for handle, callback in soon:
            if not handle.cancelled():
                callback()
        return bool(soon)


class Uncounted:
    """Metrics that nobody reads."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_: None


class MemoryStream:
    """What a connection writes to and reads from. ``written`` is on its way to the end, ``coming`` from there."""

    unsent = False

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self.address: Any = None
        self.tls: Any = None
        self.negotiated: Any = None
        self.written = bytearray()
        self.coming = bytearray()
        self.reading = True
        self.stalled = self.closed = False
        self.established = False
        self.deadline = 0.0

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.written += data

    def tell(self, what: Callable[..., None], *args: object) -> None:
        what(*args)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def stall(self, *, stalled: bool) -> None:
        """Whoever is to take what is written does not, for now."""
        if self.stalled is not stalled and not self.closed:
            self.stalled = stalled
            (self.handler.pause_writing if stalled else self.handler.resume_writing)()

    def close(self, _linger: float) -> None:
        self.closed = True

    def cease(self) -> None:
        if self.unsent:
            self.abort()

    def abort(self, _error: Exception | None = None) -> None:
        self.closed = True


class Audit:
    """Takes lines, unless it is ``full``."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.full = False
        self._waiting: list[Callable[[], None]] = []

    def take(self) -> bool:
        return not self.full

    def put(self, line: str) -> None:
        self.lines.append(line)

    def write(self, line: str) -> None:
        self.lines.append(line)

    def when_writable(self, callback: Callable[[], None]) -> None:
        self._waiting.append(callback)

    def empty(self) -> None:
        self.full = False
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()


class HeldQuestions:
    """Questions about the examples of queries, in the order of their asking, which a test answers. ``refuses``: an
    error for whoever asks.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Callable[[Any], None]]] = []
        self.refuses: Exception | None = None

    def ask(self, questions: Any, _affinity: bytes, _account: Any, callback: Callable[[Any], None]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.asked.append((questions, callback))

    def answer(self, verdict: Any) -> None:
        """The one that was asked first."""
        _, callback = self.asked.pop(0)
        callback(verdict)


class Ends:
    """The two ends, and the connection between. ``up`` is what it has dialled, standing once it can :meth:`connect`.

    ``upstream`` is the end of that, ``ups`` are all that it has dialled, with their ends, each of which is ``made``.
    ``dialled``: it has done so before any call, which only a test can make it do.
    """

    def __init__(self, generation: Generation, *, dialled: bool = True) -> None:
        self.loop, self.audit = Loop(), Audit()
        with asyncio.Runner() as runner:
            self.gateway = runner.run(self._gateway(generation))
        self.gateway.loop = self.loop
        self.gateway.scheduler = Scheduler(self.loop)
        self.down = MemoryStream(None)
        entry = self.manager.enter("grpc", "127.0.0.1", Standing(generation, None, time.time()))
        pool = Pool(self.gateway)
        self.examples = HeldQuestions()
        facts = CollectionFacts(self.gateway, pool)
        upstreams = SimpleNamespace(pool=pool, points=None, facts=facts, examples=self.examples)
        self.down.handler = self.session = GrpcConnection(self.gateway, upstreams, self.down, entry, lambda: None)
        self.up: MemoryStream | None = None
        self.ups: list[tuple[MemoryStream, End]] = []
        self.made: Callable[[End], None] = lambda _: None
        self._reachable = False
        self.client, self.upstream = End(client=True), End(client=False)
        if dialled:
            self.session.data_received(self.client.connection.data_to_send())
            self.session.dial(self.gateway.balancer.nodes[0])
            self._look()

    @property
    def relay(self) -> Relay[Call]:
        return self.session.relay

    async def _gateway(self, generation: Generation) -> Gateway:
        gateway = Gateway(generation, self.audit, Uncounted(), Deadlines(MagicMock()), lambda _event: None, _TABLE)
        self.manager = ConnectionManager(gateway, itertools.count(1))
        return gateway

    def publish(self, generation: Generation) -> None:
        self.manager.publish(generation)
        self.session.judge(time.time())
        self._look()

    def at(self, stream: int) -> End:
        """The upstream end that has it, or the latest."""
        return next((end for _, end in self.ups if stream in end.streams), self.upstream)

    def connect(self) -> None:
        """The upstream connection stands, or will as soon as it is dialled."""
        self._reachable = True
        self._look()

    def _look(self) -> None:
        side = self.relay.upstream
        if side is not None and side.stream is not self.up:
            if self.up is not None:
                self.upstream = End(client=False)
                self.made(self.upstream)
            self.up = side.stream
            self.ups.append((side.stream, self.upstream))
        if self.up is not None and self._reachable and not self.up.established:
            self.up.established = True
            self.up.handler.connected()
            self.up.resume_reading()

    def flush(self, up: int = PLENTY, down: int = PLENTY, pieces: Callable[[int], int] = lambda size: size) -> bool:
        """Moves at most so many bytes each way, cut as ``pieces`` says. Whether there were any."""
        self.down.coming += self.client.connection.data_to_send()
        moved = self._into(self.down, self.session.data_received, up, pieces)
        self._look()
        for stream, end in self.ups:
            if stream.established and not stream.closed:
                stream.coming += end.connection.data_to_send()
                moved |= self._into(stream, stream.handler.data_received, down, pieces)
                moved |= self._out(stream, end, up, pieces)
        moved |= self._out(self.down, self.client, down, pieces)
        return moved | self.loop.run()

    @staticmethod
    def _into(stream: MemoryStream, receive: Callable[[bytes], None], most: int, pieces: Callable[[int], int]) -> bool:
        moved = False
        while most > 0 and stream.coming and stream.reading and not stream.closed:
            size = min(most, max(1, pieces(len(stream.coming))))
            piece = bytes(stream.coming[:size])
            del stream.coming[:size]
            receive(piece)
            most -= size
            moved = True
        return moved

    @staticmethod
    def _out(stream: MemoryStream, end: End, most: int, pieces: Callable[[int], int]) -> bool:
        moved = False
        while most > 0 and stream.written:
            size = min(most, max(1, pieces(len(stream.written))))
            piece = bytes(stream.written[:size])
            del stream.written[:size]
            end.receive(piece)
            most -= size
            moved = True
        return moved


def in_memory() -> Iterator[None]:
    """Upstream connections are memory: for a fixture."""

    def dial(_loop: Any, addresses: Any, handler: Any, _deadlines: Any, _timeout: float, _tls: None) -> MemoryStream:
        stream = MemoryStream(handler)
        stream.address = addresses[0]
        stream.reading = False
        return stream

    real = upstream.dial
    upstream.dial = dial
    try:
        yield
    finally:
        upstream.dial = real
