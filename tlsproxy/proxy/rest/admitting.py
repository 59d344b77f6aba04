"""Waits of an exchange before its request may go upstream: room in the audit log, then the point its token depends on.

Each wait has a deadline, and the error that its end means.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from functools import partial
from typing import Final, Protocol

from tlsproxy.authz.access import Decision
from tlsproxy.errors import AuditUnavailable, RequestError, RequestTimeout, UpstreamTimeout
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import Work
from tlsproxy.proxy.decision.local_responses import Answer
from tlsproxy.proxy.decision.request_plan import Plan
from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.transport.tls import TlsStream
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.proxy.upstream.value_exists import Verdict
from tlsproxy.wire.head_buffer import HeadBuffer


class Client(Protocol):
    """The connection that a request came on. ``close`` says that it ends with this response.

    ``inbox`` begins with what has come of the request's body; ``tail`` is the end of each head that goes upstream.
    ``advance``: more of what has come may be wanted by now. What is said of an exchange may be said at any time, also
    while the connection is about to make it: the connection goes on when it is done with that.
    ``present``: whatever is about to be done with the request, it has been judged by the generation that is current.
    """

    entry: Entry
    stream: TlsStream
    close: bool
    inbox: HeadBuffer
    tail: bytes

    def advance(self) -> None: ...
    def present(self) -> None: ...
    def reading_changed(self) -> None: ...
    def exchange_done(self) -> None: ...
    def exchange_denied(self) -> None: ...
    def exchange_answered(self, answer: Answer) -> None: ...
    def exchange_failed(self, error: RequestError) -> None: ...
    def exchange_cut(self, error: RequestError) -> None: ...


Late = tuple[type[RequestError], str, str]
"""Error class and text of an expired wait, and the name of its time in :class:`RuntimeLimits`."""
_UNTOLD: Final[Late] = (
    UpstreamTimeout,
    "The upstream did not say in time whether the token is valid",
    "response_timeout",
)
NO_UPSTREAM: Final[Late] = (UpstreamTimeout, "No connection to the upstream became free in time", "connect_timeout")
SLOW_BODY: Final[Late] = (RequestTimeout, "The request body came too slowly", "body_timeout")


class Admitting(ABC):
    """An exchange until it asks for its upstream; made by :class:`tlsproxy.proxy.rest.exchange.Exchange`."""

    __slots__ = ("_client", "_ended", "_gateway", "_late", "_upstreams", "record")

    _gateway: Gateway
    _upstreams: Upstreams
    _client: Client
    _late: Late
    _ended: bool
    record: Record[Plan]

    def admit(self) -> None:
        """Begins now, or waits for room as far as that is allowed. Raises AuditUnavailable, Overloaded."""
        gateway, record = self._gateway, self.record
        if record.admit(gateway):
            self._start()
            return
        stream = self._client.stream
        gateway.audit_gate.wait(record.started, stream, self._readmit)
        stream.deadline = NEVER  # the gate has its own

    def _wait(self, late: Late) -> None:
        self._late = late
        self.rearm()

    def rearm(self) -> None:
        """Waits from now on for as long as is allowed now."""
        self._client.stream.deadline = time.monotonic() + getattr(self._gateway.bounds, self._late[2])

    def overdue(self) -> RequestError | None:
        """Error for the deadline that has passed; None where the wait goes on, until another deadline."""
        kind, text, _ = self._late
        return kind(text)

    @property
    def crowded(self) -> bool:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        return self._gateway.scheduler.crowded(self._client.entry)

    def later(self, go_on: Work) -> None:
        """As :class:`tlsproxy.proxy.core.scheduler.SlicedJob` has it."""
        client = self._client
        self._gateway.scheduler.add(client.entry, client.stream, partial(self._go_on, go_on))

    def _go_on(self, go_on: Work) -> None:
        self._client.present()
        if self._ended:
            return
        try:
            go_on()
        except RequestError as error:
            self._client.exchange_failed(error)
        else:
            self._client.advance()

    def _readmit(self, late: AuditUnavailable | None) -> None:
        if not self._ended:
            self._client.present()
        if self._ended:
            return
        try:
            if late is not None:
                raise late
            self.admit()
        except RequestError as error:
            self._client.exchange_failed(error)
        else:
            self._client.advance()  # its body may have come meanwhile

    def _start(self) -> None:
        """Its line has room. Raises :class:`RequestError`."""
        self._acquire()

    def _acquire(self) -> None:
        proviso = self.record.plan.proviso
        if proviso is None:
            self._connect()
            return
        self._wait(_UNTOLD)
        self._upstreams.points.ask(proviso.exists, proviso.head.fields, self.account, self._told)

    def _told(self, verdict: Verdict) -> None:
        """Whether there is the point that the token requires."""
        self._client.present()
        proviso = self.record.plan.proviso
        if self._ended or proviso is None:
            return
        if isinstance(verdict, Decision):
            self.record.plan = self.record.plan.refused(verdict)
            self._client.exchange_denied()
            return
        try:
            if verdict is not None:
                raise verdict
            self._connect()
        except RequestError as error:
            self._client.exchange_failed(error)
        else:
            self._client.advance()

    @property
    @abstractmethod
    def account(self) -> Account:
        """Account of the request's caller."""

    @abstractmethod
    def _connect(self) -> None:
        """Takes an upstream, or waits for one. Raises :class:`Overloaded`."""
