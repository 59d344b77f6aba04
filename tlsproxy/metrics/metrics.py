"""Counters, and their samples for an exposition. Conventions: prometheus.io/docs/practices/naming.

The hot path adds to plain dicts and integers, in the event loop's thread, without locks. A scrape copies them there;
whatever takes longer with thousands of roles is left to the thread that makes the text. Each label's values are from a
table or from the configuration, never from a client's request, so that no client can create series.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import tlsproxy
from tlsproxy.audit.line import Refusal
from tlsproxy.authz.locks import KINDS
from tlsproxy.form import form
from tlsproxy.metrics import families
from tlsproxy.metrics.counts import Histogram, RequestCounts
from tlsproxy.metrics.families import HANDSHAKE_BUCKETS, REQUEST_BUCKETS
from tlsproxy.metrics.process import process_series
from tlsproxy.metrics.prometheus import Series
from tlsproxy.metrics.recent import Recent
from tlsproxy.snapshot.lifetimes import Kind, ends_by_name, lifetimes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tlsproxy.proxy.limits.fair_shares import Shares
    from tlsproxy.snapshot.generation import Generation
    from tlsproxy.tls.negotiated import Negotiated, Side

_SHORT: Final = 16
"""Hex digits of a certificate's digest in a label."""

_RELOADED: Final = frozenset({"ok", "unchanged"})


