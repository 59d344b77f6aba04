"""A client's connection that speaks gRPC: each call is decided, and relayed over an upstream connection of its own.

A connection that is to end says so twice (RFC 9113 §6.8): first that no more calls are wanted, then, once the client
has heard that, which was the last; calls that go on are waited for. One sweep a second looks at the waits of all calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, cast

from tlsproxy.errors import GrpcStatus, RequestError, RequestTimeout, RightLost, UpstreamTimeout
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.balancer import NodeState
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway, moved
from tlsproxy.proxy.core.impact_analysis import Outlook
from tlsproxy.proxy.core.refusals import record_refusal
from tlsproxy.proxy.decision.call_plan import origin_block
from tlsproxy.proxy.grpc import withdrawal
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.call_timeouts import overdue
from tlsproxy.proxy.grpc.client import DRAIN_PING, ClientFrames
from tlsproxy.proxy.grpc.draining_upstream import SWEEP, Former
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.grpc.session import ClientStream, UpstreamSide
from tlsproxy.proxy.grpc.settings import SettingsExchange
from tlsproxy.proxy.grpc.states import (
    CONNECTION_MOVES,
    DRAIN,
    DRAINING,
    END,
    ENDED,
    LEAVE,
    LEAVING,
    LOSE,
    OPEN,
    ConnectionEvent,
)
from tlsproxy.proxy.grpc.streams import ClientStreams
from tlsproxy.proxy.grpc.upstream import GrpcUpstream
from tlsproxy.proxy.grpc.upstream_dialer import Dialler
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire import http2
from tlsproxy.wire.http2 import MAX_STREAM, Code, Http2Error, Kind

LAST_WORDS: Final = 1.0
"""Seconds: for a client to hear why its connection ends, and for the calls that it was about to make."""
_FOLLOWING: Final = (OPEN, DRAINING)
"""States in which it goes where a publication has its upstream."""


class GrpcConnection:
    """Owner of one TLS stream, from its handshake on.

    ``upstream_error``: why it has no upstream. ``formers``: former upstreams that
    have calls. ``last_sweep``: when its waits were looked at last.
    """

    __slots__ = (
        "_judged",
        "_resting",
        "_upstreams",
        "_when_ended",
        "client",
        "entry",
        "formers",
        "gateway",
        "last_sweep",
        "limits",
        "relay",
        "settings",
        "state",
        "stream",
        "upstream_error",
    )

    patient = True

    def __init__(
        self,
        gateway: Gateway,
        upstreams: Upstreams,
        stream: ClientStream,
        entry: Entry,
        when_ended: Callable[[], None],
    ) -> None:
        self.gateway = gateway
        self.stream = stream
        self.entry = entry
        self.limits = gateway.bounds
        self.upstream_error: RequestError | None = None
        self.state = OPEN
        self.formers: list[Former] = []
        self._upstreams = upstreams
        self._when_ended = when_ended
        self._judged = gateway.generation
        self._resting = self.last_sweep = 0.0
        self.relay: Relay[Call] = Relay(gateway, stream, entry, self)
        self.relay.dialler = Dialler(self.relay, upstreams.pool)
        self.settings = SettingsExchange(self.relay)
        streams = ClientStreams(self.relay, self.settings, upstreams)
        self.client = ClientFrames(self.relay, self.settings, streams, self.formers)
        stream.deadline = time.monotonic() + self.limits.head_timeout
        if gateway.draining:
            self.drain()
        self.settle()

    def _move(self, event: ConnectionEvent) -> bool:
        """Whether the event changes its state."""
        state = CONNECTION_MOVES.get((self.state, event))
        if state is not None:
            self.state = state
        return state is not None

    @property
    def idle(self) -> bool:
        return not (self.relay.calls or self.formers)

    def dial(self, node: NodeState) -> None:
        """There is a call for this node of the upstream. Raises OSError."""
        self.relay.upstream = GrpcUpstream(self.relay, self.settings, node.node)
        several = self.gateway.balancer.several
        if several or self.relay.origin:
            self.relay.origin = origin_block(node.node.api("grpc")) if several else b""
            self.client.streams.restate()

    # The stream

    def data_received(self, data: bytes) -> None:
        if self.state is not ENDED:
            self.client.data_received(data)

    def turn(self, data: bytes) -> None:
        self.client.turn(data)

    def pause_writing(self) -> None:
        self.reading_changed()

    def resume_writing(self) -> None:
        self.reading_changed()
        self.wait()

    def reading_changed(self) -> None:
        """Reads what can go on, in either direction; a client that takes no answers gets to ask no more."""
        side = self.relay.upstream
        crowded = side is not None and side.stream.stalled
        crowded = crowded or any(not former.reading for former in self.formers)
        # A half's client has to be read, where it has no room for answers: it says there that it has.
        if (self.stream.stalled and not self.relay.former) or self.client.paused or crowded:
            self.stream.pause_reading()
        else:
            self.stream.resume_reading()
        if side is not None:
            side.reading_changed()
        for former in list(self.formers):
            former.half.reading_changed()

    def unblock(self) -> None:
        self.client.unblock()

    def unfinished_data(self, stream: int) -> int:
        return self.client.unfinished_data(stream)

    def settle(self) -> None:
        """Writes the queued frames: the last step of whatever was going on."""
        self.relay.flush()
        if self.state is LEAVING and self.idle:
            self._close()

    # Another upstream

    def _follow(self, former: Generation) -> None:
        """Goes where the upstream is by the present generation, with what was not sent by the former one."""
        generation, relay = self.gateway.generation, self.relay
        side = relay.upstream
        if relay.former or self.state not in _FOLLOWING or former is generation:
            return
        left = side is not None and (relay.upstream_moved if side.stands else relay.upstream_renewed)
        if not (left or moved(former, generation, "grpc")):
            return
        if side is None:
            self.client.streams.restate()
        elif not side.stands:
            self.client.streams.restate()
            relay.upstream = None
            side.discard()
            relay.dialler.dial_again()
            self.reading_changed()
        elif left:
            self.part()

    def _renew(self) -> None:
        """Leaves an upstream connection without calls that was made by a former certificate of ours."""
        relay = self.relay
        side = relay.upstream
        if side is None or relay.calls or relay.former or not (relay.upstream_renewed and side.stands):
            return
        if self.state in _FOLLOWING:
            self.part()

    def part(self) -> None:
        """Leaves the upstream connection, to the calls that are there."""
        former, side = None, self.relay.upstream
        if side is None:
            return
        if self.relay.calls:
            former = Former(self)
            former.half = GrpcConnection(self.gateway, self._upstreams, former, self.entry.beside(), lambda: None)
            former.half.succeed(self, side)
            self.formers.append(former)
            self.settings.formers.append(former.half.settings)
            self.relay.dialler = Dialler(self.relay, self._upstreams.pool)
        else:
            side.discard()
            self.relay.dialler.close()
        self._begin_anew(former)
        self.rest()

    def _begin_anew(self, former: Former | None = None) -> None:
        """Has no upstream connection, and dials one for the next call."""
        self.settings.begin_anew(self.relay.begin_anew())
        if former is not None:
            former.begin()
        self.settings.agree()
        self.unblock()
        self.reading_changed()

    def succeed(self, client: GrpcConnection, side: UpstreamSide) -> None:
        """Takes over the calls, with all that they have towards their upstream."""
        relay = self.relay
        self._move(LEAVE)
        relay.former = relay.measured = True
        self.client.skip_greeting()
        self.last_sweep = client.last_sweep
        self.settings.told_window = client.settings.told_window
        relay.take_over(client.relay)
        cast("Dialler", relay.dialler).relay = relay
        cast("GrpcUpstream", side).serve(relay, self.settings)
        for call in relay.calls.values():
            call.relay = relay
        self.wait()

    def left_by(self, former: Former) -> None:
        """Its calls have ended, and the client has had all of their answers."""
        self.formers.remove(former)
        self.settings.formers.remove(former.half.settings)
        ended = former.half.entry
        self.entry.requests += ended.requests
        self.entry.bytes_in += ended.bytes_in
        self.entry.bytes_out += ended.bytes_out
        former.half.relay.let_go()
        if self.state is not ENDED:
            self.settings.agree()
            self.settings.limit_streams()
            if not self.relay.calls:
                self.rest()
            self.reading_changed()
            self.settle()

    # Deadlines

    def rest(self) -> None:
        """Sets what is waited for next. Without calls, the connection rests from here on, whatever is said on it."""
        self._resting = time.monotonic()
        self.wait()

    def wait(self) -> None:
        """Sets when to look at it next."""
        if self.stream.stalled or self.state is ENDED:
            return
        sweep = self.last_sweep + SWEEP
        if self.relay.calls or self.formers:
            self.stream.deadline = sweep
        elif self.client.begun:
            self.stream.deadline = min(sweep, self._rests_until)
        else:
            self.stream.deadline = self._rests_until

    @property
    def _rests_until(self) -> float:
        return self._resting + (self.limits.idle_timeout if self.state is OPEN else LAST_WORDS)

    def rearm(self) -> None:
        self.relay.budgets.adopt(self.limits.streams_per_second)
        if self.client.greeted:
            self.rest()
        else:
            self.stream.deadline = time.monotonic() + self.limits.head_timeout

    def deadline_passed(self) -> None:
        if self.stream.stalled:
            self.cut("client_stalled")
        elif not self.client.greeted:
            self.end(Code.PROTOCOL_ERROR, "the client did not begin")
        else:
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        self.last_sweep = now
        if self.client.stands_still(now):
            self.end(Code.NO_ERROR, "what was begun came too slowly", RequestTimeout.reason)
        elif self.idle and now >= self._rests_until:
            self.end(Code.NO_ERROR)
        else:
            for call in list(self.relay.calls.values()):
                error = overdue(call, now)
                if isinstance(error, UpstreamTimeout):
                    self.relay.dialler.failed(now)
                if error is not None:
                    call.refuse(error)
            self.relay.dialler.look(now)
            self._renew()
            self.wait()
            self.settle()

    def begin_sweeps(self, now: float) -> None:
        """The first call begins."""
        self.last_sweep = now
        self.stream.deadline = now + SWEEP

    # The upstream's end

    def upstream_lost(self, error: RequestError) -> None:
        """Every open call is told; so are those that were about to be made, where there is no other node."""
        if self.upstream_error is not None or self.state is ENDED or self.relay.dialler.lost(error):
            return
        if self.formers or self._has_others:  # the connection goes on
            for call in list(self.relay.calls.values()):
                call.refuse(error)
            self.relay.dialler.close()
            self._begin_anew()
            self.settle()
            return
        self.upstream_error, self.relay.upstream = error, None
        self._move(LOSE)
        self.settings.agree()
        served = self.relay.last_stream
        for call in list(self.relay.calls.values()):
            call.refuse(error)
        if served:
            self.end(Code.NO_ERROR)
        else:
            self.rest()
            self.settle()

    @property
    def _has_others(self) -> bool:
        """Whether the next call may go to another node, of those that are not drained."""
        return not self.relay.former and self.gateway.balancer.several

    def upstream_leaves(self, last: int) -> bool:
        """Its GOAWAY, which the client gets too if there is no other node.

        Calls beyond the last one it takes are the client's to make again.
        """
        goes_on = self._has_others
        if not goes_on:
            self._move(LEAVE)
        for call in [call for stream, call in self.relay.calls.items() if stream > last]:
            call.record.grpc_status = GrpcStatus.UNAVAILABLE.value
            if goes_on or self.relay.former:  # the client does not hear of it
                call.reset(Code.REFUSED_STREAM, "upstream_goaway")
            else:
                call.forget("upstream_goaway")
        return not goes_on

    # The end

    def drain(self) -> None:
        """Takes no more calls, and ends with those that go on."""
        if not self._move(DRAIN):
            return
        self.relay.down.append(http2.goaway(MAX_STREAM, Code.NO_ERROR) + http2.frame(Kind.PING, 0, 0, DRAIN_PING))
        self.rest()
        self.settle()

    def present(self) -> None:
        if self._judged is not self.gateway.generation:
            self.judge(self.gateway.clock.now())

    def judge(self, now: float) -> str:
        """Ends the calls of a key or token that has lost its right; the connection depends on its certificate alone."""
        generation = self.gateway.generation
        former, self._judged = self._judged, generation
        again = former is not generation or self.entry.standing.ended(generation, now) is not None
        withdrawal.judge(self.relay, now, again=again)
        self._follow(former)
        for each in list(self.formers):
            each.half.judge(now)
            each.drain()
        self.settle()
        return ""

    def losses(self, outlook: Outlook, standing: Standing, now: float) -> Iterator[str]:
        yield from withdrawal.losses(self.relay, outlook, standing, now)
        for former in self.formers:
            yield from withdrawal.losses(former.half.relay, outlook, standing, now)

    def expel(self, reason: str) -> None:
        if self.state is ENDED:
            self.stream.cease()
            return
        for former in list(self.formers):
            former.half.expel(reason)
        for call in list(self.relay.calls.values()):
            call.refuse(RightLost(reason))
        self.end(Code.NO_ERROR, reason)

    def drained(self) -> None:
        """The client has heard that no more calls are wanted: what it made before has come by now."""
        self.leave()
        self.settle()

    def leave(self) -> None:
        """From the next call on nothing is taken."""
        if self._move(LEAVE):
            self.relay.down.append(http2.goaway(self.relay.last_stream, Code.NO_ERROR))

    def broken(self, error: Http2Error) -> None:
        """The client broke the protocol, or flooded us."""
        if isinstance(self.stream, Former):
            self.stream.broken(error)
            return
        self.entry.end_audited = True
        refusal = self.entry.refusal(time.time(), "connection", error.reason)
        record_refusal(self.gateway, "connection", refusal, {**self.entry.transport(), "error": str(error)})
        self.gateway.metrics.connection(error.reason)
        self.end(error.code, str(error), error.reason)

    def end(self, code: Code, text: str = "", reason: str = "") -> None:
        if self.state is ENDED:
            return
        for call in list(self.relay.calls.values()):
            call.forget(reason or "connection_ended")
        self.relay.drop_requests()
        self._move(END)
        self.relay.down.append(http2.goaway(self.relay.last_stream, code, text))
        self.relay.flush()
        self._close()

    def _close(self) -> None:
        self._move(END)
        self._discard()
        self.stream.close(LAST_WORDS)

    def cut(self, reason: str) -> None:
        self._move(END)
        for former in list(self.formers):
            former.end(reason)
        for call in list(self.relay.calls.values()):
            call.forget(reason)
        self._discard()
        self.stream.abort()

    def _discard(self) -> None:
        side, self.relay.upstream = self.relay.upstream, None
        if side is not None:
            side.discard()
        for former in list(self.formers):
            former.end("connection_ended")
        self.gateway.scheduler.forget(self.entry)
        self.relay.dialler.close()

    def connection_lost(self, error: Exception | None) -> None:
        try:
            self.cut("client_gone" if error is None or isinstance(error, OSError) else "internal_error")
        finally:
            self.relay.let_go()
            self._when_ended()
