"""The supervisor's part: so many workers, kept alive, told to do the same, and asked as one.

A worker that ends is replaced, and its successor begins with what serves (:mod:`tlsproxy.service.workers.publication`
has how that changes). The supervisor holds the listening sockets and never accepts: what waits in them is there for the
next worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

from tlsproxy.admin.readiness import OK, WORKERS, generation_part
from tlsproxy.audit import counters as auditcounts
from tlsproxy.audit.files import Turn
from tlsproxy.audit.log import WORKER_ENDED, AuditLog, NoAudit
from tlsproxy.config.limits import MassCut
from tlsproxy.errors import TlsproxyError
from tlsproxy.metrics.metrics import Metrics, exposition
from tlsproxy.metrics.prometheus import counters, gauges
from tlsproxy.proxy.core.impact import Consequences
from tlsproxy.proxy.core.wall_clock import Clock
from tlsproxy.proxy.frontend.listener import Bound
from tlsproxy.proxy.limits import table
from tlsproxy.service import allocator
from tlsproxy.service.serving import MOST_TOLD
from tlsproxy.service.workers.backoff import Backoff
from tlsproxy.service.workers.merging import Totals, merged_figures, merged_parts, told
from tlsproxy.service.workers.process import ATTENTION, LAST, LAST_WORDS, WorkerLost, WorkerProcess, WorkerRefused
from tlsproxy.service.workers.publication import LOOK, STOPPED, Publication
from tlsproxy.service.workers.seat import WorkerSlot
from tlsproxy.service.workers.snapshot_codec import Order, order_of
from tlsproxy.snapshot.generation import Generation

ANSWER: Final = 2.0
"""Seconds in which a worker tells of itself, or is left out of the answer."""

PATIENCE: Final = 1.0
"""Seconds in which a worker's loop turns, or its connections are not considered. Where a guard counts, ATTENTION."""

PROBE: Final = 0.5
"""Seconds in which a worker takes note of where the watchdog is about to ask from. A stuck worker makes it take twice
that for each probe, which must be well within a third of WatchdogSec."""

_log = logging.getLogger(__name__)


class NeverServed(TlsproxyError):
    """A worker ended before it served for the first time."""


