"""How long a gRPC connection lives: what it waits for, how it is drained, and its last words.

A connection that is to end says so twice (RFC 9113 §6.8): first that no more calls are wanted, then, once the client
has heard that, which was the last; calls that go on are waited for. One sweep a second looks at the waits of all calls.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tlsproxy.authz.access import Decision
from tlsproxy.authz.keys import NEVER
from tlsproxy.errors import GrpcStatus, RequestError, RequestTimeout, RightLost, UpstreamUnreachable
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.impact_analysis import Outlook
from tlsproxy.proxy.core.refusals import record_refusal
from tlsproxy.proxy.grpc.draining_upstream import SWEEP, Former
from tlsproxy.proxy.grpc.messages import MAX_FIRST_WINDOW
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.transport.tls import TlsStream
from tlsproxy.wire import http2
from tlsproxy.wire.flow_control import InitialWindow
from tlsproxy.wire.http2 import MAX_STREAM, Code, Http2Error, Kind, Setting

if TYPE_CHECKING:
    from tlsproxy.proxy.grpc.call import Call
    from tlsproxy.snapshot.generation import Generation

LAST_WORDS: Final = 1.0
"""Seconds: for a client to hear why its connection ends, and for the calls that it was about to make."""
DRAIN_PING: Final = b"tlsproxy"
USUAL: Final[dict[int, int]] = {
    Setting.INITIAL_WINDOW_SIZE: http2.FIRST_WINDOW,
    Setting.MAX_CONCURRENT_STREAMS: MAX_STREAM,
}
"""Of an upstream that has not said otherwise."""
OWN: Final = object()
MEASURED: Final = object()


class Life(Relay):
    """``greeted``: the client's SETTINGS have come. ``last`` is its latest stream; ``lost``: why it has no upstream.

    ``told`` are the SETTINGS that the client has not acknowledged: the gateway's own, those that are ``MEASURED``, and
    those that their upstream waits to hear of, by its window. ``swept``: when its waits were looked at last.
    ``formers``: calls at former upstreams. ``settings``: the client's that upstreams are told, but for its initial
    window of streams, of which the upstream has heard ``heard_window``.
    """

    __slots__ = (
        "_draining",
        "_ended",
        "_first",
        "_judged",
        "_resting",
        "_told_most",
        "_upstream_most",
        "_when_ended",
        "formers",
        "greeted",
        "heard_window",
        "last",
        "leaving",
        "longest",
        "lost",
        "most",
        "settings",
        "swept",
        "told",
    )

    def __init__(
        self, gateway: Gateway, stream: TlsStream | Former, entry: Entry, when_ended: Callable[[], None]
    ) -> None:
        super().__init__(gateway, stream, entry)
        self.greeted = False
        self.last = 0
        self.lost: RequestError | None = None
        self.leaving = False
        self.told: deque[object] = deque([OWN])
        self.settings: dict[int, int] = {}
        self.heard_window = InitialWindow()
        self.formers: list[Former] = []
        self._first = http2.FIRST_WINDOW  # of a stream, as the client was told last
        self._when_ended = when_ended
        self._judged = gateway.generation
        self._ended = self._draining = False
        self._resting = self.swept = 0.0
        # Limits that the client is told now stay, whatever is published.
        self.most, self.longest = self.limits.max_streams, self.limits.max_head_size
        self._told_most, self._upstream_most = self.most, MAX_STREAM
        stream.deadline = time.monotonic() + self.limits.head_timeout
        # A server's first frame (RFC 9113 §3.4). The upstream's own may come after an answer of ours.
        first: dict[int, int] = {
            Setting.MAX_CONCURRENT_STREAMS: self.most,
            Setting.MAX_HEADER_LIST_SIZE: self.longest,
        }
        self.down.append(http2.settings(first))

    def server_settings(self, values: dict[int, int]) -> bytes:
        """The upstream's SETTINGS as the client is told them, within our limits.

        Not its HEADER_TABLE_SIZE: the client's field blocks are read here, and the upstream never sees its table.
        """
        told = http2.kept(values, (Setting.INITIAL_WINDOW_SIZE,))
        if Setting.MAX_CONCURRENT_STREAMS in values:
            self._upstream_most = values[Setting.MAX_CONCURRENT_STREAMS]
            told[Setting.MAX_CONCURRENT_STREAMS] = self._told_most = self._most_now
        first = told.get(Setting.INITIAL_WINDOW_SIZE)
        if first is None:
            return http2.settings(told)
        if self.formers:  # on whose streams more may have been granted
            told[Setting.INITIAL_WINDOW_SIZE] = first = min(first, MAX_FIRST_WINDOW)
        more, self._first = first - self._first, first
        return http2.settings(told) + b"".join(former.half.led(more) for former in self.formers)

    @property
    def _most_now(self) -> int:
        """The most streams that the client may open: those at former upstreams are none of the present one's."""
        return min(self.most, self._upstream_most + self.elsewhere)

    def limit_streams(self) -> None:
        """Tells the client where calls at a former upstream have ended."""
        if self._most_now != self._told_most:
            self.told.append(OWN)
            self.down.append(self.server_settings({Setting.MAX_CONCURRENT_STREAMS: self._upstream_most}))

    @property
    def elsewhere(self) -> int:
        """How many calls there are at former upstreams."""
        return sum(len(former.half.calls) for former in self.formers)

    def led(self, more: int) -> bytes:
        """The client has heard of ``more`` room on all of its streams than the former upstream gives.

        Where that is less, it is granted the rest.
        """
        frames = b""
        for call in self.calls.values():
            call.lead += more
            if call.lead < 0:
                frames += http2.window_update(call.stream, -call.lead)
                call.lead = 0
        return frames

    def measured_settings(self, values: dict[int, int], *, first: bool) -> bytes:
        """The same where DATA is measured here, so that they need not wait for the client's acknowledgement.

        Its streams have windows by the present upstream's, whose ``first`` ones take the place of a former one's. Those
        of a former upstream it is not told, but it may use what they grant.
        """
        initial = self.to_upstream.initial
        before = initial.latest
        initial.offer(values.get(Setting.INITIAL_WINDOW_SIZE))
        self.acknowledge()
        self.proceed()
        self.unblock()
        if self.half:
            return self.led(before - initial.latest)
        self.told.append(MEASURED)
        return self.server_settings(USUAL | values if first else values)

    def heard(self) -> None:
        """The upstream has acknowledged SETTINGS of the client's."""
        if self.half:
            self.down.append(http2.SETTINGS_ACK)  # once what was sent before it has gone on
        else:
            self.heard_window.settle()
            self.agree()

    @property
    def first_window(self) -> int:
        """The initial window of streams as an upstream is told it."""
        return min(self.to_client.initial.least, MAX_FIRST_WINDOW)

    @property
    def relays(self) -> list[Life]:
        """Those that may send to the client: itself, if its upstream connection stands, and the halves."""
        own: list[Life] = [self] if self.reached else []
        return own + [former.half for former in self.formers]

    def greeting(self) -> bytes:
        """The beginning of an upstream connection: what its client has said of itself by now."""
        told = {Setting.HEADER_TABLE_SIZE: 0, Setting.ENABLE_PUSH: 0} | self.settings
        first = self.first_window
        self.heard_window = InitialWindow(first)
        if first != http2.FIRST_WINDOW:
            told[Setting.INITIAL_WINDOW_SIZE] = first
        return http2.PREFACE + http2.settings(told) + http2.window_update(0, self.to_client.begin(http2.FIRST_WINDOW))

    def tell(self, values: dict[int, int]) -> None:
        """Tells the upstream SETTINGS of the client's."""
        if values and self.reached:
            self.heard_window.offer(values.get(Setting.INITIAL_WINDOW_SIZE))
            self.up.append(http2.settings(values))

    def _tell_window(self) -> None:
        for one in self.relays:
            if self.first_window != one.heard_window.latest:
                one.tell({Setting.INITIAL_WINDOW_SIZE: self.first_window})

    def agree(self) -> None:
        """Acknowledges the client's SETTINGS.

        A smaller initial window is told to all upstreams first, and acknowledged once they have acknowledged it; a
        larger one is told to them after that: none of them ever sends more than the client expects.
        """
        initial = self.to_client.initial
        self._tell_window()
        while initial.may_settle(max((one.heard_window.most for one in self.relays), default=0)):
            self.down.append(http2.SETTINGS_ACK)
            initial.settle()
            self._tell_window()
        self.proceed()
        for former in list(self.formers):
            former.half.proceed()
            former.half.settle()

    # Deadlines

    @property
    @abstractmethod
    def begun(self) -> bool: ...

    @abstractmethod
    def stands_still(self, now: float) -> bool:
        """Whether the client has begun a frame or a field block, and does not finish it."""

    def rest(self) -> None:
        """Sets what is waited for next. Without calls, the connection rests from here on, whatever is said on it."""
        self._resting = time.monotonic()
        self.wait()

    def wait(self) -> None:
        """Sets when to look at it next."""
        if self.stream.stalled or self._ended:
            return
        sweep = self.swept + SWEEP
        if self.calls or self.formers:
            self.stream.deadline = sweep
        elif self.begun:
            self.stream.deadline = min(sweep, self._rests_until)
        else:
            self.stream.deadline = self._rests_until

    @property
    def _rests_until(self) -> float:
        last = self._draining or self.leaving or self.lost is not None
        return self._resting + (LAST_WORDS if last else self.limits.idle_timeout)

    def rearm(self) -> None:
        self.budgets.adopt(self.limits.streams_per_second)
        if self.greeted:
            self.rest()
        else:
            self.stream.deadline = time.monotonic() + self.limits.head_timeout

    def deadline_passed(self) -> None:
        if self.stream.stalled:
            self.cut("client_stalled")
        elif not self.greeted and self.lost is None:
            self.end(Code.PROTOCOL_ERROR, "the client did not begin")
        else:
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        self.swept = now
        if self.stands_still(now):
            self.end(Code.NO_ERROR, "what was begun came too slowly", RequestTimeout.reason)
        elif not (self.calls or self.formers) and now >= self._rests_until:
            self.end(Code.NO_ERROR)
        else:
            for call in list(self.calls.values()):
                error = call.overdue(now)
                if error is not None:
                    self.refuse(call, error)
            self.reach.look(now)
            self.wait()
            self.settle()

    # The upstream's end

    def upstream_lost(self, error: RequestError) -> None:
        """Every open call is told; so are those that were about to be made."""
        if self.lost is not None or self._ended:
            return
        if self.formers:  # whose calls go on, and so does the connection
            for call in list(self.calls.values()):
                self.refuse(call, error)
            self.reach.close()
            self.begin_anew()
            self.settle()
            return
        self.lost, self._side = error, None
        self.agree()
        served = self.last
        for call in list(self.calls.values()):
            self.refuse(call, error)
        if served:
            self.end(Code.NO_ERROR)
        else:
            self.rest()
            self.settle()

    def upstream_leaves(self, last: int) -> None:
        """Its GOAWAY, which the client gets too: calls beyond the last one it takes are the client's to make again."""
        self.leaving = True
        for call in [call for stream, call in self.calls.items() if stream > last]:
            call.record.grpc_status = GrpcStatus.UNAVAILABLE.value
            if self.half:  # whose client does not hear of it
                self.reset(call, Code.REFUSED_STREAM, "upstream_goaway")
            else:
                self.forget(call, "upstream_goaway")

    # The end

    def drain(self) -> None:
        """Takes no more calls, and ends with those that go on."""
        if self._draining or self._ended:
            return
        self._draining = True
        self.down.append(http2.goaway(MAX_STREAM, Code.NO_ERROR) + http2.frame(Kind.PING, 0, 0, DRAIN_PING))
        self.rest()
        self.settle()

    def present(self) -> None:
        if self._judged is not self.gateway.generation:
            self.judge(self.gateway.clock.now())

    def judge(self, now: float) -> str:
        """Ends the calls of a key or token that has lost its right; the connection depends on its certificate alone."""
        generation = self.gateway.generation
        former, self._judged = self._judged, generation
        anew = former is not generation or self.entry.standing.ended(generation, now) is not None
        for call in list(self.calls.values()):
            if (anew or now >= call.record.plan.expires) and (refusal := self._refusal(call, now)):
                self._withdraw(call, refusal)
        self.follow(former)
        for each in list(self.formers):
            each.half.judge(now)
            each.drain()
        self.settle()
        return ""

    @abstractmethod
    def follow(self, former: Generation) -> None:
        """Goes where the upstream is by the present generation, with what was not sent by the former one."""

    def former_of(self, stream: int) -> Former | None:
        """The former upstream that has the call."""
        return next((former for former in self.formers if stream in former.half.calls), None)

    @abstractmethod
    def begin_anew(self, former: Former | None = None) -> None:
        """Has no upstream connection, and dials one for the next call."""

    def losses(self, outlook: Outlook, standing: Standing, now: float) -> Iterator[str]:
        ended = standing.ended(outlook.generation, now)
        for call in self.calls.values():
            if _goes_on(call):
                present = outlook.calls.present(call.record.plan, standing.principal, now, ended)
                refusal = present if isinstance(present, Decision) else call.refusal(present, outlook.calls)
                if refusal is not None:
                    yield refusal.reason
        for former in self.formers:
            yield from former.half.losses(outlook, standing, now)

    def _refusal(self, call: Call, now: float) -> Decision | None:
        """Why it may not go on, None where it may."""
        if not _goes_on(call):
            return None
        standing = self.entry.standing
        ended = standing.ended(self.gateway.generation, now)
        present = self.gateway.calls.present(call.record.plan, standing.principal, now, ended)
        return present if isinstance(present, Decision) else call.renew(present)

    def _withdraw(self, call: Call, refusal: Decision) -> None:
        """It does and learns nothing more; but of a change that the upstream has whole it may hear the outcome."""
        record = call.record
        if call.undecided:
            record.plan = record.plan.refused(refusal)
            self.deny(call)
        elif call.whole and record.plan.asked is not None and not record.plan.asked.operation.reads:
            record.plan = replace(record.plan, expires=NEVER)
            self.gateway.loop.call_later(self.limits.expel_after, self.stream.tell, self._overstayed, call)
        else:
            self._lose(call, refusal)

    def _overstayed(self, call: Call) -> None:
        if refusal := self._refusal(call, self.gateway.clock.now()):
            self._lose(call, refusal)
            self.settle()

    def _lose(self, call: Call, refusal: Decision) -> None:
        self.entry.request_ended(self.gateway, refusal.reason)
        self.refuse(call, RightLost(refusal.reason))

    def expel(self, reason: str) -> None:
        if self._ended:
            self.stream.cease()
            return
        for former in list(self.formers):
            former.half.expel(reason)
        for call in list(self.calls.values()):
            self.refuse(call, RightLost(reason))
        self.end(Code.NO_ERROR, reason)

    def drained(self) -> None:
        """The client has heard that no more calls are wanted: what it made before has come by now."""
        self.leave()
        self.settle()

    def leave(self) -> None:
        """From the next call on nothing is taken."""
        if not self.leaving:
            self._draining = self.leaving = True
            self.down.append(http2.goaway(self.last, Code.NO_ERROR))

    def settle(self) -> None:
        super().settle()
        if self.leaving and not (self.calls or self.formers or self._ended):
            self._close()

    def broken(self, error: Http2Error) -> None:
        """The client broke the protocol, or flooded us."""
        if isinstance(self.stream, Former):
            self.stream.broken(error)
            return
        self.entry.end_audited = True
        refusal = self.entry.refusal(time.time(), "connection", error.reason)
        record_refusal(self.gateway, "connection", refusal, {"error": str(error)})
        self.gateway.metrics.connection(error.reason)
        self.end(error.code, str(error), error.reason)

    def end(self, code: Code, text: str = "", reason: str = "") -> None:
        if self._ended:
            return
        for call in list(self.calls.values()):
            self.forget(call, reason or "connection_ended")
        self.wanting.clear()
        self.up.clear()
        self._owed_client = 0
        self._ended = True
        self.down.append(http2.goaway(self.last, code, text))
        super().settle()
        self._close()

    def _close(self) -> None:
        self._ended = True
        self._discard()
        self.stream.close(LAST_WORDS)

    def cut(self, reason: str) -> None:
        self._ended = True
        for former in list(self.formers):
            former.end(reason)
        for call in list(self.calls.values()):
            self.forget(call, reason)
        self._discard()
        self.stream.abort()

    def _discard(self) -> None:
        self.lost = self.lost or UpstreamUnreachable("The connection has ended")
        side, self._side = self._side, None
        if side is not None:
            side.discard()
        for former in list(self.formers):
            former.end("connection_ended")
        self.gateway.scheduler.forget(self.entry)
        self.reach.close()

    def connection_lost(self, error: Exception | None) -> None:
        try:
            self.cut("client_gone" if error is None or isinstance(error, OSError) else "internal_error")
        finally:
            del self.reach  # which refers to it
            self._when_ended()


def _goes_on(call: Call) -> bool:
    """It is not over, nor refused and waits to be told so."""
    return not call.recorded and bool(call.record.plan.block)
