"""Reload: a trigger, validation of each input for itself, at most one publication, and a result.

A bad input keeps its last good state, and is reported in the log, metrics, status and audit log. One reload runs at a
time, and callers that wait meanwhile share the next one's result. An input that waits for a date, or failed by the
environment's fault (an unreachable file system), is tried again without a trigger.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from tlsproxy.audit.line import EventResult, event_line
from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.proxy.core.impact import Consequences
from tlsproxy.service import impact_report, logs, reload_trail
from tlsproxy.service.expiry_log import ExpiryLog
from tlsproxy.service.lock_publisher import LockPublisher, Publisher
from tlsproxy.service.lock_trail import AuditWriter
from tlsproxy.service.notices import Notices
from tlsproxy.service.reload_result import (
    InputStatus,
    ReloadResult,
    counted,
    input_statuses,
    outcome,
    problems,
    reason,
    settling,
)
from tlsproxy.snapshot.bundles import Bundles
from tlsproxy.snapshot.diff import Change, changes_between
from tlsproxy.snapshot.files import Inputs
from tlsproxy.snapshot.generation import Generation, assemble, propose
from tlsproxy.snapshot.jwks import KeySets
from tlsproxy.snapshot.lifetimes import Lifetime, warnings
from tlsproxy.snapshot.name_resolution import DEADLINE, NameResolver, names_of
from tlsproxy.snapshot.states import Fault, Input, States
from tlsproxy.snapshot.validation import InputReading
from tlsproxy.snapshot.watch import Watcher
from tlsproxy.text import utc_time
from tlsproxy.threads import in_thread
from tlsproxy.tls.trust import NEVER

_WATCHER_PAUSE: Final = 5.0
"""Seconds before a failed watcher is restarted."""
FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 60.0
"""Seconds between two attempts after faults of the environment: 1, 2, 4 … 60."""
EXPIRY_CHECK: Final = 3600.0
"""Most seconds between two looks at what ends soon. A clock that is set is a trigger of its own."""
CLOCK_CHECK: Final = 1.0
"""Seconds between two looks at the clock while an input waits for a date: the clock may be set."""

_INTERNAL: Final = frozenset({"time", "retry", "names"})
"""Triggers of the retries and of names, which are reported only if their outcome is a new one."""
_ASKED: Final = frozenset({"admin", "sighup"})
"""Triggers behind which somebody waits for the verdict, so that it waits for nothing."""

_PUBLICATION: Final = Input("publication", "")

_log = logging.getLogger(__name__)


class ReloadMetrics(Protocol):
    def reload(self, result: str, trigger: str, when: float) -> None: ...
    def published(self, generation: Generation) -> None: ...
    def judged(self, inputs: Mapping[tuple[str, str], int]) -> None: ...


class ReloadObserver(Protocol):
    """Notified when a reload begins, and of its result."""

    def reloading(self) -> None: ...
    def reloaded(self, result: ReloadResult) -> None: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A generation to publish, its changes, and the faults of inputs that it leaves out.

    Without changes it is the generation in force. ``judged_at`` is in seconds since the epoch.
    """

    generation: Generation
    states: States
    faults: Mapping[Input, Fault]
    inputs: Inputs
    changes: tuple[Change, ...]
    judged_at: float


