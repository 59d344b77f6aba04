"""Which worker a publication waits for, and which it leaves behind."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.service.workers.process import BUILDING
from tlsproxy.service.workers.publication import Progress, WorkerState, is_over, lag_reason

QUICK = 0.1
SECONDS = st.floats(0, 100)
PROGRESS = st.builds(
    Progress,
    state=st.sampled_from(WorkerState),
    seconds=SECONDS,
    silence=SECONDS,
    stopped=st.booleans(),
    ended=st.booleans(),
)

WAITED_FOR = {
    "its loop is busy": (Progress(WorkerState.ASKED, 2.9, 2.9), QUICK),
    "it is stopped for a moment": (Progress(WorkerState.ASKED, 0.1, 0.1, stopped=True), QUICK),
    "it is stopped for a moment while it builds": (Progress(WorkerState.BUILDING, 2.0, 0.1, stopped=True), QUICK),
    "it builds, and holds its own loop up": (Progress(WorkerState.BUILDING, 2.9, 2.9), QUICK),
    "it builds what takes the first of all a minute": (Progress(WorkerState.BUILDING, 59.0), None),
    "it builds what took the quickest ten seconds": (Progress(WorkerState.BUILDING, 40.0), 10.0),
    "it serves, and is stopped since": (Progress(WorkerState.SERVING, 50.0, 9.0, stopped=True), QUICK),
    "it refuses what nobody serves": (Progress(WorkerState.REFUSED, 50.0), None),
}
LEFT_BEHIND = {
    "it does not take note": (Progress(WorkerState.ASKED, 3.0, 3.0), None),
    "it is stopped": (Progress(WorkerState.ASKED, 0.5, 0.5, stopped=True), None),
    "it was stopped while it builds": (Progress(WorkerState.BUILDING, 0.6, 0.6, stopped=True), QUICK),
    "it was stopped when it had built": (Progress(WorkerState.COMMITTING, 0.6, 0.6, stopped=True), QUICK),
    "it does not say that it serves": (Progress(WorkerState.COMMITTING, 3.0), QUICK),
    "it takes much longer than the quickest": (Progress(WorkerState.BUILDING, 43.0), 10.0),
    "nobody has built it in a minute": (Progress(WorkerState.BUILDING, 60.0), None),
    "it is lost": (Progress(WorkerState.LOST), None),
    "it refuses what others serve": (Progress(WorkerState.REFUSED), QUICK),
}


@rows(("worker", "quickest"), WAITED_FOR.values(), ids=WAITED_FOR)
def test_it_is_waited_for(worker: Progress, quickest: float | None) -> None:
    assert lag_reason(worker, quickest) == ""


@rows(("worker", "quickest"), LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_it_is_left_behind(worker: Progress, quickest: float | None) -> None:
    assert lag_reason(worker, quickest)
    assert not is_over([worker], QUICK), "it must have ended before others are told that all serve"


@given(st.lists(PROGRESS, min_size=1), st.none() | SECONDS)
def test_when_it_is_over_nobody_serves_what_was_before(workers: list[Progress], quickest: float | None) -> None:
    if is_over(workers, quickest):
        serving = {WorkerState.SERVING} if quickest is not None else {WorkerState.REFUSED, WorkerState.LOST}
        assert all(each.ended or each.state in serving for each in workers)


@given(PROGRESS, st.none() | SECONDS)
def test_no_wait_is_for_ever(worker: Progress, quickest: float | None) -> None:
    """Once it has been in a state for longer than anything may take, it serves, has ended, or is left behind."""
    if worker.seconds >= BUILDING and not lag_reason(worker, quickest):
        assert worker.state is WorkerState.SERVING or (worker.state is WorkerState.REFUSED and quickest is None)


@given(PROGRESS, SECONDS, SECONDS, SECONDS)
def test_who_is_left_behind_stays_so(worker: Progress, quickest: float, later: float, silent: float) -> None:
    if lag_reason(worker, quickest):
        after = Progress(worker.state, worker.seconds + later, worker.silence + silent, worker.stopped, worker.ended)
        assert lag_reason(after, quickest)
