"""One publication to all workers: each serves the new generation as soon as it has built it, and waits for no other.

A worker that does not keep up is ended, so that it never decides by the former generation again, and its successor
starts with the new one. A publication is over when every worker serves it or has ended.
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
from tlsproxy.service.workers.snapshot_codec import EncodedGeneration

STOPPED: Final = 0.5
"""Seconds that a worker which a signal has stopped may be silent."""
SLOWER: Final = 4.0
"""Factor on the build time of the quickest worker that the others get, in addition to :data:`ATTENTION`."""
CHECK_INTERVAL: Final = 0.25
"""Seconds between two checks on silent workers."""

_log = logging.getLogger(__name__)


class WorkerState(Enum):
    """Steps of one worker in a publication. REFUSED and LOST may follow any of the first three.

    ASKED → BUILDING → COMMITTING → SERVING
    """

    ASKED = "asked"
    BUILDING = "building"
    COMMITTING = "committing"
    SERVING = "serving"
    REFUSED = "refused"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Progress:
    """``seconds`` in this state, ``silence`` since the oldest unanswered ping. ``stopped``: by a signal."""

    state: WorkerState
    seconds: float = 0.0
    silence: float = 0.0
    stopped: bool = False
    ended: bool = False


def lag_reason(worker: Progress, quickest: float | None) -> str:
    """The reason to end a worker in the middle of a publication; empty while it may take part.

    ``quickest`` is the build time of the first worker that has built, None while none has: no worker serves the new
    generation then, and one that refuses it goes on with the former.

    For example: the quickest worker built in 10 s. One that is still building after 3 + 4·10 s is ended.
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
    """A worker and its step in this publication."""

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
    """``publish`` is called once, when the first worker has built the generation: from then on it is in force."""

    def __init__(
        self, encoded: EncodedGeneration, workers: Sequence[WorkerProcess], publish: Callable[[], None]
    ) -> None:
        self._encoded = encoded
        self._participants = [_Participant(worker) for worker in workers]
        self._publish = publish
        self._quickest: float | None = None
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Raises WorkerRefused or WorkerLost where there are workers and none has built: nothing has changed then."""
        if not self._participants:
            self._publish()
            return
        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(self._follow(participant)) for participant in self._participants]
            while not self._check():
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_INTERVAL):
                        await self._changed.wait()
            for task in following:
                task.cancel()
        if self._quickest is None:
            refusals = [participant.refusal for participant in self._participants if participant.refusal is not None]
            raise refusals[0] if refusals else WorkerLost("no worker has lived through its preparation")

    def _check(self) -> bool:
        """Whether the publication is over. Ends the workers that do not keep up."""
        self._changed.clear()
        progress_of = [participant.progress() for participant in self._participants]
        for participant, progress in zip(self._participants, progress_of, strict=True):
            reason = lag_reason(progress, self._quickest)
            if reason and not participant.worker.ending:
                worker = participant.worker
                _log.error("worker %d %s: it is left behind and ended", worker.number, participant.refusal or reason)
                worker.kill()
        return is_over(progress_of, self._quickest)

    async def _follow(self, participant: _Participant) -> None:
        worker = participant.worker
        try:
            await worker.ping()
            participant.enter(WorkerState.BUILDING)
            await worker.prepare(self._encoded)
            if self._quickest is None:
                self._quickest = worker.building_time
                self._publish()
            participant.enter(WorkerState.COMMITTING)
            await worker.commit(self._encoded)
            participant.enter(WorkerState.SERVING)
        except WorkerRefused as error:
            participant.refusal = error
            participant.enter(WorkerState.REFUSED)
        except WorkerLost:
            participant.enter(WorkerState.LOST)
        self._changed.set()
        await worker.ended()
        self._changed.set()
