"""The supervisor: keeps its workers alive, publishes generations to them, and merges their status.

An ended worker is replaced, and its successor starts with the generation in force (which
:mod:`tlsproxy.service.workers.publication` changes). The supervisor holds the listening sockets and never accepts:
connections in their backlog wait for the next worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

from tlsproxy.admin import readiness
from tlsproxy.admin.readiness import OK, Part, Readiness, degraded, not_ready
from tlsproxy.audit import counters as auditcounts
from tlsproxy.audit.files import Turn
from tlsproxy.audit.log import WORKER_ENDED, AuditLog, NoAudit
from tlsproxy.config.limits import MassCut
from tlsproxy.errors import TlsproxyError
from tlsproxy.metrics import families
from tlsproxy.metrics.metrics import Metrics
from tlsproxy.metrics.prometheus import CONTENT_TYPE, Series
from tlsproxy.proxy.core.gateway import Notice
from tlsproxy.proxy.core.impact import Consequences
from tlsproxy.proxy.core.wall_clock import Clock
from tlsproxy.proxy.decision.affinity import KEY_SIZE
from tlsproxy.proxy.frontend.listener import Bound
from tlsproxy.proxy.limits import table
from tlsproxy.service import runtime
from tlsproxy.service.serving import MAX_CONNECTIONS, shown_upstreams
from tlsproxy.service.workers.channel import Body
from tlsproxy.service.workers.merged_metrics import Totals, merged
from tlsproxy.service.workers.merging import merged_figures, merged_readiness
from tlsproxy.service.workers.process import ATTENTION, LAST, LAST_WORDS, PING, WorkerLost, WorkerProcess, WorkerRefused
from tlsproxy.service.workers.publication import CHECK_INTERVAL, STOPPED, Publication
from tlsproxy.service.workers.snapshot_codec import EncodedGeneration, encode
from tlsproxy.snapshot.generation import Generation
from tlsproxy.threads import in_thread

ANSWER: Final = 2.0
"""Seconds for a worker's status or metrics; without an answer it is left out."""

READINESS: Final = 4.0
"""Seconds for a worker's readiness: its first question to the upstream may take 3."""

LOOP_DEADLINE: Final = 1.0
"""Seconds for a worker's loop to answer; without an answer its connections are not considered. With
`limits.mass_cut`: ATTENTION."""

PROBE: Final = 0.5
"""Seconds for a worker to note the address of a watchdog probe. A stuck worker delays each probe by twice that, which
must be well within a third of WatchdogSec."""

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0
STABLE: Final = 60.0
"""Seconds of serving after which a worker's end starts the pauses anew."""

_log = logging.getLogger(__name__)


class NeverServed(TlsproxyError):
    """A worker has ended before it served for the first time."""


