"""The data path of one process, from the listening sockets to the upstream: composed, published to, drained.

Signals, files and the admin server are the business of :mod:`tlsproxy.service.server`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from tlsproxy.admin import readiness
from tlsproxy.admin.node_checks import NodeChecks
from tlsproxy.admin.readiness import OK, Part, Readiness, not_ready
from tlsproxy.admin.upstream_findings import Finding, Found
from tlsproxy.admin.upstream_probe import Target, UpstreamProbe
from tlsproxy.audit.log import AuditLog, NoAudit
from tlsproxy.config.model import HttpProtocol
from tlsproxy.errors import AuditUnavailable, OutOfDescriptors
from tlsproxy.metrics.metrics import Metrics
from tlsproxy.metrics.prometheus import exposed
from tlsproxy.proxy.core.connection_manager import ConnectionManager
from tlsproxy.proxy.core.gateway import Gateway, Notice
from tlsproxy.proxy.core.impact import Consequences
from tlsproxy.proxy.core.impairments import UPSTREAM_FAILURES
from tlsproxy.proxy.core.wall_clock import Clock
from tlsproxy.proxy.frontend.connections import Connections
from tlsproxy.proxy.frontend.listener import BATCH, Bound, Listeners
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.upstream.upstreams import Upstreams
from tlsproxy.service import runtime
from tlsproxy.service.node_trail import NodeHealth
from tlsproxy.slices import slices
from tlsproxy.snapshot.generation import Generation
from tlsproxy.threads import in_thread

MAX_CONNECTIONS: Final = 1000
"""Most connections in a status."""

_REFUSALS: Final = {AuditUnavailable.reason: readiness.AUDIT, OutOfDescriptors.reason: readiness.DESCRIPTORS}
_REFUSED_HANDSHAKES: Final = {"crl_expired": readiness.CRL, "client_alert": readiness.CERTIFICATE}
"""Parts of readiness for which requests and handshakes are refused, by reason."""

_log = logging.getLogger(__name__)


def shown_upstreams(generation: Generation) -> Mapping[str, str]:
    """URLs by protocol, as a status shows them."""
    return {
        protocol: ", ".join(node.api(protocol).url for node in generation.nodes) for protocol in generation.protocols
    }


class Served(Protocol):
    """A data path: of one process, or of several workers. ``counted`` are the metrics of this process, ``limits`` the
    table of limits as far as this process needs it.
    """

    counted: Metrics
    limits: LimitTable | None

    @property
    def clock(self) -> Clock: ...
    @property
    def generation(self) -> Generation: ...
    async def consider(self, generation: Generation) -> Consequences: ...
    async def dismiss(self) -> None: ...
    async def publish(self, generation: Generation) -> None: ...
    async def ready(self) -> Readiness: ...
    async def figures(self, subject: str) -> Mapping[str, Any]: ...
    async def cut(self, number: int) -> bool: ...
    async def metrics(self) -> tuple[bytes, str]: ...
    async def expect_probe(self, address: tuple[str, int] | None) -> None: ...
    async def drain(self, ended: asyncio.Event) -> None: ...


class Serving:
    """Accepts from its creation until :meth:`drain` or :meth:`close`."""

    def __init__(  # noqa: PLR0913 - parts of the service, by name
        self,
        generation: Generation,
        bound: Sequence[Bound],
        audit: AuditLog | NoAudit,
        table: LimitTable,
        notice: Notice,
        numbers: Iterator[int],
        *,
        affinity_key: bytes,
        alone: bool,
    ) -> None:
        """``alone``: no other process accepts from the same sockets."""
        runtime.tune_allocator()
        runtime.freeze()
        self._audit = audit
        self.limits: LimitTable | None = table
        self.counted = Metrics(
            pool=lambda: self._upstreams.pool.counts,
            audit=lambda: (audit.queued, audit.written, audit.dropped, audit.capacity),
            limits=lambda: (table.overflows, table.lock.unlocked),
            nodes=self._nodes,
            shares=lambda: {"memory": self._gateway.memory, "upstream": self._gateway.places},
        )
        self._deadlines = Deadlines(asyncio.get_running_loop())
        self._gateway = Gateway(generation, audit, self.counted, self._deadlines, notice, table, affinity_key)
        self._impaired: Callable[[], None] = partial(notice, "impaired")
        self._gateway.impairments.notice = self._doubt
        audit.when_health_changes(partial(asyncio.get_running_loop().call_soon_threadsafe, self._impaired))
        self._manager = ConnectionManager(self._gateway, numbers)
        self._upstreams = Upstreams(self._gateway)
        self._listeners = Listeners(
            self._gateway, Connections(self._gateway, self._manager, self._upstreams), bound, BATCH if alone else 1
        )
        self._checks = NodeChecks(self._gateway.balancer, lambda: self.generation)
        self._checks.adopt()
        self._deadlines.each.append(NodeHealth(self._gateway.balancer).look)
        self._probes = {
            protocol: UpstreamProbe(
                partial(self._target, protocol),
                partial(notice, "connect_failed"),
                self._answered if protocol == "rest" else lambda _found: None,
            )
            for protocol in generation.protocols
        }

    def close(self) -> None:
        self._listeners.stop()
        self._listeners.connections.cut()
        self._manager.close()
        self._upstreams.pool.close()
        self._deadlines.close()
        self._checks.close()
        for probe in self._probes.values():
            probe.close()

    def _doubt(self) -> None:
        for probe in self._probes.values():
            probe.doubt()
        self._impaired()

    def _answered(self, found: Found) -> None:
        """Note what REST told; gRPC is the same Qdrant. One that does not answer is what it was."""
        if found.finding is Finding.GOOD:
            self._gateway.learn_release(found.release)

    def _target(self, protocol: HttpProtocol) -> Target:
        generation, balancer = self.generation, self._gateway.balancer
        nodes = [one.node for one in balancer.nodes if one.condition(time.monotonic()) == "up"]
        return Target(protocol, (nodes or generation.nodes)[0].api(protocol), generation.upstream_api_key)

    @property
    def clock(self) -> Clock:
        return self._gateway.clock

    @property
    def generation(self) -> Generation:
        return self._gateway.generation

    async def consider(self, generation: Generation) -> Consequences:
        return await self._manager.consider(generation)

    async def dismiss(self) -> None:
        """Does nothing: no candidate is kept."""

    async def publish(self, generation: Generation) -> None:
        self.adopt(generation)

    def adopt(self, generation: Generation) -> None:
        self._manager.publish(generation)
        self._upstreams.pool.review()
        self._checks.adopt()

    def _nodes(self) -> list[dict[str, Any]]:
        """Rows of a status, none without `upstream.nodes`."""
        return self._gateway.balancer.described(time.monotonic()) if self.generation.config.upstream.nodes else []

    async def ready(self) -> Readiness:
        audit, now = self._audit, self._gateway.clock.now()
        found = await asyncio.gather(*(probe() for probe in self._probes.values()))
        nodes = {one["name"]: one["state"] for one in self._nodes()}
        upstream = {
            readiness.UPSTREAM[protocol]: readiness.nodes_part(nodes, part)
            for protocol, part in zip(self._probes, found, strict=True)
        }
        parts = {
            readiness.LISTENERS: not_ready(readiness.DRAINING) if self._gateway.draining else OK,
            **upstream,
            readiness.CERTIFICATE: readiness.certificate_part(self.generation, now),
            readiness.CRL: readiness.crl_part(self.generation, now),
            readiness.AUDIT: readiness.audit_part(
                healthy=audit.healthy, accepts=audit.accepts(), last_error=audit.last_error
            ),
            readiness.DESCRIPTORS: self._descriptors_part(),
        }
        return Readiness(parts, self._refused())

    def _descriptors_part(self) -> Part:
        if trouble := self._listeners.trouble:
            return not_ready(trouble)
        try:
            os.close(os.open("/", os.O_PATH))
        except OSError as error:
            return not_ready(f"no connection to the upstream can be made: {error.strerror}")
        return OK

    def _refused(self) -> Mapping[str, int]:
        refused: Counter[str] = Counter()
        for (reason, grpc), count in self._gateway.impairments.failed.items():
            upstream = readiness.UPSTREAM["grpc" if grpc else "rest"]
            refused[upstream if reason in UPSTREAM_FAILURES else _REFUSALS[reason]] += count
        for outcome, part in _REFUSED_HANDSHAKES.items():
            refused[part] += self.counted.refused_handshakes(outcome)
        return refused

    async def figures(self, subject: str) -> Mapping[str, Any]:
        """The traffic-dependent part of a status. ``subject`` is a part of the names of listed clients."""
        idle, busy, _ = self._upstreams.pool.counts
        now = time.monotonic()
        live: list[dict[str, Any]] = []
        for entries in slices(self._manager):
            live += (entry.described(now) for entry in entries if entry.named(subject))
            if len(live) >= MAX_CONNECTIONS:
                break
            await asyncio.sleep(0)
        return {
            "connections": {
                "open": len(self._listeners.connections),
                "draining": self._gateway.draining,
                "live": live[:MAX_CONNECTIONS],
            },
            "tls": [
                {
                    "version": agreed.version,
                    "cipher": agreed.cipher,
                    "group": agreed.group or None,
                    "connections": count,
                }
                for agreed, count in self._manager.negotiated.items()
                if count
            ],
            "upstream": {
                **shown_upstreams(self.generation),
                "idle": idle,
                "busy": busy,
            },
            **({"nodes": nodes} if (nodes := self._nodes()) else {}),
            "former_upstream": {"rest": self._upstreams.pool.former}
            | {name: len(one) for name, one in self._gateway.former.items()},
            "decisions": await in_thread(self.counted.recent.decisions),
            "refusals": await in_thread(self.counted.recent.refusals),
            "audit": {"queued": self._audit.queued, "written": self._audit.written, "dropped": self._audit.dropped},
        }

    async def cut(self, number: int) -> bool:
        return self._manager.cut(number)

    async def metrics(self) -> tuple[bytes, str]:
        return await exposed(self.counted.series())

    async def expect_probe(self, address: tuple[str, int] | None) -> None:
        """Note the address from which our watchdog is about to connect; None after its probe."""
        self._gateway.probe = address

    async def drain(self, ended: asyncio.Event) -> None:
        """Stop accepting, and let connections finish, until ``ended`` or ``limits.drain_timeout``."""
        connections = self._listeners.connections
        self._gateway.draining = True
        self._listeners.stop()
        connections.drain(ended.set)
        deadline = self.generation.config.limits.drain_timeout
        try:
            async with asyncio.timeout(deadline):
                await ended.wait()
        except TimeoutError:
            _log.warning("%d connections are cut after %g s of draining", len(connections), deadline)
        connections.cut()
        await asyncio.sleep(0)  # each cut connection writes its audit line from the loop
