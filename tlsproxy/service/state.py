"""The service's state for the admin server: readiness, status, metrics, and reload on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import tlsproxy
from tlsproxy.admin.readiness import BUNDLE, RELOAD, SHARED, Part, Readiness, bundle_part, reload_part
from tlsproxy.config.policy import confinement_text
from tlsproxy.form import form
from tlsproxy.metrics.recent import dated
from tlsproxy.proxy.frontend.listener import Bound
from tlsproxy.service.clock_jumps import ClockJumps
from tlsproxy.service.lock_publisher import LockPublisher
from tlsproxy.service.reloader import Reloader
from tlsproxy.service.serving import Served
from tlsproxy.snapshot.bundles import Bundles
from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.jwks import KeySets
from tlsproxy.threads import in_thread


def described(bound: Sequence[Bound]) -> list[dict[str, Any]]:
    """Addresses that are listened on, with their protocols."""
    return [{"address": entry.address, "protocols": entry.where.protocols} for entry in bound]


def _rights(generation: Generation, role: str) -> str:
    """A role's rights as configured: `docs rw where tenant = "{cn}"`."""
    return f"{generation.policy.roles[role]}{confinement_text(generation.config.roles[role])}"


def _facts(generation: Generation) -> dict[str, Any]:
    """Members of a status that follow from a generation alone."""
    material, policy = generation.material, generation.policy
    return {
        "unused": [str(problem) for problem in generation.unused],
        "authorities": [asdict(authority) for authority in material.authorities],
        "crls": [asdict(crl) for crl in material.crls],
        "roles": {name: _rights(generation, name) for name in policy.roles},
        "keys": {key.name: {"role": key.role or None, "rights": str(key.rights)} for key in policy.keys.keys},
        "token_issuers": [issuer.name for issuer in generation.config.jwt_issuers],
    }


class Sharing(Protocol):
    @property
    def part(self) -> Part: ...
    def status(self) -> Mapping[str, Any]: ...


class ServiceState:
    """Implements :class:`tlsproxy.admin.server.AdminState` by the parts of a running service."""

    def __init__(  # noqa: PLR0913 - parts of the service, by name
        self,
        served: Served,
        bound: Sequence[Bound],
        reloader: Reloader,
        *,
        key_sets: KeySets,
        bundles: Bundles,
        jumps: ClockJumps,
        locks: LockPublisher,
        shared: Sharing | None = None,
    ) -> None:
        self._served = served
        self._listeners = described(bound)
        self._reloader = reloader
        self._key_sets = key_sets
        self._bundles = bundles
        self._jumps = jumps
        self._locks = locks
        self._shared = shared
        self._scraping = asyncio.Lock()

    async def ready(self) -> Readiness:
        last = self._reloader.last
        faults = (last.error,) if last.result == "held" else self._reloader.faults
        verdict = (await self._served.ready()).with_part(RELOAD, reload_part(faults))
        if (bundle := self._bundles.status()) is not None:
            verdict = verdict.with_part(BUNDLE, bundle_part(bundle, self._served.clock.now()))
        return verdict if self._shared is None else verdict.with_part(SHARED, self._shared.part)

    async def status(self, subject: str) -> Mapping[str, Any]:
        figures, readiness = await self._served.figures(subject), await self.ready()
        return await in_thread(self._status, self._served.generation, readiness, figures)

    def _status(self, generation: Generation, readiness: Readiness, figures: Mapping[str, Any]) -> dict[str, Any]:
        """In a thread: it takes as long as thousands of roles, locks and inputs do. So it reads only what is replaced
        as a whole.
        """
        facts = _facts(generation)
        return {
            "version": tlsproxy.__version__,
            "form": form(),
            "readiness": readiness.as_json(),
            "generation": {
                "number": generation.number,
                "digest": generation.digest,
                "built_at": generation.built_at,
                "included": generation.states.configuration.value.files,
                "warnings": self._reloader.warnings(),
                "unused": facts.pop("unused"),
                "restart_needed": generation.restart_needed,
            },
            "last_reload": self._reloader.status(),
            "certificate": asdict(generation.material.leaf),
            "authorities": facts.pop("authorities"),
            "lifetimes": [asdict(one) for one in self._reloader.lifetimes],
            "crls": facts.pop("crls"),
            "locks": self._locks.status(),
            **({} if self._shared is None else {"shared": self._shared.status()}),
            "key_sets": self._key_sets.status(generation.config),
            "bundle": self._bundles.status(),
            "clock": self._jumps.status(),
            "listeners": self._listeners,
            **facts,
            **figures,
            "decisions": dated(figures["decisions"], time.time() - time.monotonic()),
        }

    async def reload(self, trigger: str, *, force: bool) -> Mapping[str, Any]:
        """Shielded: if the caller stops waiting, the reload goes on. ``warnings`` are those that it brought."""
        before = await in_thread(self._reloader.warnings)
        await asyncio.shield(self._reloader.reload(trigger, force=force))
        return await in_thread(self._reloaded, before)

    def _reloaded(self, before: Sequence[str]) -> dict[str, Any]:
        return self._reloader.status() | {
            "restart_needed": self._served.generation.restart_needed,
            "warnings": [warning for warning in self._reloader.warnings() if warning not in before],
        }

    async def rehearse(self) -> Mapping[str, Any]:
        return await self._reloader.rehearse()

    async def cut(self, number: int) -> bool:
        return await self._served.cut(number)

    async def metrics(self) -> tuple[bytes, str]:
        """With the verdict of this moment, as ``/readyz`` has it. One after the other: each takes a thread."""
        self._served.counted.readiness((await self.ready()).good)
        self._served.counted.bundled(self._bundles.status())
        async with self._scraping:
            return await self._served.metrics()
