"""What the service tells of itself on the admin server: readiness, status, metrics, and reload on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import tlsproxy
from tlsproxy.config.model import ProtocolName
from tlsproxy.proxy.gateway import Gateway
from tlsproxy.proxy.listener import Listeners
from tlsproxy.proxy.pool import Pool
from tlsproxy.service.auditlog import AuditLog, NoAudit
from tlsproxy.service.jwks import KeySets
from tlsproxy.service.metrics import Metrics
from tlsproxy.service.readiness import OK, Address, UpstreamProbe, audit_part, generation_part
from tlsproxy.service.reloader import Reloader

MOST_TOLD: Final = 1000
"""Connections that a status names."""

_PARTS: Final[Mapping[ProtocolName, str]] = {"rest": "upstream", "grpc": "upstream_grpc"}


def described(listeners: Listeners) -> list[dict[str, Any]]:
    """For whoever asks where this is served: each address, and the protocols on it."""
    return [{"address": listener.bound, "protocols": listener.protocols} for listener in listeners]


class ServiceState:
    """Reads the parts of a running service; implements :class:`tlsproxy.service.admin.AdminState`."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        listeners: Listeners,
        pool: Pool,
        audit: AuditLog | NoAudit,
        metrics: Metrics,
        reloader: Reloader,
        key_sets: KeySets,
    ) -> None:
        self._gateway = gateway
        self._listeners = listeners
        self._pool = pool
        self._audit = audit
        self._metrics = metrics
        self._reloader = reloader
        self._key_sets = key_sets
        self._probes = {
            protocol: UpstreamProbe(partial(self._addresses, protocol))
            for protocol in gateway.generation.upstream_addresses
        }

    def _addresses(self, protocol: ProtocolName) -> Sequence[Address]:
        return self._gateway.generation.upstream_addresses[protocol]

    async def ready(self) -> Mapping[str, str]:
        audit = self._audit
        upstream = {_PARTS[protocol]: await probe() for protocol, probe in self._probes.items()}
        return {
            "listeners": "draining" if self._gateway.draining else self._listeners.trouble or OK,
            "generation": generation_part(self._gateway.generation, time.time()),
            **upstream,
            "audit": audit_part(healthy=audit.healthy, accepts=audit.accepts(), last_error=audit.last_error),
        }

    def status(self) -> Mapping[str, Any]:
        generation = self._gateway.generation
        idle, busy = self._pool.counts
        now = time.time()
        return {
            "version": tlsproxy.__version__,
            "generation": {
                "number": generation.number,
                "digest": generation.digest,
                "built_at": generation.built_at,
                "warnings": generation.warnings,
                "unused": [str(problem) for problem in generation.unused],
                "restart_needed": generation.restart_needed,
            },
            "last_reload": self._reloader.status(),
            "certificate": asdict(generation.material.leaf),
            "authorities": [asdict(authority) for authority in generation.material.authorities],
            "crls": [asdict(crl) for crl in generation.material.crls],
            "key_sets": self._key_sets.status(generation.config),
            "listeners": described(self._listeners),
            "connections": {
                "open": len(self._listeners.connections),
                "draining": self._gateway.draining,
                "live": [entry.described(now) for entry in self._gateway.register][:MOST_TOLD],
            },
            "upstream": {
                **{protocol: getattr(generation.config.upstream, protocol) for protocol in self._probes},
                "idle": idle,
                "busy": busy,
            },
            "audit": {"queued": self._audit.queued, "written": self._audit.written, "dropped": self._audit.dropped},
        }

    async def reload(self, trigger: str) -> Mapping[str, Any]:
        """Shielded: whoever asked may stop waiting, the reload goes on."""
        await asyncio.shield(self._reloader.reload(trigger))
        return self._reloader.status() | {"restart_needed": self._gateway.generation.restart_needed}

    def cut(self, number: int) -> bool:
        return self._gateway.register.cut(number)

    def metrics(self) -> tuple[bytes, str]:
        return self._metrics.render()
