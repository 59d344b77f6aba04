"""Reload: a trigger, a build off the loop, one publication or none, and a verdict that everybody can read.

A failed build leaves the old generation serving and says so in the log, the metrics, the status and the audit log. One
build runs at a time; what asks meanwhile gets the verdict of the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from tlsproxy.authz.audit import event_line
from tlsproxy.errors import TlsproxyError
from tlsproxy.service import logs
from tlsproxy.service.changes import Change, changes_between
from tlsproxy.service.jwks import KeySets
from tlsproxy.threads import in_thread
from tlsproxy.tls.files import Inputs, read_inputs
from tlsproxy.tls.generation import Generation, build
from tlsproxy.tls.watch import Watcher

_AGAIN: Final = 5.0
"""Seconds before a watcher that failed is begun anew."""

_log = logging.getLogger(__name__)


class Target(Protocol):
    """What serves. ``publish`` raises TlsproxyError where it cannot, and then nothing has changed."""

    @property
    def generation(self) -> Generation: ...
    async def publish(self, generation: Generation, inputs: Inputs) -> None: ...


class Audit(Protocol):
    def write(self, line: str) -> None: ...


class ReloadMetrics(Protocol):
    def reload(self, result: str, trigger: str, when: float) -> None: ...
    def published(self, generation: Generation) -> None: ...


class ReloadTold(Protocol):
    """Hears of each attempt twice: when it begins, and what came of it."""

    def reloading(self) -> None: ...
    def reloaded(self, verdict: Verdict) -> None: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """``unchanged``: built anew from the same files and key sets.

    ``error`` says why, naming the file. ``when`` is epoch seconds. ``changes`` is what the last
    publication that made a difference (at ``changed_at``) made different: it may have been before this one.
    """

    result: Literal["ok", "unchanged", "failed"]
    trigger: str
    when: float
    generation: int
    error: str = ""
    changed_at: float | None = None
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A generation that could be published, the inputs that it is made of, and how it differs from what serves."""

    generation: Generation
    inputs: Inputs
    changes: tuple[Change, ...]


class Reloader:
    """The one owner of what is published after the start."""

    def __init__(  # noqa: PLR0913 - the parts of one service, by name
        self,
        *,
        target: Target,
        audit: Audit,
        metrics: ReloadMetrics,
        config_path: Path,
        environ: Mapping[str, str],
        watcher: Watcher,
        key_sets: KeySets,
        told: ReloadTold,
    ) -> None:
        self._target = target
        self._audit = audit
        self._metrics = metrics
        self._config_path = config_path
        self._environ = environ
        self._watcher = watcher
        self._key_sets = key_sets
        self._told = told
        self._turn = asyncio.Lock()
        self._begun = self._answered = 0
        self._tried = ""
        generation = target.generation
        self.last = Verdict("ok", "start", generation.built_at, generation.number)
        metrics.published(generation)
        watcher.seen(generation.digest)

    async def run(self) -> None:
        """Follows the watcher until cancelled. Should the watcher itself fail, it is begun anew."""
        while True:
            try:
                async with aclosing(self._watcher.changes()) as changes:
                    async for trigger in changes:
                        await self.reload(trigger)
            except Exception as error:  # noqa: BLE001 - nothing may end the watching for good
                _log.critical("a defect in the watcher", exc_info=error)
                await asyncio.sleep(_AGAIN)

    async def reload(self, trigger: str) -> Verdict:
        """Builds from the files as they are now and the key sets fetched last, and publishes it if it is good."""
        asked = self._begun
        async with self._turn:
            if self._answered > asked:
                return self.last
            self._begun += 1
            self._told.reloading()
            verdict = await self._attempt(trigger)
            self._told.reloaded(verdict)
            self._answered = self._begun
            return verdict

    async def _attempt(self, trigger: str) -> Verdict:
        old = self._target.generation
        self._tried = ""
        try:
            candidate = await self._candidate(old)
            await self._target.publish(candidate.generation, candidate.inputs)
        except TlsproxyError as error:
            return self._failed(trigger, old, str(error))
        except Exception as error:  # noqa: BLE001 - a defect of ours, which must not end the watching
            _log.critical("a defect in reload", exc_info=error)
            return self._failed(trigger, old, f"{type(error).__name__}: {error}")
        new = candidate.generation
        logs.set_level(new.config)
        self._watcher.seen(new.digest)
        self._metrics.published(new)
        self._key_sets.published(new.config)
        return self._tell(trigger, old, new, candidate.changes)

    async def _candidate(self, old: Generation) -> Candidate:
        """From the files as they are now and the key sets fetched last. Changes nothing."""
        inputs = await in_thread(read_inputs, self._config_path, self._environ, earlier=self._watcher.inputs)
        self._tried = inputs.digest
        new = await in_thread(
            build,
            number=old.number + 1,
            config_path=self._config_path,
            environ=self._environ,
            previous=old,
            inputs=inputs,
            documents=await self._key_sets.of(inputs.loaded.config),
        )
        # Not on the loop: of 10,000 rules it takes 60 ms. Not after the publication, which is told of in one go.
        return Candidate(new, inputs, await in_thread(changes_between, old, new))

    def _failed(self, trigger: str, old: Generation, error: str) -> Verdict:
        """The watcher does not come back with what was tried, but does with anything else.

        What it saw may have been something else: a writer was at work between its look and this one.
        """
        self._watcher.seen(self._tried)
        for problem in error.splitlines() or [error]:  # a configuration may have many
            _log.error(
                "reload (%s) failed, generation %d goes on serving: %s",
                trigger,
                old.number,
                problem,
                extra={"trigger": trigger, "generation": old.number},
            )
        verdict = replace(
            self.last, result="failed", trigger=trigger, when=time.time(), generation=old.number, error=error
        )
        return self._record(verdict, "failed", {"error": error})

    def _tell(self, trigger: str, old: Generation, new: Generation, changes: tuple[Change, ...]) -> Verdict:
        changed = (old.digest, old.documents) != (new.digest, new.documents)
        _log.info(
            "reload (%s): generation %d serves%s, certificate %s until %s",
            trigger,
            new.number,
            "" if changed else " (the files are the same)",
            new.material.leaf.serial,
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(new.material.leaf.not_after)),
            extra={"trigger": trigger, "generation": new.number},
        )
        for name in new.restart_needed:
            _log.warning("%s has changed, which takes effect at the next restart only", name)
        for warning in new.warnings:
            _log.warning("%s", warning)
        detail = {
            "old_certificate_sha256": old.material.leaf.sha256,
            "new_certificate_sha256": new.material.leaf.sha256,
        }
        verdict = Verdict("unchanged", trigger, time.time(), new.number, "", self.last.changed_at, self.last.changes)
        if changed:
            verdict = replace(verdict, result="ok", changed_at=verdict.when, changes=changes)
        return self._record(verdict, "ok", detail)

    def _record(self, verdict: Verdict, result: Literal["ok", "failed"], detail: Mapping[str, str]) -> Verdict:
        self.last = verdict
        self._metrics.reload(verdict.result, verdict.trigger, verdict.when)
        line = event_line(
            when=verdict.when,
            event="reload",
            remote=None,
            result=result,
            reason=verdict.trigger,
            detail={"generation": verdict.generation, **detail},
        )
        self._audit.write(line)
        return verdict

    @property
    def faults(self) -> tuple[str, ...]:
        """Why some of the files, or the configuration, are not in force as they are now."""
        return tuple(map(str, self._watcher.inputs.failures.values()))

    def status(self) -> dict[str, Any]:
        return asdict(self.last)
