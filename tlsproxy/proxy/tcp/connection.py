"""A client's connection that is relayed as it is, to one address: who may connect is decided, what is said is not read.

Bytes go on as fast as the slower side takes them. Either side may end its half (TLS: close_notify, RFC 8446 §6.1; TCP:
FIN) and hear the other out. For its client's limits it is a request that lasts. That there is a connection is written
down when it begins, what it carried when it ends.

One that leads where its upstream was before a publication goes on, or is ended once it is silent, at the latest after
``limits.drain_timeout`` (`upstream.on_change`). One that is still dialled is dialled anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

from tlsproxy.audit.line import EventResult, event_line
from tlsproxy.authz.access import Decision
from tlsproxy.errors import AuditUnavailable
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.impact_analysis import MOVED, Outlook
from tlsproxy.proxy.core.jitter import FEW, share
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.transport.dial import Address, DialledStream
from tlsproxy.proxy.transport.tls import TlsStream

LINGER: Final = 1.0
UNREACHABLE: Final = "upstream_unreachable"


class TcpConnection:
    """The owner of one TLS stream, from its handshake on."""

    patient = False

    def __init__(self, gateway: Gateway, stream: TlsStream, entry: Entry, when_ended: Callable[[], None]) -> None:
        """``_former``: when it was found that its upstream is elsewhere (monotonic clock), None where it is not."""
        self.stream = stream
        self._gateway = gateway
        self._entry = entry
        self._when_ended = when_ended
        self._upstream: DialledStream | None = None
        self._addresses: Sequence[Address] = ()
        self._former: float | None = None
        self._why = ""
        self._open = False
        self._judged = gateway.generation
        self._counted: tuple[int, ...] = ()
        self._opened = time.monotonic()
        self._limits = gateway.bounds
        self._admitted = self._roomless = self._silent = False
        self._early = b""  # with the end of the handshake, before there is an upstream for it
        self._begin()

    def _begin(self) -> None:
        """Decides, once there is room for the line that says how."""
        gateway, stream, entry = self._gateway, self.stream, self._entry
        self._admitted = gateway.audit.take()
        if not self._admitted:
            self._await_room()
            return
        stream.deadline = NEVER
        refusal = self._refusal(gateway.clock.now())
        if refusal:
            self._refuse(refusal)
            return
        limit_check = gateway.limiter.quotas.check(entry.standing.principal, None, None, None)
        if limit_check is not None:
            outcome = gateway.limiter.count(limit_check, entry.address, entry.standing.identity)
            if isinstance(outcome, Decision):
                self._refuse(outcome.reason, outcome.text)
                return
            self._counted = outcome
        stream.when_ended = self._client_ended
        stream.pause_reading()  # until there is somebody to send it to
        try:
            self._upstream = self._dial(gateway)
        except OSError as error:
            self._refuse(UNREACHABLE, str(error))

    def _await_room(self) -> None:
        stream = self.stream
        try:
            self._gateway.audit_gate.wait(self._opened, stream, self._begin_again)
        except AuditUnavailable as error:
            self._refuse(error.reason, str(error))
            return
        self._roomless = True
        stream.pause_reading()
        stream.deadline = NEVER  # the gate has its own

    def _begin_again(self, late: AuditUnavailable | None) -> None:
        if not self._roomless:
            return
        if late is not None:
            self._refuse_unheard(late.reason, str(late))
            return
        self._roomless = False
        self.stream.resume_reading()
        self._begin()

    def _refuse_unheard(self, reason: str, error: str = "") -> None:
        self._roomless = False
        self.stream.resume_reading()
        self._refuse(reason, error)

    def _dial(self, gateway: Gateway) -> DialledStream:
        self._addresses = addresses = gateway.generation.tunnels[self._entry.route].addresses
        upstream = DialledStream(gateway.loop, addresses, _Upstream(self), gateway.deadlines, self._limits.client_write)
        upstream.when_ended = self._upstream_ended
        upstream.deadline = time.monotonic() + self._limits.connect_timeout
        return upstream

    def _refusal(self, now: float) -> str:
        """Why its client may not be here, "" where it may."""
        return self._entry.standing.turned_away(self._gateway.generation, self._entry.route, now)

    def _refuse(self, reason: str, error: str = "") -> None:
        self._why = reason
        self._tell("tcp_open", "denied", error)
        allowed, metrics = reason == UNREACHABLE, self._gateway.metrics
        metrics.tcp(self._entry.standing.principal.role, "failed" if allowed else "denied", reason)
        if not allowed:
            metrics.refused(self._entry.refusal(time.time(), "tcp", reason))
        self.stream.close(LINGER)

    def _tell(self, event: Literal["tcp_open", "tcp_close"], result: EventResult, error: str = "") -> None:
        principal, entry = self._entry.standing.principal, self._entry
        detail: dict[str, str | int | float] = {
            "listener": entry.route,
            "role": principal.role,
            "rule": principal.rule,
            **entry.certificate(),
        }
        if event == "tcp_close":
            duration = round((time.monotonic() - self._opened) * 1000, 3)
            detail |= {"bytes_in": entry.bytes_in, "bytes_out": entry.bytes_out, "duration_ms": duration}
        if error:
            detail["error"] = error
        line = event_line(
            when=time.time(),
            event=event,
            remote=entry.address,
            result=result,
            reason=self._why or "allowed",
            detail=detail,
        )
        if self._admitted:
            self._admitted = False
            self._gateway.audit.put(line)
        else:
            self._gateway.audit.write(line)

    # What the upstream says

    def connected(self) -> None:
        self._gateway.metrics.tcp(self._entry.standing.principal.role, "allowed", "allowed")
        self._open = True
        self._tell("tcp_open", "ok")
        if self._upstream is not None:
            if self._early:
                early, self._early = self._early, b""
                self._upstream.write(early)
            if self.stream.ended:
                self._upstream.shut()
        self._touch()
        self.reading_changed()

    def answered(self, data: bytes) -> None:
        if self._silent:
            return
        self._entry.bytes_out += len(data)
        stream = self.stream
        stream.write(data)
        if not stream.stalled:
            stream.deadline = time.monotonic() + self._limits.tcp_idle_timeout

    def _upstream_ended(self) -> None:
        """It has said all: the client is told, and may go on."""
        self.stream.shut()
        self._both_ended()

    def upstream_lost(self, handler: _Upstream, error: Exception | None) -> None:
        if self._upstream is None or self._upstream.handler is not handler:
            return  # another was dialled in its place
        self._upstream = None
        if not self._open:
            self._refuse(UNREACHABLE, str(error or ""))
            return
        self._why = self._why or ("upstream_broken" if error is not None else "")
        self.stream.close(LINGER)

    def upstream_overdue(self) -> None:
        upstream = self._upstream
        if upstream is not None:
            upstream.abort(TimeoutError("it took too long"))

    def _both_ended(self) -> None:
        upstream = self._upstream
        if upstream is not None and upstream.ended and self.stream.ended:
            self._end("")

    # What the client's stream says

    def data_received(self, data: bytes) -> None:
        if self._judged is not self._gateway.generation:
            self.judge(self._gateway.clock.now())
        if self._silent:
            return
        self._entry.bytes_in += len(data)
        upstream, stream = self._upstream, self.stream
        if not self._open:
            self._early += data
        elif upstream is not None:
            upstream.write(data)
        if not stream.stalled:
            stream.deadline = time.monotonic() + self._limits.tcp_idle_timeout

    def _client_ended(self) -> None:
        if self._upstream is not None and self._open:
            self._upstream.shut()
        self._both_ended()

    def pause_writing(self) -> None:
        self.reading_changed()

    def resume_writing(self) -> None:
        self._touch()
        self.reading_changed()

    def reading_changed(self) -> None:
        """Each side is read as long as the other takes it."""
        upstream = self._upstream
        if upstream is None or not upstream.established or self._silent:
            return
        if not upstream.stalled:
            upstream.deadline = NEVER
        for source, sink in ((self.stream, upstream), (upstream, self.stream)):
            if sink.stalled:
                source.pause_reading()
            else:
                source.resume_reading()

    def _touch(self) -> None:
        if not self.stream.stalled:
            self.stream.deadline = time.monotonic() + self._limits.tcp_idle_timeout

    def rearm(self) -> None:
        self._touch()

    def upstream_rearm(self) -> None:
        if self._upstream is not None and not self._upstream.established:
            self._upstream.deadline = time.monotonic() + self._limits.connect_timeout

    def deadline_passed(self) -> None:
        self._end("client_stalled" if self.stream.stalled else "idle")

    # The end

    def judge(self, now: float) -> str:
        """Stops relaying where the client has lost its right: the connection manager ends it."""
        self._judged = self._gateway.generation
        upstream = self._upstream
        if upstream is None:
            return ""
        refusal = self._refusal(now)
        if refusal:
            self._silent = True
            self.stream.pause_reading()
            upstream.pause_reading()
        else:
            self._follow(upstream)
        return refusal

    def losses(self, _outlook: Outlook, _standing: Standing, _now: float) -> Iterator[str]:
        """It has no requests."""
        return iter(())

    def _follow(self, upstream: DialledStream) -> None:
        """Looks whether its upstream is where it was, and does what is to be done where it is not."""
        addresses = self._gateway.generation.tunnels[self._entry.route].addresses
        if not self._open:
            if addresses != self._addresses:
                self._dial_anew(upstream)
        elif upstream.address in addresses:
            self._former = None
            self._gateway.former["tcp"].discard(self)
        else:
            now, limits = time.monotonic(), self._limits
            if self._former is None:
                self._former = now
                self._gateway.former["tcp"].add(self)
            number, since = self._entry.number, now - self._former
            pause = limits.end_spread * share(number) if len(self._gateway.former["tcp"]) > FEW else 0.0
            over = since >= limits.drain_timeout or (since >= pause and self._rests(upstream))
            if over and limits.drains_former and not self._why:
                self._gateway.metrics.connection_ended(MOVED)
                self._end(MOVED, LINGER)

    def _rests(self, upstream: DialledStream) -> bool:
        """Whether nothing was said for a while, and what was said last came from the upstream."""
        if upstream.unsent or self.stream.unsent:
            return False
        silent = upstream.silent_for()
        return silent is not None and silent >= self._limits.drain_grace

    def _dial_anew(self, upstream: DialledStream) -> None:
        """Nothing was sent yet to where its upstream is no more."""
        self._upstream = None
        upstream.abort()
        try:
            self._upstream = self._dial(self._gateway)
        except OSError as error:
            self._refuse(UNREACHABLE, str(error))

    def drain(self) -> None:
        """Bytes have no end of their own: it goes on until it is cut."""

    def expel(self, reason: str) -> None:
        self._end(reason)
        self.stream.cease()

    def _end(self, why: str, linger: float = 0.0) -> None:
        self._why = self._why or why
        if self._roomless:
            self._refuse_unheard(why)
        elif self._upstream is not None:
            self._upstream.abort()
            self.stream.close(LINGER if not why else linger)

    def connection_lost(self, error: Exception | None) -> None:
        try:
            if self._roomless:
                self._roomless = False
                self._why = "client_gone"
                self._tell("tcp_open", "denied")
            self._gateway.limiter.release(self._counted)
            self._gateway.former["tcp"].discard(self)
            if self._upstream is not None:
                self._upstream.abort()
            if self._open:
                self._why = self._why or ("client_gone" if error is not None else "")
                self._tell("tcp_close", "ok")
        finally:
            self._when_ended()


class _Upstream:
    """The upstream's stream tells its side of it through here."""

    def __init__(self, connection: TcpConnection) -> None:
        self._lost = connection.upstream_lost
        self.connected = connection.connected
        self.data_received = connection.answered
        self.pause_writing = self.resume_writing = connection.reading_changed
        self.deadline_passed = connection.upstream_overdue
        self.rearm = connection.upstream_rearm

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self, error)