class Backoff:
    """Pauses before a worker is replaced: 0.1, 0.2, 0.4 … 30 s, and 0.1 s again after one that served for a minute."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    def after(self, served: float) -> float:
        """Seconds to wait after a worker that served for ``served`` seconds; 0 if it never did."""
        if served >= STABLE:
            self._next = FIRST_PAUSE
        pause, self._next = self._next, min(2 * self._next, LONGEST_PAUSE)
        return pause


@dataclass(slots=True)
class WorkerSlot:
    """A worker's place, which several processes may have one after the other.

    ``lines`` counts its audit lines, ``report`` has its last reported metrics, ``refused`` its refusals. ``first`` is
    done once a process serves here for the first time, or could not.
    """

    number: int
    lines: auditcounts.Counts = field(default_factory=auditcounts.private)
    process: WorkerProcess | None = None
    restarts: int = 0
    served_since: float | None = None
    report: Body = field(default=b"", repr=False)
    refused: Mapping[str, int] = field(default_factory=dict)
    first: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def serving(self) -> WorkerProcess | None:
        process = self.process
        return process if process is not None and process.committed is not None and not process.ending else None

    @property
    def committed(self) -> EncodedGeneration | None:
        """The generation that it serves."""
        return self.serving.committed if self.serving is not None else None

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        process, encoded = self.process, self.committed
        return {
            "number": self.number,
            "pid": process.pid if process is not None else None,
            "started_at": process.started_at if process is not None else None,
            "restarts": self.restarts,
            "generation": encoded.number if encoded is not None else None,
            "silent": self.silent,
        }

    @property
    def silent(self) -> float:
        """Seconds without an answer; 0 up to what a busy loop may take."""
        silence = self.process.silence if self.process is not None else 0.0
        return round(silence, 1) if silence >= PING else 0.0

    def trouble(self, generation: int) -> str:
        """The reason why it does not serve the generation of this number; empty where it does."""
        encoded = self.committed
        if encoded is None:
            return f"worker {self.number} is being started"
        if self.silent:
            return f"worker {self.number} has not answered for {self.silent:g} s"
        return "" if encoded.number == generation else f"worker {self.number} is still at generation {encoded.number}"


class Supervisor:
    """Implements :class:`tlsproxy.service.serving.Served`."""

    def __init__(
        self,
        config_path: Path,
        generation: Generation,
        bound: Sequence[Bound],
        audit: AuditLog | NoAudit,
        turn: Turn,
        notice: Notice,
    ) -> None:
        runtime.tune_allocator()
        runtime.freeze()
        self.counted = Metrics(
            pool=lambda: (0, 0, 0),
            audit=lambda: (audit.queued, audit.written, audit.dropped, audit.capacity),
            limits=lambda: (0, 0),
        )
        self.clock = Clock()
        self.generation = generation
        self._current = encode(generation)
        self.limits: table.LimitTable | None = None
        self._started = generation.states.configuration.data
        self._config_path = config_path
        self._bound = bound
        self._audit = audit
        self._turn = turn.descriptor
        self._affinity_key = secrets.token_hex(KEY_SIZE)
        self._notice = notice
        self._impaired = partial(notice, "impaired")
        audit.when_health_changes(partial(asyncio.get_running_loop().call_soon_threadsafe, self._impaired))
        self._slots = [
            WorkerSlot(number, auditcounts.shared(self._turn, number))
            for number in range(1, generation.config.workers + 1)
        ]
        self._publishing = asyncio.Lock()
        self._considered: tuple[Generation, EncodedGeneration] | None = None
        self._draining = asyncio.Event()
        self._ended_totals = Totals()
        self._ended_reports: list[Body] = []
        self._ended_refused: Counter[str] = Counter()
        self._slot_tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Entered when every worker serves. Raises WorkerRefused or NeverServed for the first that does not."""
        leased = self.generation.config.shared.used
        with ExitStack() as stack:
            self._limits = table.create(len(self._slots), leased=leased)
            stack.callback(os.close, self._limits)
            if leased:
                self.limits = table.LimitTable.drawing(self._limits, len(self._slots))
            self._slot_tasks = [asyncio.create_task(self._run_slot(slot)) for slot in self._slots]
            try:
                await asyncio.gather(*(slot.first for slot in self._slots))
                yield
            finally:
                for task in self._slot_tasks:
                    task.cancel()
                await asyncio.wait(self._slot_tasks, timeout=LAST_WORDS + LAST)

    # One slot

    async def _run_slot(self, slot: WorkerSlot) -> None:
        backoff = Backoff()
        while not self._draining.is_set():
            slot.served_since = None
            try:
                cause = await self._run_process(slot)
            except (TlsproxyError, OSError) as error:
                cause = str(error)
                if not slot.first.done():
                    refused = isinstance(error, WorkerRefused)
                    slot.first.set_exception(error if refused else NeverServed(cause))
                    return
            except Exception as error:  # noqa: BLE001 - nothing may end the watching for good
                _log.critical("a defect in the supervisor", exc_info=error)
                cause = f"{type(error).__name__}: {error}"
            if self._draining.is_set():
                return
            served = 0.0 if slot.served_since is None else time.monotonic() - slot.served_since
            pause = backoff.after(served)
            slot.restarts += 1
            _log.error(
                "worker %d has ended after %.1f s (%s): another begins in %g s", slot.number, served, cause, pause
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._draining.wait()

    async def _run_process(self, slot: WorkerSlot) -> str:
        """One process from start to end. Returns its exit status or signal."""
        sockets = [one.sock.fileno() for one in self._bound]
        shared = [self._limits, self._turn]
        slot.process = process = await WorkerProcess.start(slot.number, [*sockets, *shared], self._notice)
        exit_reason = ""
        try:
            await process.begin(
                self._started,
                number=slot.number,
                workers=len(self._slots),
                restarts=slot.restarts,
                config_path=str(self._config_path),
                sockets=sockets,
                limits=self._limits,
                audit=self._turn,
                affinity_key=self._affinity_key,
            )
            while True:
                prepared = self._current
                await process.prepare(prepared)
                async with self._publishing:  # what is being published now is published without this one
                    if prepared is self._current:
                        break
            await process.commit(prepared)  # the next publication finds it among those that serve
            slot.served_since = time.monotonic()
            _log.info("worker %d (pid %d) serves generation %d", slot.number, process.pid, prepared.number)
            if not slot.first.done():
                slot.first.set_result(None)
            await process.watch()
        finally:
            slot.process = None
            if slot.report:  # there is none before a scrape, so that one for each worker waits for the next
                self._ended_reports.append(slot.report)
            self._ended_refused.update(slot.refused)
            slot.report, slot.refused = b"", {}
            self._impaired()
            exit_reason = await process.end()
            lost = auditcounts.settle(slot.lines)
            if lost:
                _log.error("worker %d: %d audit lines have ended with it", slot.number, lost)
                self._audit.lose(lost, WORKER_ENDED)
        return exit_reason

    def _serving(self) -> list[WorkerProcess]:
        return [process for slot in self._slots if (process := slot.serving) is not None]

    # All of them

    async def consider(self, generation: Generation) -> Consequences:
        """Consequences in the workers that answer: a stuck one is not waited for."""
        encoded = encode(generation)
        self._considered = generation, encoded
        workers = self._serving()
        patience = ATTENTION if self.generation.config.limits.mass_cut != MassCut() else LOOP_DEADLINE
        tasks = {
            asyncio.create_task(one.consider(encoded, patience)): one
            for one in workers
            if not one.stopped and one.silence < patience
        }
        try:
            while pending := {task for task, one in tasks.items() if not (task.done() or one.stopped)}:
                await asyncio.wait(pending, timeout=CHECK_INTERVAL)
        finally:
            for task in tasks:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        consequences = [answer for answer in answers if isinstance(answer, Consequences)]
        return Consequences.merged(consequences, len(workers) - len(consequences))

    async def dismiss(self) -> None:
        self._considered = None
        running = [one for one in self._serving() if not one.stopped]
        await asyncio.gather(*(one.dismiss() for one in running), return_exceptions=True)

    async def publish(self, generation: Generation) -> None:
        considered, self._considered = self._considered, None
        encoded = considered[1] if considered is not None and considered[0] is generation else encode(generation)
        async with self._publishing:
            await Publication(encoded, self._serving(), partial(self._adopt, generation, encoded)).run()

    def _adopt(self, generation: Generation, encoded: EncodedGeneration) -> None:
        self.generation, self._current = generation, encoded

    async def expect_probe(self, address: tuple[str, int] | None) -> None:
        """Announce the probe to all workers, since any may accept it. A stuck one accepts nothing and may miss it."""
        await self._gather("probe", PROBE, address=address)

    async def drain(self, ended: asyncio.Event) -> None:
        """Drain all workers. They are still published to; an ended one has no successor."""
        self._draining.set()
        for one in self._bound:
            one.sock.close()
        for slot in self._slots:
            if slot.process is not None and slot.serving is None:
                slot.process.kill()
        left = set(self._slot_tasks)

        def has_ended(task: asyncio.Task[None]) -> None:
            left.discard(task)
            if not left:
                ended.set()

        for task in self._slot_tasks:
            task.add_done_callback(has_ended)
        deadline = self.generation.config.limits.drain_timeout + LAST
        async with asyncio.TaskGroup() as tasks:
            notifying = tasks.create_task(self._broadcast("drain"))
            try:
                async with asyncio.timeout(deadline):
                    await ended.wait()
            except TimeoutError:
                _log.error("%d workers have not ended after %g s of draining", len(left), deadline)
            await self._broadcast("end")
            if left:
                await asyncio.wait(left, timeout=LAST)
            notifying.cancel()

    async def _broadcast(self, do: str) -> None:
        """Send an order to all serving workers. One that does not confirm is killed: it would never end by itself."""

        async def notify(worker: WorkerProcess) -> None:
            try:
                await worker.ask(do, deadline=STOPPED if worker.stopped else ATTENTION)
            except WorkerLost:
                if not worker.ending:
                    _log.error("worker %d does not answer and is ended", worker.number)
                    worker.kill()

        await asyncio.gather(*map(notify, self._serving()))

    async def ready(self) -> Readiness:
        """Ready while any worker accepts: it takes the connections of the others."""
        draining = self._draining.is_set()  # read before they are asked: by the time of their answer they drain
        answers = {
            worker.number: Readiness.decoded(orjson.loads(body))
            for worker, body in await self._gather("ready", READINESS)
        }
        for slot in self._slots:
            if slot.number in answers:
                slot.refused = answers[slot.number].refused
        refused = self._ended_refused.copy()
        for slot in self._slots:
            refused.update(slot.refused)
        now, audit = self.clock.now(), self._audit
        own = readiness.audit_part(healthy=audit.healthy, accepts=audit.accepts(), last_error=audit.last_error)
        parts = merged_readiness(answers, len(self._slots))
        return Readiness(
            {
                **parts,
                readiness.LISTENERS: not_ready(readiness.DRAINING) if draining else OK,
                readiness.AUDIT: max(own, parts.get(readiness.AUDIT, OK), key=lambda part: part.level),
                readiness.CERTIFICATE: readiness.certificate_part(self.generation, now),
                readiness.CRL: readiness.crl_part(self.generation, now),
                readiness.WORKERS: OK if draining else self._workers_part(serving=bool(answers)),
            },
            refused,
        )

    def _workers_part(self, *, serving: bool) -> Part:
        number = self.generation.number
        troubles = "; ".join(filter(None, (slot.trouble(number) for slot in self._slots)))
        if not serving:
            return not_ready(troubles or "no worker answers")
        return degraded(troubles) if troubles else OK

    async def figures(self, subject: str) -> Mapping[str, Any]:
        audit = self._audit
        own: dict[str, Any] = {
            "connections": {"open": 0, "draining": self._draining.is_set(), "live": []},
            "tls": [],
            "upstream": {
                **shown_upstreams(self.generation),
                "idle": 0,
                "busy": 0,
            },
            "former_upstream": dict.fromkeys(("rest", "grpc", "tcp"), 0),
            "decisions": self.counted.recent.decisions(),
            "refusals": self.counted.recent.refusals(),
            "audit": {"queued": audit.queued, "written": audit.written, "dropped": audit.dropped},
        }
        answers = await self._gather("figures", subject=subject)
        found = await in_thread(_merged_answers, own, [body for _, body in answers])
        return found | {"workers": [slot.described() for slot in self._slots]}

    async def cut(self, number: int) -> bool:
        for worker in self._serving():
            if (number - worker.number) % len(self._slots) == 0:
                return bool(orjson.loads(await worker.ask("cut", deadline=ANSWER, number=number)))
        return False

    async def metrics(self) -> tuple[bytes, str]:
        """Merged in a thread. Another call begins after this one has ended."""
        answers = dict(await self._gather("metrics"))
        for slot in self._slots:
            if slot.process is not None:  # perhaps the successor of one that has answered
                slot.report = answers.get(slot.process, slot.report)
        reports = {f"worker {slot.number}": slot.report for slot in self._slots}
        ended = tuple(self._ended_reports)
        body, self._ended_totals = await in_thread(merged, self._own_series(), reports, self._ended_totals, ended)
        del self._ended_reports[: len(ended)]
        return body, CONTENT_TYPE

    def _own_series(self) -> list[Series]:
        serving, restarts = len(self._serving()), sum(slot.restarts for slot in self._slots)
        return [
            *self.counted.series(),
            families.WORKERS.single(serving),
            families.WORKER_RESTARTS.single(restarts),
            families.WORKER_GENERATION.keyed(
                {str(each.number): each.committed.number if each.committed else 0 for each in self._slots}
            ),
            families.WORKER_SILENT.keyed({str(each.number): each.silent for each in self._slots}),
        ]

    async def _gather(self, do: str, deadline: float = ANSWER, **fields: Any) -> list[tuple[WorkerProcess, Body]]:
        """Answers of the serving workers, without those that are silent."""
        workers = [worker for worker in self._serving() if worker.silence < ANSWER]
        answers = await asyncio.gather(
            *(one.ask(do, deadline=deadline, **fields) for one in workers), return_exceptions=True
        )
        bodies = []
        for worker, answer in zip(workers, answers, strict=True):
            if not isinstance(answer, BaseException):
                bodies.append((worker, answer))
            elif not isinstance(answer, WorkerLost):
                _log.error("worker %d: %s", worker.number, answer)
        return bodies


def _merged_answers(own: Mapping[str, Any], bodies: Sequence[Body]) -> dict[str, Any]:
    return merged_figures([own, *map(orjson.loads, bodies)], MAX_CONNECTIONS)