class Supervisor:
    """Implements :class:`tlsproxy.service.serving.Served`."""

    def __init__(
        self,
        config_path: Path,
        generation: Generation,
        bound: Sequence[Bound],
        audit: AuditLog | NoAudit,
        turn: Turn,
        key_missing: Callable[[], None],
    ) -> None:
        allocator.settle()
        self.counted = Metrics(
            pool=lambda: (0, 0, 0),
            audit=lambda: (audit.queued, audit.written, audit.dropped),
            limits=lambda: (0, 0),
        )
        self.clock = Clock()
        self.generation = generation
        self._order = order_of(generation)
        self._started = generation.states.configuration.data[0]
        self._config_path = config_path
        self._bound = bound
        self._audit = audit
        self._turn = turn.descriptor
        self._key_missing = key_missing
        self._seats = [
            WorkerSlot(number, auditcounts.shared(self._turn, number))
            for number in range(1, generation.config.workers + 1)
        ]
        self._publishing = asyncio.Lock()
        self._considered: tuple[Generation, Order] | None = None
        self._draining = asyncio.Event()
        self._gone = Totals()
        self._keepers: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Entered when every worker serves. Raises what kept the first that does not: WorkerRefused, NeverServed."""
        with ExitStack() as stack:
            self._limits = table.create(len(self._seats))
            stack.callback(os.close, self._limits)
            self._keepers = [asyncio.create_task(self._keep(seat)) for seat in self._seats]
            try:
                await asyncio.gather(*(seat.first for seat in self._seats))
                yield
            finally:
                for keeper in self._keepers:
                    keeper.cancel()
                await asyncio.wait(self._keepers, timeout=LAST_WORDS + LAST)  # none outlasts SIGKILL, but in the kernel

    # One seat

    async def _keep(self, seat: WorkerSlot) -> None:
        backoff = Backoff()
        while not self._draining.is_set():
            seat.served_since = None
            try:
                why = await self._occupy(seat)
            except (TlsproxyError, OSError) as error:
                why = str(error)
                if not seat.first.done():
                    refused = isinstance(error, WorkerRefused)
                    seat.first.set_exception(error if refused else NeverServed(why))
                    return
            except Exception as error:  # noqa: BLE001 - nothing may end the watching for good
                _log.critical("a defect in the supervisor", exc_info=error)
                why = f"{type(error).__name__}: {error}"
            if self._draining.is_set():
                return
            served = 0.0 if seat.served_since is None else time.monotonic() - seat.served_since
            pause = backoff.after(served)
            seat.restarts += 1
            _log.error("worker %d has ended after %.1f s (%s): another begins in %g s", seat.number, served, why, pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._draining.wait()

    async def _occupy(self, seat: WorkerSlot) -> str:
        """One process, from its start to its end, and how that was."""
        sockets = [one.sock.fileno() for one in self._bound]
        shared = [self._limits, self._turn]
        seat.process = process = await WorkerProcess.start(seat.number, [*sockets, *shared], self._key_missing)
        how = ""
        try:
            await process.begin(
                self._started,
                number=seat.number,
                workers=len(self._seats),
                restarts=seat.restarts,
                config_path=str(self._config_path),
                sockets=sockets,
                limits=self._limits,
                audit=self._turn,
            )
            while True:
                prepared = self._order
                await process.prepare(prepared)
                async with self._publishing:  # what is being published now is published without this one
                    if prepared is self._order:
                        break
            await process.commit(prepared)  # the next publication finds it among those that serve
            seat.served_since = time.monotonic()
            _log.info("worker %d (pid %d) serves generation %d", seat.number, process.pid, prepared.number)
            if not seat.first.done():
                seat.first.set_result(None)
            await process.watch()
        finally:
            seat.process = None
            self._gone.keep(seat.families)
            seat.families = []
            how = await process.end()
            lost = auditcounts.settle(seat.lines)
            if lost:
                _log.error("worker %d: %d audit lines have ended with it", seat.number, lost)
                self._audit.lose(lost, WORKER_ENDED)
        return how

    def _serving(self) -> list[WorkerProcess]:
        return [process for seat in self._seats if (process := seat.serving) is not None]

    # All of them

    async def consider(self, generation: Generation) -> Consequences:
        """Consequences in the workers whose loop turns: nobody waits for one that is stuck."""
        order = order_of(generation)
        self._considered = generation, order
        workers = self._serving()
        patience = ATTENTION if self.generation.config.limits.mass_cut != MassCut() else PATIENCE
        asked = {
            asyncio.create_task(one.consider(order, patience)): one
            for one in workers
            if not one.stopped and one.silence < patience
        }
        try:
            while waited_for := {task for task, one in asked.items() if not (task.done() or one.stopped)}:
                await asyncio.wait(waited_for, timeout=LOOK)
        finally:
            for task in asked:
                task.cancel()
            answers = await asyncio.gather(*asked, return_exceptions=True)
        heard = [answer for answer in answers if isinstance(answer, Consequences)]
        return Consequences.merged(heard, len(workers) - len(heard))

    async def dismiss(self) -> None:
        self._considered = None
        awake = [one for one in self._serving() if not one.stopped]
        await asyncio.gather(*(one.dismiss() for one in awake), return_exceptions=True)

    async def publish(self, generation: Generation) -> None:
        known, self._considered = self._considered, None
        order = known[1] if known is not None and known[0] is generation else order_of(generation)
        async with self._publishing:
            await Publication(order, self._serving(), partial(self._adopt, generation, order)).run()

    def _adopt(self, generation: Generation, order: Order) -> None:
        self.generation, self._order = generation, order

    async def expect_probe(self, address: tuple[str, int] | None) -> None:
        """Told to all, for any may accept it. One that is stuck does not accept, and is not waited for."""
        await self._gather("probe", PROBE, address=address)

    async def drain(self, ended: asyncio.Event) -> None:
        """Workers that drain are published to as before. One that ends now, or did just before, has no successor."""
        self._draining.set()
        for one in self._bound:
            one.sock.close()
        for seat in self._seats:
            if seat.process is not None and seat.serving is None:
                seat.process.kill()
        left = set(self._keepers)

        def has_ended(keeper: asyncio.Task[None]) -> None:
            left.discard(keeper)
            if not left:
                ended.set()

        for keeper in self._keepers:
            keeper.add_done_callback(has_ended)
        deadline = self.generation.config.limits.drain_timeout + LAST
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(self._tell("drain"))
            try:
                async with asyncio.timeout(deadline):
                    await ended.wait()
            except TimeoutError:
                _log.error("%d workers have not ended after %g s of draining", len(left), deadline)
            await self._tell("end")
            if left:
                await asyncio.wait(left, timeout=LAST)
            telling.cancel()

    async def _tell(self, do: str) -> None:
        """To all that serve. One that does not take note would never end by itself, and is ended."""

        async def tell(worker: WorkerProcess) -> None:
            try:
                await worker.ask(do, deadline=STOPPED if worker.stopped else ATTENTION)
            except WorkerLost:
                if not worker.ending:
                    _log.error("worker %d does not answer and is ended", worker.number)
                    worker.kill()

        await asyncio.gather(*map(tell, self._serving()))

    async def ready(self) -> Mapping[str, str]:
        """Ready where any worker accepts connections: those of the others wait for it."""
        draining = self._draining.is_set()  # before they are asked: they have been told by the time that they answer
        answers = {worker.number: orjson.loads(body) for worker, body in await self._gather("ready")}
        parts = merged_parts(answers)
        if draining:
            parts["listeners"] = "draining"
        elif any(part["listeners"] == OK for part in answers.values()):
            parts["listeners"] = OK
        number = self.generation.number
        troubles = "; ".join(filter(None, (seat.trouble(number) for seat in self._seats)))
        return {
            "listeners": "no worker serves",
            **parts,
            "generation": generation_part(self.generation, self.clock.now()),
            **({WORKERS: troubles} if troubles and not draining else {}),
        }

    async def figures(self) -> Mapping[str, Any]:
        upstream, audit = self.generation.config.upstream, self._audit
        own: dict[str, Any] = {
            "connections": {"open": 0, "draining": self._draining.is_set(), "live": []},
            "upstream": {
                **{name: getattr(upstream, name) for name in self.generation.upstream_addresses},
                "idle": 0,
                "busy": 0,
            },
            "former_upstream": dict.fromkeys(("rest", "grpc", "tcp"), 0),
            "decisions": self.counted.recent.decisions(),
            "refusals": self.counted.recent.refusals(),
            "audit": {"queued": audit.queued, "written": audit.written, "dropped": audit.dropped},
        }
        answers = await self._gather("figures")
        merged = merged_figures([own, *(orjson.loads(body) for _, body in answers)], MOST_TOLD)
        return merged | {"workers": [seat.described() for seat in self._seats]}

    async def cut(self, number: int) -> bool:
        for worker in self._serving():
            if (number - worker.number) % len(self._seats) == 0:
                return bool(orjson.loads(await worker.ask("cut", deadline=ANSWER, number=number)))
        return False

    async def metrics(self) -> tuple[bytes, str]:
        told_of = {worker.number: orjson.loads(body) for worker, body in await self._gather("metrics")}
        totals = Totals()
        totals.add(orjson.loads(told(self._own_families())), "supervisor")
        totals.include(self._gone)
        for seat in self._seats:
            if seat.serving is not None:
                seat.families = told_of.get(seat.number, seat.families)
            totals.add(seat.families, f"worker {seat.number}")
        return exposition(totals)

    def _own_families(self) -> list[Any]:
        serving, restarts = len(self._serving()), sum(seat.restarts for seat in self._seats)
        return [
            *self.counted.families(),
            gauges("workers", "Workers that serve.", (), [((), serving)]),
            counters("worker_restarts", "Workers that ended and were replaced.", (), [((), restarts)]),
            gauges(
                "worker_generation",
                "Number of the generation that a worker serves, 0 while it serves none.",
                ("worker",),
                [((str(each.number),), each.order.number if each.order else 0) for each in self._seats],
            ),
            gauges(
                "worker_silent_seconds",
                "Seconds for which a worker has not answered its supervisor, 0 where it answers.",
                ("worker",),
                [((str(each.number),), each.silent) for each in self._seats],
            ),
        ]

    async def _gather(self, do: str, deadline: float = ANSWER, **fields: Any) -> list[tuple[WorkerProcess, bytes]]:
        """What those who serve say, without those who do not answer, or have not for some time."""
        workers = [worker for worker in self._serving() if worker.silence < ANSWER]
        answers = await asyncio.gather(
            *(one.ask(do, deadline=deadline, **fields) for one in workers), return_exceptions=True
        )
        said = []
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, bytes):
                said.append((worker, answer))
            elif not isinstance(answer, WorkerLost):
                _log.error("worker %d: %s", worker.number, answer)
        return said
