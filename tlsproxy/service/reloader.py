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
from tlsproxy.proxy.consequences import Consequences
from tlsproxy.service import foretold, logs
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
    """What serves. ``publish`` raises TlsproxyError where it cannot, and then nothing has changed.

    What was considered is then published, or dismissed.
    """

    @property
    def generation(self) -> Generation: ...
    async def consider(self, generation: Generation, inputs: Inputs) -> Consequences: ...
    async def dismiss(self) -> None: ...
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
    """``unchanged``: built anew from the same files and key sets. ``held``: back, by `limits.mass_cut`.

    ``error`` says why, naming the file. ``when`` is epoch seconds. ``changes`` is what the last
    publication that made a difference (at ``changed_at``) made different: it may have been before this one.
    ``consequences`` are those that the publication had, or would have had: as JSON values, None where it had none.
    """

    result: Literal["ok", "unchanged", "failed", "held"]
    trigger: str
    when: float
    generation: int
    error: str = ""
    changed_at: float | None = None
    changes: tuple[Change, ...] = ()
    consequences: Mapping[str, Any] | None = None


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

    async def reload(self, trigger: str, *, force: bool = False) -> Verdict:
        """Builds from the files as they are now and the key sets fetched last, and publishes it if it is good.

        ``force``: `limits.mass_cut` does not hold it back.
        """
        asked = self._begun
        async with self._turn:
            if self._answered > asked and not (force and self.last.result == "held"):
                return self.last
            self._begun += 1
            self._told.reloading()
            verdict = await self._attempt(trigger, force=force)
            self._told.reloaded(verdict)
            self._answered = self._begun
            return verdict

    async def rehearse(self) -> dict[str, Any]:
        """The verdict that a reload would have now, as JSON values, beside what it would warn of. Changes nothing."""
        async with self._turn:
            old = self._target.generation
            verdict = Verdict("ok", "admin", time.time(), old.number)
            try:
                candidate = await self._candidate(old)
            except TlsproxyError as error:
                failed = replace(verdict, result="failed", error=str(error))
                return asdict(failed) | {"warnings": (), "restart_needed": old.restart_needed}
            new, told = candidate.generation, await self._considered(candidate)
            await self._target.dismiss()
        verdict = replace(verdict, changes=candidate.changes, consequences=told)
        if not _differ(old, new):
            verdict = replace(verdict, result="unchanged")
        elif foretold.exceeds(told, old.config.limits.mass_cut):
            verdict = replace(verdict, result="held", error=_held(told))
        return asdict(verdict) | {"warnings": new.warnings, "restart_needed": new.restart_needed}

    async def _attempt(self, trigger: str, *, force: bool) -> Verdict:
        old = self._target.generation
        self._tried = ""
        try:
            candidate = await self._candidate(old)
            told = await self._considered(candidate)
            if not force and foretold.exceeds(told, old.config.limits.mass_cut):
                await self._target.dismiss()
                return self._hold(trigger, old, told)
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
        return self._tell(trigger, old, candidate, told)

    async def _considered(self, candidate: Candidate) -> Mapping[str, Any]:
        return (await self._target.consider(candidate.generation, candidate.inputs)).told()

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
            self.last,
            result="failed",
            trigger=trigger,
            when=time.time(),
            generation=old.number,
            error=error,
            consequences=None,
        )
        return self._record(verdict, "failed", {"error": error})

    def _hold(self, trigger: str, old: Generation, told: Mapping[str, Any]) -> Verdict:
        """It is not tried again before the next trigger, which considers it anew with those who are connected then."""
        self._watcher.seen(self._tried)
        error = _held(told)
        extra = {"trigger": trigger, "generation": old.number}
        _log.error("reload (%s): %s; generation %d goes on serving", trigger, error, old.number, extra=extra)
        verdict = replace(
            self.last,
            result="held",
            trigger=trigger,
            when=time.time(),
            generation=old.number,
            error=error,
            consequences=told,
        )
        return self._record(verdict, "failed", {"error": error, "connections": told["cut"]["count"]})

    def _tell(self, trigger: str, old: Generation, candidate: Candidate, told: Mapping[str, Any]) -> Verdict:
        new, changed = candidate.generation, _differ(old, candidate.generation)
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
        for sentence in foretold.sentences(told):
            _log.warning("reload (%s): %s", trigger, sentence)
        for warning in new.warnings:
            _log.warning("%s", warning)
        detail = {
            "old_certificate_sha256": old.material.leaf.sha256,
            "new_certificate_sha256": new.material.leaf.sha256,
        }
        verdict = Verdict("unchanged", trigger, time.time(), new.number, "", self.last.changed_at, self.last.changes)
        if changed:
            verdict = replace(verdict, result="ok", changed_at=verdict.when, changes=candidate.changes)
        verdict = replace(verdict, consequences=told)
        return self._record(verdict, "ok", detail)

    def _record(self, verdict: Verdict, result: Literal["ok", "failed"], detail: Mapping[str, str | int]) -> Verdict:
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


def _differ(old: Generation, new: Generation) -> bool:
    return (old.digest, old.documents) != (new.digest, new.documents)


def _held(told: Mapping[str, Any]) -> str:
    why = "; ".join(foretold.sentences(told))
    return f"held back by limits.mass_cut until `tlsproxy reload --force`, or until the files cut fewer: {why}"
