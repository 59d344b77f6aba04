"""State that all connections share, and the interfaces of the audit log and the metrics to the data path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol

from tlsproxy.audit.line import Refusal
from tlsproxy.audit.query import AuditQuery
from tlsproxy.config.listeners import balancers_of
from tlsproxy.config.model import HttpProtocol, ProtocolName
from tlsproxy.errors import NoMemory, Overloaded
from tlsproxy.proxy.core.audit_gate import AuditGate
from tlsproxy.proxy.core.balancer import Balancer, RetryBudget
from tlsproxy.proxy.core.impact_analysis import Outlook
from tlsproxy.proxy.core.impairments import Impairments
from tlsproxy.proxy.core.runtime_limits import RuntimeLimits
from tlsproxy.proxy.core.scheduler import Scheduler
from tlsproxy.proxy.core.wall_clock import Clock
from tlsproxy.proxy.decision.affinity import SINCE
from tlsproxy.proxy.decision.call_plan import CallPlans
from tlsproxy.proxy.decision.request_plan import Plans
from tlsproxy.proxy.limits.fair_shares import Shares
from tlsproxy.proxy.limits.limiter import Limiter
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.snapshot.generation import Generation
from tlsproxy.tls.client_context import ServerRefused
from tlsproxy.tls.negotiated import Negotiated, Side

Event = Literal["key_missing", "connect_failed", "impaired"]
Notice = Callable[[Event], None]
"""``key_missing``: a token names a key which its issuer does not have. ``connect_failed``: an upstream cannot be
connected to. Each may come for every request."""

MAX_WAITING: Final = 1024
"""Requests that wait for an upstream connection, and as many that wait for memory."""


class AuditSink(Protocol):
    """Audit log. ``accepts``: there is room. ``take`` promises room for one line, which must then be ``put``;
    ``write`` is for a line without a promise. ``when_writable`` calls back once there may be room again.

    ``read`` returns the lines that match a query, ``largest`` bytes at most, and blocks: call it in a thread.
    """

    def accepts(self) -> bool: ...
    def take(self) -> bool: ...
    def put(self, line: str) -> None: ...
    def write(self, line: str) -> None: ...
    def when_writable(self, callback: Callable[[], None]) -> None: ...
    def read(self, query: AuditQuery, largest: int) -> list[bytes]: ...


class MetricsSink(Protocol):
    def request(self, operation: str, role: str, outcome: str, reason: str, seconds: float) -> None: ...
    def tcp(self, role: str, outcome: str, reason: str) -> None: ...
    def refused(self, refusal: Refusal) -> None: ...
    def handshake(self, outcome: str, seconds: float) -> None: ...
    def negotiated(self, side: Side, agreed: Negotiated | None) -> None: ...
    def connection(self, outcome: str) -> None: ...
    def connection_closed(self) -> None: ...
    def connection_ended(self, reason: str) -> None: ...
    def accept_error(self) -> None: ...
    def upstream_connect(self, outcome: str) -> None: ...
    def upstream_retry(self) -> None: ...
    def upstream_retry_refused(self) -> None: ...
    def upstream_tls(self, reason: str) -> None: ...


def moved(former: Generation, present: Generation, protocol: HttpProtocol) -> bool:
    """Whether requests of ``protocol`` go to another upstream, or with another host name or API key, than before."""
    return former is not present and (
        [(node.name, node.drained, node.api(protocol)) for node in former.nodes]
        != [(node.name, node.drained, node.api(protocol)) for node in present.nodes]
        or former.upstream_api_key != present.upstream_api_key
    )


class Gateway:
    """The present generation, and what is decided and limited by it.

    ``generation`` is replaced by :meth:`publish` and by nothing else: one assignment, between two callbacks.
    ``bounds`` are the limits in force, to be read at the time of use. ``proxies`` are the networks that speak the
    PROXY protocol, by the name of each listener; one that is bound until a restart has those of the start.
    ``clock`` is the time that dates are judged by.
    ``scheduler`` shares the loop among work that takes more than one turn. ``memory`` is the budget of bodies and
    messages that are read, in bytes; ``places`` that of upstream connections, of requests and of gRPC clients.
    ``balancer`` chooses among the nodes of the upstream, ``retries`` is the budget of requests that are sent to
    a second one.
    ``impairments`` counts what could not be served, for readiness. ``release`` is that of the upstream, as far as it is
    known.
    ``notice`` is called with what another part of the service should act on. ``probe`` is the address
    from which our own watchdog is about to connect (:mod:`tlsproxy.proxy.frontend.watchdog_probe`), None at any other
    time. ``former`` are the gRPC and TCP connections with a connection to a former upstream; those of requests are
    counted by :class:`tlsproxy.proxy.upstream.pool.Pool`.
    """

    __slots__ = (
        "_affinity_key",
        "audit",
        "audit_gate",
        "balancer",
        "bounds",
        "calls",
        "clock",
        "deadlines",
        "draining",
        "former",
        "generation",
        "impairments",
        "limiter",
        "loop",
        "memory",
        "metrics",
        "notice",
        "places",
        "plans",
        "probe",
        "proxies",
        "release",
        "retries",
        "scheduler",
    )

    def __init__(
        self,
        generation: Generation,
        audit: AuditSink,
        metrics: MetricsSink,
        deadlines: Deadlines,
        notice: Notice,
        table: LimitTable,
        affinity_key: bytes = b"",
    ) -> None:
        """``affinity_key`` is one for all processes of the service."""
        self.loop = asyncio.get_running_loop()
        self.scheduler = Scheduler(self.loop)
        self.clock = Clock()
        self.impairments = Impairments()
        self.audit = audit
        self.metrics = metrics
        self.deadlines = deadlines
        self.notice = notice
        self.limiter = Limiter(table)
        self.bounds = RuntimeLimits(generation.config)
        self.balancer = Balancer()
        self.retries = RetryBudget()
        self.places = Shares(0, MAX_WAITING, lambda: Overloaded("Too many requests wait for the upstream"))
        self.memory = Shares(0, MAX_WAITING, lambda: NoMemory("Too many bodies are being read at once"))
        self.audit_gate = AuditGate(audit, self.bounds, blocks=generation.started.audit.on_full == "block")
        deadlines.each += (self._bound_places, self.places.review, self.memory.review, self.audit_gate.sweep)
        self._affinity_key = affinity_key
        self.release: tuple[int, int] | None = None
        self._adopt(generation)
        self.draining = False
        self.former: dict[ProtocolName, set[object]] = {"grpc": set(), "tcp": set()}
        self.probe: tuple[str, int] | None = None

    def connect_failed(self, outcome: Literal["failed", "timeout"], error: Exception | None = None) -> None:
        """Counts a connection to the upstream that was not made; its name may have another address by now."""
        self.metrics.upstream_connect(outcome)
        if isinstance(error, ServerRefused):
            self.metrics.upstream_tls(error.reason)
        self.notice("connect_failed")

    def publish(self, generation: Generation) -> None:
        """Replaces the generation, and with it all remembered decisions."""
        before, after = self.generation.config, generation.config
        if moved(self.generation, generation, "rest"):
            self.release = None
        self._adopt(generation)
        if (before.limits, before.upstream) != (after.limits, after.upstream):
            self.deadlines.rearm()

    def learn_release(self, release: tuple[int, int] | None) -> None:
        """Note the upstream's release. Remembered plans are given up where it decides whether affinities are sent."""
        before, self.release = self._affinity_of(self.generation), release
        if self._affinity_of(self.generation) != before:
            self._plan_anew()

    def _affinity_of(self, generation: Generation) -> bytes | None:
        """The key of affinities; None where none are sent."""
        wanted = generation.config.upstream.route_affinity == "identity"
        return self._affinity_key if wanted and self.release is not None and self.release >= SINCE else None

    def outlook(self, candidate: Generation) -> Outlook:
        """Plans by which requests and calls would be decided under ``candidate``."""
        quotas = self.limiter.quotas_of(candidate.config)
        return Outlook(candidate, Plans(candidate, quotas), CallPlans(candidate, quotas))

    def _adopt(self, generation: Generation) -> None:
        self.generation = generation
        self.limiter.adopt(generation.config)
        self.bounds.adopt(generation.config)
        self.balancer.adopt(
            generation.nodes, time.monotonic(), affinity=generation.config.upstream.affinity == "identity"
        )
        self._bound_places()
        self.proxies = balancers_of(generation.started) | balancers_of(generation.config)
        self.memory.capacity = self.bounds.inspection_memory
        self._plan_anew()

    def _bound_places(self) -> None:
        self.places.capacity = self.balancer.capacity(self.bounds.upstream_connections, time.monotonic())

    def _plan_anew(self) -> None:
        key = self._affinity_of(self.generation)
        self.plans = Plans(self.generation, self.limiter.quotas, key)
        self.calls = CallPlans(self.generation, self.limiter.quotas, key)
