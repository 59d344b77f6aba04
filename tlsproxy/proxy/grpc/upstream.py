"""The upstream's side of a gRPC connection: one h2c connection (RFC 9113 §3.3) for one of a client.

The upstream is told that there is no dynamic table for its field blocks, so that any of them can be left out or put in.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tlsproxy.errors import RequestError, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.upstream_frames import UpstreamFrames
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.transport.dial import DialledStream
from tlsproxy.wire import http2
from tlsproxy.wire.flow_control import overspent
from tlsproxy.wire.http2 import (
    ANY_DATA,
    END_STREAM,
    HEADER,
    WHOLE_FIELDS,
    Http2Error,
)

if TYPE_CHECKING:
    from tlsproxy.proxy.grpc.client import GrpcConnection


class GrpcUpstream(UpstreamFrames):
    """One connection, for as long as its client's. ``blocked``: the client has left no room for what comes next.

    ``stands``: the upstream has taken it.
    """

    __slots__ = ("_queued", "blocked", "stands")

    def __init__(self, client: GrpcConnection) -> None:
        """Raises OSError where no socket is to be had."""
        super().__init__(client)
        self.blocked = self._queued = self.stands = False
        gateway = client.gateway
        addresses, bounds = gateway.generation.upstream_addresses["grpc"], gateway.bounds
        self.stream = DialledStream(gateway.loop, addresses, self, gateway.deadlines, bounds.upstream_write)
        self.stream.deadline = time.monotonic() + bounds.connect_timeout

    def write(self, data: bytes) -> None:
        self.stream.write(data)

    def discard(self) -> None:
        self.stream.abort()

    def reading_changed(self) -> None:
        if self.client.stream.stalled or self.blocked or self._queued:
            self.stream.pause_reading()
        elif self.stream.established:
            self.stream.resume_reading()

    def unblock(self) -> None:
        """The client has room again for what it was not sent."""
        if self.blocked:
            self.blocked = False
            self.data_received(b"")
            self.reading_changed()

    # What the stream says

    def connected(self) -> None:
        self.client.gateway.metrics.upstream_connect("ok")
        self.stream.deadline = time.monotonic() + self.client.limits.response_timeout
        client = self.client
        client.present()
        if client.is_served_by(self):
            self.write(client.greeting())
            self.stands = True
            client.unblock()
        client.settle()

    def data_received(self, data: bytes) -> None:
        self.client.present()
        client = self.client  # by what is published now
        window = client.to_client
        credit = window.credit
        try:
            self._read(data)
        except (Http2Error, UpstreamBroken) as error:
            client.upstream_lost(UpstreamBroken(f"The upstream sent what is not HTTP/2: {error}"))
            self.stream.abort()
        if client.half:  # of which the client hears when it is its turn
            client.give_back_upstream(credit - window.credit)
        if self._frames.more and not self._queued:
            self._queued = True
            client.gateway.scheduler.add(client.entry, self.stream, self._take_turn)
            self.reading_changed()
        client.settle()

    def _take_turn(self) -> None:
        self._queued = False
        if not (self.stream.closed or self.blocked):
            self.data_received(b"")
            self.reading_changed()

    def pause_writing(self) -> None:
        self.client.reading_changed()

    def resume_writing(self) -> None:
        self.stream.deadline = NEVER if self.established else time.monotonic() + self.client.limits.response_timeout
        self.client.reading_changed()

    def rearm(self) -> None:
        bounds = self.client.limits
        timeout = bounds.response_timeout if self.stream.established else bounds.connect_timeout
        self.stream.deadline = time.monotonic() + timeout

    def deadline_passed(self) -> None:
        if not self.stream.established:
            self.client.gateway.metrics.upstream_connect("timeout")
        self.client.upstream_lost(UpstreamTimeout("The upstream did not answer in time"))
        self.stream.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.client.is_served_by(self):
            return  # it was left
        lost: RequestError = UpstreamBroken("The upstream closed the connection")
        if not self.stream.established:
            self.client.gateway.metrics.upstream_connect("failed")
            lost = UpstreamUnreachable(f"The upstream cannot be reached: {error}")
        self.client.upstream_lost(lost)

    # Frames

    def _read(self, data: bytes) -> None:  # noqa: C901 - the usual frames are seen to in place
        """Frames that pass as they are go in one piece, up to the next that does not, or that ends its call."""
        client, frames = self.client, self._frames
        calls, window, down = client.calls, client.to_client, client.down
        begin = passed = told = latest = 0
        plain: Call | None = None
        now = time.monotonic()
        ready = self.established and self._block is None
        try:
            for what, stream, start, end in frames.cut(data):
                if stream != latest:
                    latest, plain = stream, calls.get(stream) if ready else None
                    if plain is not None and plain.reduction is not None:
                        plain = None
                if plain is None or (what >= ANY_DATA and (what not in WHOLE_FIELDS or client.restates)):
                    down.append(frames.data[begin:start])
                    begin = passed = end
                    instead = self._other(what >> 8, what & 0xFF, stream, start, end)
                    down.append(frames.data[start:end] if instead is None else instead)
                    latest, ready = 0, self.established and self._block is None
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
                    plain.answered = True
                    if said.beginning:
                        if begin < start:
                            down.append(frames.data[begin:start])
                        begin = end
                        down.append(http2.headers(stream, (said.restated or block) + plain.id_block, what))
                plain.touched = now
                passed = end
                if what & END_STREAM:
                    down.append(frames.data[begin:end])
                    begin, latest = end, 0
                    client.answered(plain, status)
        finally:
            down.append(frames.data[begin:passed])
            client.budgets.told_data(told)

    def _wait(self, position: int) -> None:
        """The client has no room for what is to be read from there on."""
        self._frames.keep(position)
        self.blocked = True
        self.reading_changed()