class Reloader:
    """The only publisher after the start."""

    def __init__(  # noqa: PLR0913 - parts of the service, by name
        self,
        *,
        target: Publisher,
        audit: AuditWriter,
        metrics: ReloadMetrics,
        config_path: Path,
        environ: Mapping[str, str],
        watcher: Watcher,
        key_sets: KeySets,
        bundles: Bundles,
        observer: ReloadObserver,
        faults: Mapping[Input, Fault],
        locks: LockPublisher,
    ) -> None:
        """``faults`` are those of the first generation."""
        self._target = target
        self._audit, self._metrics = audit, metrics
        self._config_path = config_path
        self._environ = environ
        self._watcher = watcher
        self._key_sets = key_sets
        self._bundles = bundles
        self._notices = Notices(key_sets, bundles)
        self._locks = locks
        self._observer = observer
        self._lock = asyncio.Lock()
        self._started = self._completed = 0
        self._resolver = NameResolver()
        self._validated = asyncio.Event()
        self._pause = FIRST_RETRY
        self._retry_at = time.monotonic() + FIRST_RETRY
        generation = target.generation
        self._states, self._faults = generation.states, faults
        self._judged_at = generation.built_at
        self._reported = self._reportable
        error = problems(faults, self._judged_at)
        self.last = ReloadResult(
            "partial" if error else "ok",
            "start",
            generation.built_at,
            generation.number,
            error,
            inputs=self._inputs,
            config_sha256=generation.config_sha256,
        )
        self._expiry = ExpiryLog()
        metrics.published(generation)
        metrics.judged(counted(self._inputs))

    async def run(self) -> None:
        """Reload on each change of the watcher, until cancelled. A failed watcher is restarted."""
        while True:
            try:
                async with aclosing(self._watcher.changes()) as changes:
                    async for trigger in changes:
                        await self.reload(trigger)
            except Exception as error:  # noqa: BLE001 - nothing may end the watching for good
                _log.critical("a defect in the watcher", exc_info=error)
                await asyncio.sleep(_WATCHER_PAUSE)

    async def retry(self) -> None:
        """Reload, until cancelled, when time or the environment may have mended a fault."""
        while True:
            self._validated.clear()
            expiry = self._expiry.report(self.lifetimes, self._target.clock.now())
            with suppress(TimeoutError):
                async with asyncio.timeout(self._next_retry(expiry)):
                    await self._validated.wait()
                    continue
            now = self._target.clock.now()
            due = any(self._judged_at < fault.due <= now for fault in self._faults.values())
            if due or any(fault.moment is not None and fault.moment <= now for fault in self._waiting()):
                await self.reload("time")
            elif _has_environment_fault(self._faults) and time.monotonic() >= self._retry_at:
                await self.reload("retry")

    def _next_retry(self, expiry: float = NEVER) -> float | None:
        """Seconds until a retry may be due, or a warning on expiry; None if none is."""
        now = self._target.clock.now()
        # Also one that has passed since the verdict: a reload can take longer than `tls.settle_time`.
        settled = (fault.due for fault in settling(self._faults, self._judged_at))
        moments = (*(fault.moment for fault in self._waiting() if fault.moment is not None), *settled)
        pauses = [min(moment - now, CLOCK_CHECK) for moment in moments]
        pauses += [min(expiry - now, EXPIRY_CHECK)] if expiry < NEVER else []
        if _has_environment_fault(self._faults):
            pauses.append(self._retry_at - time.monotonic())
        return max(min(pauses), 0.0) if pauses else None

    def _waiting(self) -> Iterable[Fault]:
        """Faults of inputs. After a failed publication all of them wait for its next attempt."""
        failed = _PUBLICATION in self._faults and self._faults[_PUBLICATION].kind is FailureKind.ENVIRONMENT
        return () if failed else self._faults.values()

    async def reload(self, trigger: str, *, force: bool = False) -> ReloadResult:
        """Validate the present files and the last fetched key sets, and publish new good states.

        ``force`` overrides `limits.mass_cut`.
        """
        started = self._started
        async with self._lock:
            undecided = trigger in _ASKED and settling(self._faults, self._judged_at)
            if self._completed > started and not undecided and not (force and self.last.result == "held"):
                return self.last
            self._started += 1
            self._observer.reloading()
            self._reported = self._reportable
            result = await self._attempt(trigger, force=force)
            self._observer.reloaded(result)
            self._completed = self._started
            self._validated.set()
            return result

    async def rehearse(self) -> dict[str, Any]:
        """The result and warnings that a reload would have now, as JSON values. Changes nothing."""
        async with self._lock:
            old = self._target.generation
            result = ReloadResult("ok", "admin", time.time(), old.number, config_sha256=old.config_sha256)
            try:
                candidate = await self._candidate(old, await self._watcher.read(), patient=False)
                consequences = await self._consequences(candidate, old)
            except (TlsproxyError, OSError, MemoryError) as failure:
                failed = replace(result, result="failed", error=str(failure))
                return asdict(failed) | {"warnings": (), "restart_needed": old.restart_needed}
            if consequences is not None:
                await self._target.dismiss()
        return await in_thread(self._rehearsed, result, old, candidate, consequences)

    def _rehearsed(
        self, result: ReloadResult, old: Generation, candidate: Candidate, consequences: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        new, error = candidate.generation, problems(candidate.faults, candidate.judged_at)
        result = replace(
            result,
            result=outcome(error, changed=new is not old),
            error=error,
            changes=candidate.changes,
            consequences=consequences,
            inputs=input_statuses(self._config_path, candidate.states, candidate.faults, candidate.judged_at),
            config_sha256=new.config_sha256,
        )
        if consequences is not None and impact_report.exceeds(consequences, old.config.limits.mass_cut):
            result = replace(
                result,
                result="held",
                error=reload_trail.held_text(consequences, renewed=new.states.server != old.states.server),
            )
        warnings = self._notices.of(new, candidate.inputs, candidate.faults, self._target.clock.now())
        return asdict(result) | {"warnings": warnings, "restart_needed": new.restart_needed}

    async def _attempt(self, trigger: str, *, force: bool) -> ReloadResult:
        old, before = self._target.generation, self._faults
        try:
            await self._locks.look()
            old = self._target.generation
            await self._bundles.prepare(old, asked=trigger in _ASKED)
            inputs = await self._watcher.read()
            # Whatever the outcome, the watcher reports this state no more, but any other one.
            self._watcher.seen(inputs.digest)
            candidate = await self._candidate(old, inputs, patient=trigger not in _ASKED)
            consequences = await self._consequences(candidate, old)
            if (
                consequences is not None
                and not force
                and impact_report.exceeds(consequences, old.config.limits.mass_cut)
            ):
                await self._target.dismiss()
                return await self._hold_back(trigger, old, candidate, consequences)
            if candidate.generation is not old:
                candidate = replace(candidate, generation=await self._locks.publish(candidate.generation))
        except TlsproxyError as error:
            return self._defer(trigger, old, str(error))
        except (OSError, MemoryError) as error:
            return self._defer(trigger, old, f"cannot be built now: {error or type(error).__name__}")
        except Exception as error:  # noqa: BLE001 - a defect of ours must not end the watching
            _log.critical("a defect in reload", exc_info=error)
            return self._defer(trigger, old, f"{type(error).__name__}: {error}")
        self._states, self._faults, self._judged_at = candidate.states, candidate.faults, candidate.judged_at
        self._settle_retry(before)
        new = candidate.generation
        if new is not old:
            logs.set_level(new.config.log_level)
            self._metrics.published(new)
            self._watcher.serves(new.config)
        self._key_sets.published(new.config)
        self._bundles.published()
        return self._report_published(trigger, old, candidate, consequences)

    async def _consequences(self, candidate: Candidate, old: Generation) -> Mapping[str, Any] | None:
        """Consequences of its publication, as JSON values; None if there is nothing to publish."""
        if candidate.generation is old:
            return None
        try:
            return (await self._target.consider(candidate.generation)).as_json()
        except Exception as error:  # noqa: BLE001 - a defect of ours must not delay a revocation
            _log.critical("a defect in considering", exc_info=error)
            return Consequences(unheard=1).as_json()

    async def _candidate(self, old: Generation, inputs: Inputs, *, patient: bool) -> Candidate:
        """The candidate of these files and the last fetched key sets. Changes nothing."""
        config = inputs.loaded.config
        resolving = in_thread(self._resolver.resolve, names_of(config, old.started), DEADLINE)
        documents = await self._key_sets.of(config)
        reading = InputReading(
            self._config_path, self._environ, inputs, await resolving, documents, old.started, patient
        )
        now = self._target.clock.now()
        proposal = await in_thread(propose, reading, old, now, states=self._states, faults=self._faults)
        new, states = proposal.generation, proposal.states
        if new is None or states is None:
            raise AssertionError("there is a good state of everything that serves")
        # Off the loop, since 10,000 rules take 60 ms, and before the publication, which is reported without a pause.
        changes = () if new is old else await in_thread(changes_between, old, new)
        return Candidate(new, states, {**proposal.faults, **self._locks.faults}, inputs, changes, now)

    def _settle_retry(self, before: Mapping[Input, Fault]) -> None:
        """The next pause: doubled while the environment is at fault, else the first."""
        lasts = _has_environment_fault(self._faults) and _has_environment_fault(before)
        self._pause = min(2 * self._pause, LAST_RETRY) if lasts else FIRST_RETRY
        self._retry_at = time.monotonic() + self._pause

    def _defer(self, trigger: str, old: Generation, error: str) -> ReloadResult:
        """Discard what was validated: the same files are to be validated and published again."""
        before, self._judged_at = self._faults, self._target.clock.now()
        fault = Fault(error, FailureKind.ENVIRONMENT, None, "", self._judged_at, kept=True)
        self._faults = {**before, _PUBLICATION: fault}
        self._settle_retry(before)
        already_reported = trigger in _INTERNAL and self._reported == self._reportable
        return self.last if already_reported else self._report_kept(trigger, "failed", old, {})

    async def _hold_back(
        self, trigger: str, old: Generation, candidate: Candidate, consequences: Mapping[str, Any]
    ) -> ReloadResult:
        """Hold the candidate back until the next trigger, which considers it with the connections of that moment.

        A renewed server certificate is published all the same: it ends no connection, and the old one may expire.
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
            serves = await self._locks.publish(serves)
            self._metrics.published(serves)
            self._states = replace(self._states, server=server)
            self.last = replace(self.last, changed_at=time.time(), changes=changes)
        error = reload_trail.held_text(consequences, renewed=renewed)
        self._judged_at = candidate.judged_at
        fault = Fault(error, FailureKind.INPUT, None, "", self._judged_at, kept=True)
        self._faults = {**candidate.faults, _PUBLICATION: fault}
        self._settle_retry(before)
        detail = {
            "connections": consequences["cut"]["count"],
            **(reload_trail.certificate_fields(old, serves) if renewed else {}),
        }
        # The number of connections to cut is counted anew each time: it is no news.
        same_faults = _faults_of_inputs(self._reported) == _faults_of_inputs(self._reportable)
        already_reported = trigger in _INTERNAL and self.last.result == "held" and not renewed and same_faults
        return self._report_kept(
            trigger, "held", serves, detail, candidate.changes, consequences, already_reported=already_reported
        )

    def _report_kept(
        self,
        trigger: str,
        outcome: Literal["held", "failed"],
        in_force: Generation,
        detail: Mapping[str, str | int],
        changes: Sequence[Change] = (),
        consequences: Mapping[str, Any] | None = None,
        *,
        already_reported: bool = False,
    ) -> ReloadResult:
        """Report that the generation in force stays.

        ``already_reported``: in the status alone, since it was reported before.
        """
        error = problems(self._faults, self._judged_at)
        result = replace(
            self.last,
            result=outcome,
            trigger=trigger,
            when=time.time(),
            generation=in_force.number,
            error=error,
            consequences=consequences,
            inputs=self._inputs,
            config_sha256=in_force.config_sha256,
        )
        if already_reported:
            self.last = result
            return result
        reload_trail.log_kept(trigger, outcome, in_force, changes, consequences, error)
        fields = {"error": error, **detail, **reload_trail.audit_fields(changes, consequences)}
        return self._record(result, "failed", fields)

    def _report_published(
        self,
        trigger: str,
        old: Generation,
        candidate: Candidate,
        consequences: Mapping[str, Any] | None,
    ) -> ReloadResult:
        new, error = candidate.generation, problems(self._faults, self._judged_at)
        changed, waits = new is not old, settling(self._faults, self._judged_at)
        for fault in waits:
            _log.info("reload (%s): %s; it may be half replaced until %s", trigger, fault.text, utc_time(fault.due))
        if not changed and self._reported == self._reportable and (waits or trigger in _INTERNAL):
            self.last = replace(self.last, inputs=self._inputs)
            return self.last
        if error and not changed:
            return self._report_kept(trigger, "failed", old, {})
        reload_trail.log_published(trigger, new, candidate.changes, consequences, error)
        for warning in self.notices():
            _log.warning("%s", warning)
        result = replace(
            self.last,
            result=outcome(error, changed=changed),
            trigger=trigger,
            when=time.time(),
            generation=new.number,
            error=error,
            consequences=consequences,
            inputs=self._inputs,
            config_sha256=new.config_sha256,
        )
        if changed:
            result = replace(result, changed_at=result.when, changes=candidate.changes)
        detail = reload_trail.certificate_fields(old, new) | ({"error": error} if error else {})
        detail |= reload_trail.audit_fields(candidate.changes, consequences)
        return self._record(result, "partial" if error else "ok", detail)

    def _record(self, result: ReloadResult, audit_result: EventResult, detail: Mapping[str, str | int]) -> ReloadResult:
        self.last = result
        self._metrics.reload(result.result, result.trigger, result.when)
        self._metrics.judged(counted(result.inputs))
        line = event_line(
            when=result.when,
            event="reload",
            remote=None,
            result=audit_result,
            reason=result.trigger,
            detail={"generation": result.generation, "config_sha256": result.config_sha256, **detail},
        )
        self._audit.write(line)
        return result

    @property
    def _inputs(self) -> tuple[InputStatus, ...]:
        return input_statuses(self._config_path, self._states, self._faults, self._judged_at)

    @property
    def _reportable(self) -> Mapping[Input, str]:
        return {subject: one.text for subject, one in self._faults.items() if not one.settling(self._judged_at)}

    @property
    def faults(self) -> tuple[str, ...]:
        """Reasons why inputs are not in force."""
        reportable = self._reportable
        return tuple(reason(*each) for each in self._faults.items() if each[0] in reportable)

    def warnings(self) -> tuple[str, ...]:
        """Warnings on the generation in force, at this moment, and on the files as last read."""
        return (*self.notices(), *warnings(self.lifetimes, self._target.clock.now()))

    def notices(self) -> tuple[str, ...]:
        """The same without those on expiry."""
        target = self._target
        return self._notices.of(target.generation, self._watcher.inputs, self._faults, target.clock.now())

    @property
    def lifetimes(self) -> tuple[Lifetime, ...]:
        """Lifetimes of all that serves."""
        return self._notices.lifetimes(self._target.generation)

    def status(self) -> dict[str, Any]:
        return asdict(self.last)


def _has_environment_fault(faults: Mapping[Input, Fault]) -> bool:
    return any(fault.kind is FailureKind.ENVIRONMENT for fault in faults.values())


def _faults_of_inputs(faults: Mapping[Input, str]) -> Mapping[Input, str]:
    return {subject: text for subject, text in faults.items() if subject != _PUBLICATION}
