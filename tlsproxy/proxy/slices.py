"""Work on what a request or its answer holds, which could hold the loop: a slice of it at a time, and everybody else in
between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar

from tlsproxy.wire.steps import Steps

SLICE: Final = 0.01
"""Seconds: for how long nobody else is served."""

T = TypeVar("T")


class Worker(Protocol):
    """``later``: it calls this from the loop, soon, unless it has ended by then. A RequestError that is raised there is
    its own to tell of.
    """

    def later(self, go_on: Callable[[], None]) -> None: ...


def in_slices(worker: Worker, steps: Steps[T], then: Callable[[T], None]) -> None:
    """``then`` is told what the steps come to: before this returns, if that takes no longer than a slice.

    Raises RequestError where they do by then.
    """
    end = time.monotonic() + SLICE
    try:
        next(steps)
        while time.monotonic() < end:
            next(steps)
    except StopIteration as done:
        then(done.value)
    else:
        worker.later(partial(in_slices, worker, steps, then))
