"""TCP connection of a client, relayed unread to one address: access is decided once, and again at each publication.

Bytes are relayed as fast as the slower side takes them. Either side may end its half (TLS: close_notify, RFC 8446 §6.1;
TCP: FIN) and still receive the rest; a reset is passed on as a reset. The limits count the connection as one long
request. It has two audit lines: `tcp_open`, and `tcp_close` with its bytes and duration.

A publication may move the upstream. By `upstream.on_change`, a connection to the former address goes on, or is ended
once it is quiet, after ``limits.drain_timeout`` at the latest. One that is still being dialled is dialled again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
from tlsproxy.proxy.transport.dial import DialledStream, dial, leads_to
from tlsproxy.proxy.transport.stream import read_both
from tlsproxy.proxy.transport.tls import TlsStream
from tlsproxy.snapshot.nodes import Upstream
from tlsproxy.tls.client_context import ServerRefused
from tlsproxy.wire.proxy_protocol import Announcement

LINGER: Final = 1.0
UNREACHABLE: Final = "upstream_unreachable"
UPSTREAM_TLS: Final = "upstream_tls"


class TcpConnection:
    """Handler of one TLS stream, from its handshake on."""

    patient = False

    def __init__(
        self,
        gateway: Gateway,
        stream: TlsStream,
        entry: Entry,
        announcement: Announcement | None,
        when_ended: Callable[[], None],
    ) -> None:
        """``announcement``: the header that the upstream gets first.

        ``_former_since``: moment since which the upstream's address is a former one (monotonic clock), or None.
        """
        self.stream = stream
        self._gateway = gateway
        self._entry = entry
        self._announcement = announcement
        self._when_ended = when_ended
        self._upstream: DialledStream | None = None
        self._dialled: Upstream | None = None
        self._former_since: float | None = None
        self._reason = self._error = ""
        self._open = False
        self._judged = gateway.generation
        self._counted: tuple[int, ...] = ()
        self._opened = time.monotonic()
        self._limits = gateway.bounds
        self._admitted = self._awaits_audit = self._cut_off = False
        self._early = b""  # data before the upstream is connected
        self._begin()

    def _begin(self) -> None:
        """Decides, once the audit log has room for the decision's line."""
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
        stream.pause_reading()  # until the upstream is connected
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
        self._awaits_audit = True
        stream.pause_reading()
        stream.deadline = NEVER  # the gate has its own

    def _begin_again(self, late: AuditUnavailable | None) -> None:
        if not self._awaits_audit:
            return
        if late is not None:
            self._refuse_waiting(late.reason, str(late))
            return
        self._awaits_audit = False
        self.stream.resume_reading()
        self._begin()

    def _refuse_waiting(self, reason: str, error: str = "") -> None:
        self._awaits_audit = False
        self.stream.resume_reading()
        self._refuse(reason, error)

    def _dial(self, gateway: Gateway) -> DialledStream:
        self._dialled = target = gateway.generation.tunnels[self._entry.route].upstream
        upstream = dial(
            gateway.loop,
            target.addresses,
            _UpstreamHandler(self),
            gateway.deadlines,
            self._limits.client_write,
            target.tls,
        )
        if self._announcement is not None:
            upstream.prologue = self._announcement.header()
        upstream.when_ended = self._upstream_ended
        upstream.deadline = time.monotonic() + self._limits.connect_timeout
        return upstream

    def _refusal(self, now: float) -> str:
        """Reason to refuse the client, "" for none."""
        return self._entry.standing.turned_away(self._gateway.generation, self._entry.route, now)

    def _refuse(self, reason: str, error: str = "") -> None:
        self._reason = reason
        self._audit("tcp_open", "denied", error)
        allowed, metrics = reason in {UNREACHABLE, UPSTREAM_TLS}, self._gateway.metrics
        metrics.tcp(self._entry.standing.principal.role, "failed" if allowed else "denied", reason)
        if not allowed:
            metrics.refused(self._entry.refusal(time.time(), "tcp", reason))
        self.stream.close(LINGER)

    def _audit(self, event: Literal["tcp_open", "tcp_close"], result: EventResult, error: str = "") -> None:
        principal, entry = self._entry.standing.principal, self._entry
        detail: dict[str, str | int | float] = {
            **entry.transport(),
            "listener": entry.route,
            "role": principal.role,
            "rule": principal.rule,
            **entry.certificate(),
        }
        if self._announcement is not None:
            detail["request_id"] = self._announcement.unique_id
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
            reason=self._reason or "allowed",
            detail=detail,
        )
        if self._admitted:
            self._admitted = False
            self._gateway.audit.put(line)
        else:
            self._gateway.audit.write(line)

    # Callbacks of the upstream's stream

    def connected(self) -> None:
        self._gateway.metrics.tcp(self._entry.standing.principal.role, "allowed", "allowed")
        self._open = True
        self._audit("tcp_open", "ok")
        if self._upstream is not None:
            self._gateway.metrics.negotiated("upstream", self._upstream.negotiated)
            if self._early:
                early, self._early = self._early, b""
                self._upstream.write(early)
            if self.stream.ended:
                self._upstream.shut()
        self._restart_idle_time()
        self.reading_changed()

    def answered(self, data: bytes) -> None:
        if self._cut_off:
            return
        self._entry.bytes_out += len(data)
        stream = self.stream
        stream.write(data)
        if not stream.stalled:
            stream.deadline = time.monotonic() + self._limits.tcp_idle_timeout

    def _upstream_ended(self) -> None:
        """Ends the half towards the client, which may still send."""
        self.stream.shut()
        self._both_ended()

    def upstream_lost(self, handler: _UpstreamHandler, error: Exception | None) -> None:
        if self._upstream is None or self._upstream.handler is not handler:
            return  # another was dialled in its place
        self._upstream, reason = None, UNREACHABLE
        if isinstance(error, ServerRefused):  # with TLS 1.3 also after it was connected
            reason, self._error = UPSTREAM_TLS, str(error)
            self._gateway.metrics.upstream_tls(error.reason)
        if not self._open:
            self._gateway.notice("connect_failed")
            self._refuse(reason, str(error or ""))
            return
        if error is None:
            self.stream.close(LINGER)
        else:
            self._reason = self._reason or (UPSTREAM_TLS if self._error else "upstream_broken")
            self.stream.reset()

    def upstream_overdue(self) -> None:
        upstream = self._upstream
        if upstream is not None:
            upstream.abort(TimeoutError("it took too long"))

    def _both_ended(self) -> None:
        upstream = self._upstream
        if upstream is not None and upstream.ended and self.stream.ended:
            self._end("")

    # Callbacks of the client's stream

    def data_received(self, data: bytes) -> None:
        if self._judged is not self._gateway.generation:
            self.judge(self._gateway.clock.now())
        if self._cut_off:
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
        self._restart_idle_time()
        self.reading_changed()

    def reading_changed(self) -> None:
        """Reads from each side as long as the other takes the data."""
        upstream = self._upstream
        if upstream is None or not upstream.established or self._cut_off:
            return
        if not upstream.stalled:
            upstream.deadline = NEVER
        read_both(self.stream, upstream)

    def _restart_idle_time(self) -> None:
        if not self.stream.stalled:
            self.stream.deadline = time.monotonic() + self._limits.tcp_idle_timeout

    def rearm(self) -> None:
        self._restart_idle_time()

    def upstream_rearm(self) -> None:
        if self._upstream is not None and not self._upstream.established:
            self._upstream.deadline = time.monotonic() + self._limits.connect_timeout

    def deadline_passed(self) -> None:
        self._end("client_stalled" if self.stream.stalled else "idle")

    # The end

    def judge(self, now: float) -> str:
        """Reason to end the connection, "" for none. With one, nothing more is relayed until the manager ends it."""
        self._judged = self._gateway.generation
        upstream = self._upstream
        if upstream is None:
            return ""
        refusal = self._refusal(now)
        if refusal:
            self._cut_off = True
            self.stream.pause_reading()
            upstream.pause_reading()
        else:
            self._check_address(upstream)
        return refusal

    def losses(self, _outlook: Outlook, _standing: Standing, _now: float) -> Iterator[str]:
        """No requests that could be lost."""
        return iter(())

    def _check_address(self, upstream: DialledStream) -> None:
        """Applies `upstream.on_change` where the upstream's address has changed."""
        present = self._gateway.generation.tunnels[self._entry.route].upstream
        if not self._open:
            if present != self._dialled or present.tls is not upstream.tls:
                self._dial_again(upstream)
        elif leads_to(upstream, present.addresses, present.tls):
            self._former_since = None
            self._gateway.former["tcp"].discard(self)
        else:
            now, limits = time.monotonic(), self._limits
            if self._former_since is None:
                self._former_since = now
                self._gateway.former["tcp"].add(self)
            number, since = self._entry.number, now - self._former_since
            pause = limits.end_spread * share(number) if len(self._gateway.former["tcp"]) > FEW else 0.0
            over = since >= limits.drain_timeout or (since >= pause and self._is_quiet(upstream))
            if over and limits.drains_former and not self._reason:
                self._gateway.metrics.connection_ended(MOVED)
                self._end(MOVED, LINGER)

    def _is_quiet(self, upstream: DialledStream) -> bool:
        """Whether both sides are quiet for ``limits.drain_grace``, and the upstream had the last word."""
        if upstream.unsent or self.stream.unsent:
            return False
        silent = upstream.silent_for()
        return silent is not None and silent >= self._limits.drain_grace

    def _dial_again(self, upstream: DialledStream) -> None:
        """Dials the new address: nothing was sent to the former one."""
        self._upstream = None
        upstream.abort()
        try:
            self._upstream = self._dial(self._gateway)
        except OSError as error:
            self._refuse(UNREACHABLE, str(error))

    def drain(self) -> None:
        """Goes on until it is cut: a byte stream has no boundary at which to end it."""

    def expel(self, reason: str) -> None:
        self._end(reason)
        self.stream.cease()

    def _end(self, reason: str, linger: float = 0.0) -> None:
        self._reason = self._reason or reason
        if self._awaits_audit:
            self._refuse_waiting(reason)
        elif self._upstream is not None:
            self._upstream.abort()
            self.stream.close(LINGER if not reason else linger)

    def connection_lost(self, error: Exception | None) -> None:
        try:
            if self._awaits_audit:
                self._awaits_audit = False
                self._reason = "client_gone"
                self._audit("tcp_open", "denied")
            self._gateway.limiter.release(self._counted)
            self._gateway.former["tcp"].discard(self)
            if self._upstream is not None:
                (self._upstream.reset if self._open and error is not None else self._upstream.abort)()
            if self._open:
                self._reason = self._reason or ("client_gone" if error is not None else "")
                self._audit("tcp_close", "ok", self._error)
        finally:
            self._when_ended()


class _UpstreamHandler:
    """Handler of the upstream's stream, which calls back the connection."""

    def __init__(self, connection: TcpConnection) -> None:
        self._lost = connection.upstream_lost
        self.connected = connection.connected
        self.data_received = connection.answered
        self.pause_writing = self.resume_writing = connection.reading_changed
        self.deadline_passed = connection.upstream_overdue
        self.rearm = connection.upstream_rearm

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self, error)
