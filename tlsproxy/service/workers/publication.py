"""One publication over all workers: each that has built the generation serves it at once, and waits for no other.

A worker that does not follow is left behind: it is ended, so that it never serves again by the generation before, and
its successor begins with what serves. A publication is over when every worker serves it or has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final

from tlsproxy.service.workers.process import ATTENTION, BUILDING, WorkerLost, WorkerProcess, WorkerRefused
from tlsproxy.service.workers.snapshot_codec import Order

STOPPED: Final = 0.5
"""Seconds for which a worker that is stopped by a signal may be silent."""
SLOWER: Final = 4.0
"""Times the time of the quickest in which the others have built the same, beside :data:`ATTENTION`."""
LOOK: Final = 0.25
"""Seconds between two looks at those that say nothing."""

_log = logging.getLogger(__name__)


class WorkerState(Enum):
    """The steps of one worker, in this order, but for the last two, which may come at each of them."""

    ASKED = "asked"
    BUILDING = "building"
    COMMITTING = "committing"
    SERVING = "serving"
    REFUSED = "refused"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Progress:
    """``seconds`` in this state, ``silence`` since a ping without an answer. ``stopped``: by a signal."""

    state: WorkerState
    seconds: float = 0.0
    silence: float = 0.0
    stopped: bool = False
    ended: bool = False


def why_left_behind(worker: Progress, quickest: float | None) -> str:
    """Why a worker is not waited for any longer, empty where it is.

    ``quickest``: seconds in which the first has built it, None as long as none has. Nobody serves it then, and one that
    refuses goes on with what it has.
    """
    building = BUILDING if quickest is None else min(BUILDING, ATTENTION + SLOWER * quickest)
    late = {WorkerState.ASKED: ATTENTION, WorkerState.BUILDING: building, WorkerState.COMMITTING: ATTENTION}.get(
        worker.state
    )
    if worker.state is WorkerState.LOST:
        return "is lost"
    if worker.state is WorkerState.REFUSED:
        return "" if quickest is None else "cannot build what others have built"
    if worker.stopped and worker.silence >= STOPPED and worker.state is not WorkerState.SERVING:
        return "is stopped by a signal"
    if late is not None and worker.seconds >= late:
        return f"is still {worker.state.value} after {late:g} s"
    return ""


def is_over(workers: Sequence[Progress], quickest: float | None) -> bool:
    if quickest is None:
        return all(each.ended or each.state in {WorkerState.REFUSED, WorkerState.LOST} for each in workers)
    return all(each.ended or each.state is WorkerState.SERVING for each in workers)


class _Participant:
    """One worker's."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.refusal: WorkerRefused | None = None
        self.enter(WorkerState.ASKED)

    def enter(self, state: WorkerState) -> None:
        self.state, self._entered = state, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._entered

    def progress(self) -> Progress:
        worker = self.worker
        return Progress(self.state, self.seconds, worker.silence, worker.stopped, worker.has_ended)


class Publication:
    """``publish`` is called once, when the first worker has built it: from then on it is what serves."""

    def __init__(self, order: Order, workers: Sequence[WorkerProcess], publish: Callable[[], None]) -> None:
        self._order = order
        self._parts = [_Participant(worker) for worker in workers]
        self._publish = publish
        self._quickest: float | None = None
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Raises WorkerRefused, WorkerLost where there are workers and none has built it: nothing has changed then."""
        if not self._parts:
            self._publish()
            return
        async with asyncio.TaskGroup() as tasks:
            followed = [tasks.create_task(self._follow(part)) for part in self._parts]
            while not self._looked():
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await self._changed.wait()
            for task in followed:
                task.cancel()
        if self._quickest is None:
            refusals = [part.refusal for part in self._parts if part.refusal is not None]
            raise refusals[0] if refusals else WorkerLost("no worker has lived through its preparation")

    def _looked(self) -> bool:
        """Whether it is over. Ends those that are left behind."""
        self._changed.clear()
        found = [part.progress() for part in self._parts]
        for part, progress in zip(self._parts, found, strict=True):
            why = why_left_behind(progress, self._quickest)
            if why and not part.worker.ending:
                _log.error("worker %d %s: it is left behind and ended", part.worker.number, part.refusal or why)
                part.worker.kill()
        return is_over(found, self._quickest)

    async def _follow(self, part: _Participant) -> None:
        worker = part.worker
        try:
            await worker.ping()
            part.enter(WorkerState.BUILDING)
            await worker.prepare(self._order)
            if self._quickest is None:
                self._quickest = worker.building_time
                self._publish()
            part.enter(WorkerState.COMMITTING)
            await worker.commit(self._order)
            part.enter(WorkerState.SERVING)
        except WorkerRefused as error:
            part.refusal = error
            part.enter(WorkerState.REFUSED)
        except WorkerLost:
            part.enter(WorkerState.LOST)
        self._changed.set()
        await worker.ended()
        self._changed.set()