class Metrics:
    """`pool` returns upstream connections (idle, busy) and waiting requests, `audit` lines (queued, written, dropped,
    and the most that may be queued).

    `limits` returns how often the table of limits had no free row, and how often its lock was not acquired. `shares`
    returns those of `memory` and `upstream`, in processes that have them. `request` counts one that has ended,
    `recent` are the last minutes.
    """

    def __init__(
        self,
        *,
        pool: Callable[[], tuple[int, int, int]],
        audit: Callable[[], tuple[int, int, int, int]],
        limits: Callable[[], tuple[int, int]],
        shares: Callable[[], Mapping[str, Shares]] = dict,
        nodes: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
    ) -> None:
        self._shares = shares
        self._nodes = nodes
        self._limits = limits
        self._pool = pool
        self._audit = audit
        self.recent = Recent()
        self._requests = RequestCounts(self.recent, REQUEST_BUCKETS)
        self.request = self._requests.ended
        self._tcp: dict[str, int] = defaultdict(int)
        self._handshakes: dict[str, int] = defaultdict(int)
        self._negotiated: dict[tuple[str, str, str, str], int] = defaultdict(int)
        self._handshake_durations = Histogram(HANDSHAKE_BUCKETS)
        self._connections: dict[str, int] = defaultdict(int)
        self._open_connections = 0
        self._connections_limit: list[tuple[tuple[()], int]] = []
        self._accept_errors = 0
        self._ended: dict[str, int] = defaultdict(int)
        self._upstream_connects: dict[str, int] = defaultdict(int)
        self._upstream_tls: dict[str, int] = defaultdict(int)
        self._upstream_retries = self._upstream_retries_refused = 0
        self._reloads: dict[tuple[str, str], int] = defaultdict(int)
        self._jumps: dict[str, int] = {"forward": 0, "back": 0}
        self._reload_failed = self._reload_held = False
        self._reload_last_success: float | None = None
        self._generation = 0
        self._certificates: dict[tuple[str, str], float] = {}
        self._crls: dict[str, float] = {}
        self._lifetimes: dict[tuple[Kind, str], tuple[float, float]] = {}
        self._inputs: Mapping[tuple[str, str], int] = {}
        self._locks: Mapping[str, int] = dict.fromkeys(KINDS, 0)
        self._sharing: tuple[bool, int] | None = None
        self._round_trips: dict[str, int] = defaultdict(int)
        self._bundle: Mapping[str, Any] | None = None
        self._ready: Mapping[str, bool] = {}

    def tcp(self, role: str, outcome: str, reason: str) -> None:
        """A connection of mode tcp was decided on, or failed. ``outcome`` as for a request."""
        self._tcp[reason] += 1
        self.recent.decided(role, outcome)

    def refused(self, refusal: Refusal) -> None:
        """Retains a refused request, handshake or connection, to be shown; other methods count it."""
        self.recent.refused(refusal)

    def handshake(self, outcome: str, seconds: float) -> None:
        self._handshakes[outcome] += 1
        self._handshake_durations.observe(seconds)

    def negotiated(self, side: Side, agreed: Negotiated | None) -> None:
        """A handshake with this side succeeded; None: it is spoken to in plaintext, which is not counted."""
        if agreed is not None:
            self._negotiated[side, agreed.version, agreed.cipher, agreed.group] += 1

    def connection(self, outcome: str) -> None:
        """A new connection: accepted, or closed at once (of `proxy/limits/addresses.py`, `wire/proxy_protocol.py`)."""
        self._connections[outcome] += 1
        if outcome == "accepted":
            self._open_connections += 1

    def connection_closed(self) -> None:
        """An accepted connection was closed."""
        self._open_connections -= 1

    def connection_ended(self, reason: str) -> None:
        """The gateway ends a connection: its right was lost, it is too old, or an operator cut it. Or it ends a request
        whose key or role no longer allows it, on a connection that continues.
        """
        self._ended[reason] += 1

    def accept_error(self) -> None:
        self._accept_errors += 1

    def upstream_connect(self, outcome: str) -> None:
        self._upstream_connects[outcome] += 1

    def upstream_tls(self, reason: str) -> None:
        self._upstream_tls[reason] += 1

    def upstream_retry(self) -> None:
        self._upstream_retries += 1

    def upstream_retry_refused(self) -> None:
        self._upstream_retries_refused += 1

    def clock_jumped(self, direction: str) -> None:
        """`forward` or `back`."""
        self._jumps[direction] += 1

    def reload(self, result: str, trigger: str, when: float) -> None:
        """The result of a reload: `ok`, `unchanged` (the files describe the serving generation), or another failure."""
        self._reloads[result, trigger] += 1
        self._reload_failed, self._reload_held = result not in _RELOADED, result == "held"
        if not self._reload_failed:
            self._reload_last_success = when

    def published(self, generation: Generation) -> None:
        """Replaces all series of the generation before: a certificate that no longer serves must not alarm.

        A certificate that occurs twice in a bundle is one series. Of several CRLs of one issuer the earliest
        `nextUpdate` counts.
        """
        material = generation.material
        self._generation = generation.number
        self._connections_limit = [((), generation.config.limits.connections)]
        self._lifetimes = ends_by_name(lifetimes_of(generation))
        self._certificates = {("server", material.leaf.sha256[:_SHORT]): material.leaf.not_after}
        for authority in material.authorities:
            self._certificates["ca", authority.sha256[:_SHORT]] = authority.not_after
        self._crls = {}
        for crl in material.crls:
            self._crls[crl.issuer] = min(crl.next_update, self._crls.get(crl.issuer, crl.next_update))

    def judged(self, inputs: Mapping[tuple[str, str], int]) -> None:
        """Sets the numbers of inputs by kind and state."""
        self._inputs = inputs

    def locked(self, kinds: Mapping[str, int]) -> None:
        """Sets the numbers of locks in force by kind; kinds without one have 0."""
        self._locks = {kind: kinds.get(kind, 0) for kind in KINDS}

    def shared(self, outcome: str) -> None:
        """A question to the store of shared limits has ended."""
        self._round_trips[outcome] += 1

    def sharing(self, *, up: bool, gateways: int) -> None:
        """Sets whether the store of shared limits answers, and the number of gateways."""
        self._sharing = up, gateways

    def bundled(self, bundle: Mapping[str, Any] | None) -> None:
        """Sets the status of the configuration's bundle; None without one."""
        self._bundle = bundle

    def readiness(self, parts: Mapping[str, bool]) -> None:
        """Sets the parts of readiness: whether each is good."""
        self._ready = parts

    def refused_handshakes(self, outcome: str) -> int:
        """Number of handshakes with this outcome so far."""
        return self._handshakes.get(outcome, 0)

    def series(self) -> list[Series]:
        """All families, those of the process included. Some samples are derived when they are read."""
        return [*self._collect(), *process_series()]

    def _collect(self) -> Iterator[Series]:
        yield families.BUILD_INFO.of([((tlsproxy.__version__, form()), 1)])
        yield from self._collect_requests()
        yield from self._collect_connections()
        yield from self._collect_upstream()
        yield from self._collect_generation()
        yield from self._collect_audit()
        yield families.READY.keyed(self._ready)

    def _collect_requests(self) -> Iterator[Series]:
        requests = self._requests.numbers.copy()
        yield Series(families.REQUESTS, _without_reasons(requests))
        yield families.REQUEST_DURATION.keyed(self._requests.durations)
        yield Series(families.DECISIONS, _by_reason(requests, self._tcp.copy()))
        overflows, unlocked = self._limits()
        yield families.LIMIT_OVERFLOWS.single(overflows)
        yield families.LIMIT_UNLOCKED.single(unlocked)
        yield from self._collect_shares()

    def _collect_shares(self) -> Iterator[Series]:
        shares = self._shares()
        refused = [((name, "full"), one.refused) for name, one in shares.items()]
        refused += [((name, "gave_way"), one.gave_way) for name, one in shares.items()]
        yield families.SHARE_REFUSALS.of(refused)
        memory = [one for name, one in shares.items() if name == "memory"]
        yield families.INSPECTION_WAITING.of(((), one.waiting) for one in memory)
        yield families.INSPECTION_MEMORY.of(((), one.held) for one in memory)
        yield families.INSPECTION_MEMORY_LIMIT.of(((), one.capacity) for one in memory)
        places = [one for name, one in shares.items() if name == "upstream"]
        yield families.UPSTREAM_CONNECTIONS_LIMIT.of(((), one.capacity) for one in places)

    def _collect_connections(self) -> Iterator[Series]:
        yield families.HANDSHAKES.keyed(self._handshakes)
        yield families.HANDSHAKE_DURATION.single(self._handshake_durations)
        yield families.NEGOTIATED.of(self._negotiated.items())
        yield families.CONNECTIONS_OPEN.single(self._open_connections)
        yield families.CONNECTIONS_LIMIT.of(self._connections_limit)
        yield families.CONNECTIONS.keyed(self._connections)
        yield families.CONNECTIONS_ENDED.keyed(self._ended)
        yield families.ACCEPT_ERRORS.single(self._accept_errors)

    def _collect_upstream(self) -> Iterator[Series]:
        idle, busy, waiting = self._pool()
        yield families.UPSTREAM_CONNECTIONS.keyed({"idle": idle, "busy": busy})
        yield families.UPSTREAM_WAITING.single(waiting)
        yield families.UPSTREAM_CONNECTS.keyed(self._upstream_connects)
        yield families.UPSTREAM_TLS.keyed(self._upstream_tls)
        yield families.UPSTREAM_RETRIES.single(self._upstream_retries)
        yield families.UPSTREAM_RETRIES_REFUSED.single(self._upstream_retries_refused)
        nodes = self._nodes()
        yield families.NODE_SERVING.keyed({node["name"]: node["state"] == "up" for node in nodes})
        yield families.NODE_IN_FLIGHT.keyed({node["name"]: node["in_flight"] for node in nodes})
        yield families.NODE_CONNECTIONS.keyed({node["name"]: node["connections"] for node in nodes})
        yield families.NODE_EJECTIONS.keyed({node["name"]: node["ejections"] for node in nodes})

    def _collect_generation(self) -> Iterator[Series]:
        yield families.RELOADS.of(self._reloads.items())
        yield families.CLOCK_JUMPS.keyed(self._jumps)
        success = [] if self._reload_last_success is None else [((), self._reload_last_success)]
        yield families.RELOAD_LAST_SUCCESS.of(success)
        yield families.RELOAD_FAILED.single(self._reload_failed)
        yield families.RELOAD_HELD.single(self._reload_held)
        yield families.GENERATION.single(self._generation)
        yield families.INPUTS.of(self._inputs.items())
        yield families.LOCKS.keyed(self._locks)
        shared = [] if self._sharing is None else [self._sharing]
        yield families.SHARED_STORE.of(((), up) for up, _ in shared)
        yield families.SHARED_GATEWAYS.of(((), gateways) for _, gateways in shared)
        yield families.SHARED_ROUND_TRIPS.keyed(self._round_trips)
        yield from self._collect_bundle()
        yield families.CERTIFICATE_NOT_AFTER.of(self._certificates.items())
        yield families.CRL_NEXT_UPDATE.keyed(self._crls)
        lifetimes = self._lifetimes | self._lifetime_of_bundle()
        yield families.EXPIRY.of((names, end) for names, (_, end) in lifetimes.items())
        yield families.EXPIRY_START.of((names, start) for names, (start, _) in lifetimes.items())

    def _collect_bundle(self) -> Iterator[Series]:
        bundle = {} if self._bundle is None else self._bundle
        for family, key in (
            (families.BUNDLE_VERSION, "version"),
            (families.BUNDLE_CREATED, "created"),
            (families.BUNDLE_LAST_SUCCESS, "fetched_at"),
        ):
            yield family.of([((), bundle[key])] if bundle.get(key) is not None else [])
        yield families.BUNDLE_FAILED.of([((), bool(bundle["error"]))] if bundle else [])

    def _lifetime_of_bundle(self) -> dict[tuple[Kind, str], tuple[float, float]]:
        bundle = self._bundle
        if bundle is None or bundle["expires"] is None:
            return {}
        return {("bundle", bundle["url"]): (bundle["created"], bundle["expires"])}

    def _collect_audit(self) -> Iterator[Series]:
        queued, written, dropped, limit = self._audit()
        yield families.AUDIT_LINES.single(written)
        yield families.AUDIT_DROPPED.single(dropped)
        yield families.AUDIT_QUEUE.single(queued)
        yield families.AUDIT_QUEUE_LIMIT.single(limit)


def _without_reasons(requests: Mapping[tuple[str, str, str, str], int]) -> Iterator[tuple[tuple[str, str, str], int]]:
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    for (operation, role, outcome, _), count in requests.items():
        counts[operation, role, outcome] += count
    yield from counts.items()


def _by_reason(
    requests: Mapping[tuple[str, str, str, str], int], tcp: dict[str, int]
) -> Iterator[tuple[tuple[str], int]]:
    """With relayed TCP connections, which ``tcp`` counts."""
    for (*_, reason), count in requests.items():
        tcp[reason] += count
    for reason, count in tcp.items():
        yield (reason,), count
