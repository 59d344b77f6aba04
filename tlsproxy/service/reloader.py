"""Reload: a trigger, inputs judged each for itself, one publication or none, and a verdict that everybody can read.

What is not good keeps its last good state and is told of in the log, the metrics, the status and the audit log. One
reload runs at a time; what asks meanwhile gets the verdict of the next. What waits for its moment, or was the fault of
something else than the files, is tried again by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from tlsproxy.audit.line import EventResult, event_line
from tlsproxy.config.tokens import key_sources
from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.proxy.core.impact import Consequences
from tlsproxy.proxy.core.wall_clock import Clock
from tlsproxy.service import impact_report, logs
from tlsproxy.service.reload_result import InputStatus, ReloadResult, counted, input_states, outcome, reason, wrong
from tlsproxy.snapshot.diff import Change, changes_between
from tlsproxy.snapshot.files import Inputs
from tlsproxy.snapshot.generation import Generation, assemble, propose
from tlsproxy.snapshot.jwks import KeySets
from tlsproxy.snapshot.name_resolution import DEADLINE, NameResolver, names_of
from tlsproxy.snapshot.states import Fault, Input, States
from tlsproxy.snapshot.validation import InputReading
from tlsproxy.snapshot.watch import Watcher
from tlsproxy.text import rfc3339
from tlsproxy.threads import in_thread
from tlsproxy.tls.trust import NEVER

_AGAIN: Final = 5.0
"""Seconds before a watcher that failed is begun anew."""
FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 60.0
"""Seconds between two tries of what the files are not to blame for: twice as many each time, up to this."""
LOOK: Final = 1.0
"""Seconds between two looks at the clock while something waits for its moment: the clock may be set."""

_OWN: Final = frozenset({"time", "retry"})
"""Triggers of our own, whose outcome is told only where it is another than before."""

_PUBLICATION: Final = Input("publication", "")

_log = logging.getLogger(__name__)


class Publisher(Protocol):
    """What serves. ``publish`` raises TlsproxyError where it cannot, and then nothing has changed."""

    @property
    def generation(self) -> Generation: ...
    @property
    def clock(self) -> Clock: ...
    async def consider(self, generation: Generation) -> Consequences: ...
    async def dismiss(self) -> None: ...
    async def publish(self, generation: Generation) -> None: ...


class AuditWriter(Protocol):
    def write(self, line: str) -> None: ...


class ReloadMetrics(Protocol):
    def reload(self, result: str, trigger: str, when: float) -> None: ...
    def published(self, generation: Generation) -> None: ...
    def judged(self, inputs: Mapping[tuple[str, str], int]) -> None: ...


class ReloadObserver(Protocol):
    """Hears of each attempt twice: when it begins, and what came of it."""

    def reloading(self) -> None: ...
    def reloaded(self, verdict: ReloadResult) -> None: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A generation that could be published, how it differs from what serves, and what of the inputs is not in it.

    It is the generation that serves where nothing has changed.
    """

    generation: Generation
    states: States
    faults: Mapping[Input, Fault]
    inputs: Inputs
    changes: tuple[Change, ...]


class Reloader:
    """The one owner of what is published after the start."""

    def __init__(  # noqa: PLR0913 - the parts of one service, by name
        self,
        *,
        target: Publisher,
        audit: AuditWriter,
        metrics: ReloadMetrics,
        config_path: Path,
        environ: Mapping[str, str],
        watcher: Watcher,
        key_sets: KeySets,
        told: ReloadObserver,
        faults: Mapping[Input, Fault],
    ) -> None:
        """``faults`` are what the first generation has to do without."""
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
        self._resolver = NameResolver()
        self._judged = asyncio.Event()
        self._pause = FIRST_RETRY
        self._retry_at = time.monotonic() + FIRST_RETRY
        generation = target.generation
        self._states, self._faults = generation.states, faults
        error = wrong(faults)
        self.last = ReloadResult(
            "partial" if error else "ok", "start", generation.built_at, generation.number, error, inputs=self._inputs
        )
        self._told_outdated = 0, 0.0
        metrics.published(generation)
        metrics.judged(counted(self._inputs))

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

    async def retry(self) -> None:
        """Tries again, until cancelled, what time or the environment may have mended."""
        while True:
            self._judged.clear()
            self._tell_outdated()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._quiet()):
                    await self._judged.wait()
                    continue
            now = self._target.clock.now()
            if any(fault.moment is not None and fault.moment <= now for fault in self._waiting()):
                await self.reload("time")
            elif _of_environment(self._faults) and time.monotonic() >= self._retry_at:
                await self.reload("retry")

    def _quiet(self) -> float | None:
        """Seconds until something may be due; None where nothing will be."""
        now = self._target.clock.now()
        due = (crl.next_update for crl in self._target.generation.material.crls if crl.next_update > now)
        moments = (*(fault.moment for fault in self._waiting() if fault.moment is not None), *due)
        pauses = [min(moment - now, LOOK) for moment in moments]
        if _of_environment(self._faults):
            pauses.append(self._retry_at - time.monotonic())
        return max(min(pauses), 0.0) if pauses else None

    def _tell_outdated(self) -> None:
        """Once for each generation, when it begins to serve, and at the moment when a CRL runs out."""
        generation, now = self._target.generation, self._target.clock.now()
        former, since = self._told_outdated
        for text in generation.material.trust.outdated(now, since if former == generation.number else -NEVER):
            _log.error("%s", text)
        self._told_outdated = generation.number, now

    def _waiting(self) -> Iterable[Fault]:
        """Those of inputs. After a publication that failed all of them wait for its next attempt."""
        failed = _PUBLICATION in self._faults and self._faults[_PUBLICATION].kind is FailureKind.ENVIRONMENT
        return () if failed else self._faults.values()

    async def reload(self, trigger: str, *, force: bool = False) -> ReloadResult:
        """Judges the files as they are now and the key sets fetched last, and publishes what is good and new.

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
            self._judged.set()
            return verdict

    async def rehearse(self) -> dict[str, Any]:
        """The verdict that a reload would have now, as JSON values, beside what it would warn of. Changes nothing."""
        async with self._turn:
            old = self._target.generation
            verdict = ReloadResult("ok", "admin", time.time(), old.number)
            try:
                candidate = await self._candidate(old, await self._watcher.read())
                told = await self._considered(candidate, old)
            except (TlsproxyError, OSError, MemoryError) as failure:
                failed = replace(verdict, result="failed", error=str(failure))
                return asdict(failed) | {"warnings": (), "restart_needed": old.restart_needed}
            if told is not None:
                await self._target.dismiss()
        new, error = candidate.generation, wrong(candidate.faults)
        verdict = replace(
            verdict,
            result=outcome(error, changed=new is not old),
            error=error,
            changes=candidate.changes,
            consequences=told,
            inputs=input_states(self._config_path, candidate.states, candidate.faults),
        )
        if told is not None and impact_report.exceeds(told, old.config.limits.mass_cut):
            verdict = replace(verdict, result="held", error=_held(told, renewed=new.states.server != old.states.server))
        warnings = self._warnings(new, candidate.inputs, candidate.faults)
        return asdict(verdict) | {"warnings": warnings, "restart_needed": new.restart_needed}

    async def _attempt(self, trigger: str, *, force: bool) -> ReloadResult:
        old, before = self._target.generation, self._faults
        try:
            inputs = await self._watcher.read()
            # Whatever comes of it, the watcher does not come back with the same, but does with anything else.
            self._watcher.seen(inputs.digest)
            candidate = await self._candidate(old, inputs)
            told = await self._considered(candidate, old)
            if told is not None and not force and impact_report.exceeds(told, old.config.limits.mass_cut):
                await self._target.dismiss()
                return await self._hold(trigger, old, candidate, told)
            if candidate.generation is not old:
                await self._target.publish(candidate.generation)
        except TlsproxyError as error:
            return self._defer(trigger, old, str(error))
        except (OSError, MemoryError) as error:
            return self._defer(trigger, old, f"cannot be built now: {error or type(error).__name__}")
        except Exception as error:  # noqa: BLE001 - a defect of ours, which must not end the watching
            _log.critical("a defect in reload", exc_info=error)
            return self._defer(trigger, old, f"{type(error).__name__}: {error}")
        self._states, self._faults = candidate.states, candidate.faults
        self._settle_retry(before)
        new = candidate.generation
        if new is not old:
            logs.set_level(new.config)
            self._metrics.published(new)
            self._watcher.serves(new.config)
        self._key_sets.published(new.config)
        return self._tell(trigger, old, candidate, before, told)

    async def _considered(self, candidate: Candidate, old: Generation) -> Mapping[str, Any] | None:
        """The consequences of its publication; None where there is nothing to publish."""
        if candidate.generation is old:
            return None
        try:
            return (await self._target.consider(candidate.generation)).told()
        except Exception as error:  # noqa: BLE001 - a defect of ours, which must not keep a right from being taken away
            _log.critical("a defect in considering", exc_info=error)
            return Consequences(unheard=1).told()

    async def _candidate(self, old: Generation, inputs: Inputs) -> Candidate:
        """From these files and the key sets fetched last. Changes nothing."""
        config = inputs.loaded.config
        resolving = in_thread(self._resolver.resolve, names_of(config, old.started), DEADLINE)
        documents = await self._key_sets.of(config)
        reading = InputReading(self._config_path, self._environ, inputs, await resolving, documents, old.started)
        now = self._target.clock.now()
        proposal = await in_thread(propose, reading, old, now, states=self._states, faults=self._faults)
        new, states = proposal.generation, proposal.states
        if new is None or states is None:
            raise AssertionError("there is a good state of everything that serves")
        # Not on the loop: of 10,000 rules it takes 60 ms. Not after the publication, which is told of in one go.
        changes = () if new is old else await in_thread(changes_between, old, new)
        return Candidate(new, states, proposal.faults, inputs, changes)

    def _settle_retry(self, before: Mapping[Input, Fault]) -> None:
        """The pauses grow for as long as the environment is at fault, and begin anew after that."""
        lasts = _of_environment(self._faults) and _of_environment(before)
        self._pause = min(2 * self._pause, LAST_RETRY) if lasts else FIRST_RETRY
        self._retry_at = time.monotonic() + self._pause

    def _defer(self, trigger: str, old: Generation, error: str) -> ReloadResult:
        """Nothing that was judged counts: the same files are to be judged and published again."""
        before, now = self._faults, self._target.clock.now()
        fault = Fault(error, FailureKind.ENVIRONMENT, None, "", now, kept=True)
        self._faults = {**before, _PUBLICATION: fault}
        self._settle_retry(before)
        heard = trigger in _OWN and _texts(before) == _texts(self._faults)
        return self.last if heard else self._keep(trigger, "failed", old, {})

    async def _hold(self, trigger: str, old: Generation, candidate: Candidate, told: Mapping[str, Any]) -> ReloadResult:
        """It is not tried again before the next trigger, which considers it anew with those who are connected then.

        The server's own certificate is not held: it cuts nobody, and its day may come before that of the rest.
        """
        before, serves, server = self._faults, old, candidate.states.server
        renewed = server != old.states.server
        if renewed:
            serves = await in_thread(
                assemble,
                replace(old.states, server=server),
                number=candidate.generation.number,
                config_path=self._config_path,
                environ=self._environ,
                started=old.started,
                former=old,
                tunnels=old.tunnels,
                now=candidate.generation.built_at,
            )
            changes = await in_thread(changes_between, old, serves)
            await self._target.publish(serves)
            self._metrics.published(serves)
            self._states = replace(self._states, server=server)
            self.last = replace(self.last, changed_at=time.time(), changes=changes)
        error = _held(told, renewed=renewed)
        fault = Fault(error, FailureKind.INPUT, None, "", self._target.clock.now(), kept=True)
        self._faults = {**candidate.faults, _PUBLICATION: fault}
        self._settle_retry(before)
        detail = {"connections": told["cut"]["count"], **(_certificates(old, serves) if renewed else {})}
        heard = trigger in _OWN and self.last.result == "held" and not renewed
        return self._keep(trigger, "held", serves, detail, told, heard=heard)

    def _keep(
        self,
        trigger: str,
        result: Literal["held", "failed"],
        serves: Generation,
        detail: Mapping[str, str | int],
        told: Mapping[str, Any] | None = None,
        *,
        heard: bool = False,
    ) -> ReloadResult:
        """Why what serves goes on. It is told, unless everybody has ``heard`` it: then only the status is newer."""
        error = wrong(self._faults)
        verdict = replace(
            self.last,
            result=result,
            trigger=trigger,
            when=time.time(),
            generation=serves.number,
            error=error,
            consequences=told,
            inputs=self._inputs,
        )
        if heard:
            self.last = verdict
            return verdict
        for problem in error.splitlines():  # a configuration may have many
            _log.error(
                "reload (%s) %s, generation %d goes on serving: %s",
                trigger,
                result,
                serves.number,
                problem,
                extra={"trigger": trigger, "generation": serves.number},
            )
        return self._record(verdict, "failed", {"error": error, **detail})

    def _tell(
        self,
        trigger: str,
        old: Generation,
        candidate: Candidate,
        before: Mapping[Input, Fault],
        told: Mapping[str, Any] | None,
    ) -> ReloadResult:
        new, error = candidate.generation, wrong(self._faults)
        changed = new is not old
        if not changed and trigger in _OWN and _texts(before) == _texts(self._faults):
            return self.last
        if error and not changed:
            return self._keep(trigger, "failed", old, {})
        _log.info(
            "reload (%s): generation %d serves%s, certificate %s until %s",
            trigger,
            new.number,
            "" if changed else " (the files are the same)",
            new.material.leaf.serial,
            rfc3339(new.material.leaf.not_after),
            extra={"trigger": trigger, "generation": new.number},
        )
        for problem in error.splitlines():
            _log.error("reload (%s): not in generation %d: %s", trigger, new.number, problem)
        for name in new.restart_needed:
            _log.warning("%s has changed, which takes effect at the next restart only", name)
        for sentence in impact_report.sentences(told) if told is not None else ():
            _log.warning("reload (%s): %s", trigger, sentence)
        for warning in self.warnings():
            _log.warning("%s", warning)
        verdict = replace(
            self.last,
            result=outcome(error, changed=changed),
            trigger=trigger,
            when=time.time(),
            generation=new.number,
            error=error,
            consequences=told,
            inputs=self._inputs,
        )
        if changed:
            verdict = replace(verdict, changed_at=verdict.when, changes=candidate.changes)
        detail = _certificates(old, new) | ({"error": error} if error else {})
        return self._record(verdict, "partial" if error else "ok", detail)

    def _record(self, verdict: ReloadResult, result: EventResult, detail: Mapping[str, str | int]) -> ReloadResult:
        self.last = verdict
        self._metrics.reload(verdict.result, verdict.trigger, verdict.when)
        self._metrics.judged(counted(verdict.inputs))
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
    def _inputs(self) -> tuple[InputStatus, ...]:
        return input_states(self._config_path, self._states, self._faults)

    @property
    def faults(self) -> tuple[str, ...]:
        """Why some of the files, or the configuration, are not in force as they are now."""
        return tuple(reason(*each) for each in self._faults.items())

    def warnings(self) -> tuple[str, ...]:
        """Of what serves, at this moment, and of the files as they were read last."""
        return self._warnings(self._target.generation, self._watcher.inputs, self._faults)

    def _warnings(self, generation: Generation, inputs: Inputs, faults: Mapping[Input, Fault]) -> tuple[str, ...]:
        return (
            *generation.warnings,
            *generation.material.warnings(self._target.clock.now()),
            *inputs.warnings,
            *(
                f"{source.shown}: its keys have not been fetched yet: the tokens that they verify are refused"
                for source in key_sources(generation.config)
                if source not in generation.states.documents
            ),
            *(fault.text for which, fault in faults.items() if which.kind == "name" and fault.kept),
        )

    def status(self) -> dict[str, Any]:
        return asdict(self.last)


def _texts(faults: Mapping[Input, Fault]) -> dict[Input, str]:
    return {which: fault.text for which, fault in faults.items()}


def _of_environment(faults: Mapping[Input, Fault]) -> bool:
    return any(fault.kind is FailureKind.ENVIRONMENT for fault in faults.values())


def _held(told: Mapping[str, Any], *, renewed: bool) -> str:
    """``renewed``: the server's own certificate, beside it."""
    why, but = "; ".join(impact_report.sentences(told)), ", but for the server's own certificate" if renewed else ""
    return f"held back by limits.mass_cut{but} until `tlsproxy reload --force`, or until the files cut fewer: {why}"


def _certificates(old: Generation, new: Generation) -> dict[str, str]:
    return {
        "old_certificate_sha256": old.material.leaf.sha256,
        "new_certificate_sha256": new.material.leaf.sha256,
    }
