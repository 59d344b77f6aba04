"""Work of cooperative steps, counted instead of timed."""

from __future__ import annotations

from collections.abc import Callable
from cProfile import Profile
from typing import Any, Final

from tlsproxy.wire.cooperative import STEP, Steps

MOST_CALLS: Final = 6 * STEP
"""Calls of functions in one step, whose units are about a microsecond."""


class Calls:
    """Counts calls of Python functions, those that resume a generator included."""

    def __init__(self) -> None:
        self._profile = Profile(builtins=False)

    def of(self, work: Callable[[], object]) -> int:
        self._profile.clear()
        self._profile.enable()
        try:
            work()
        finally:
            self._profile.disable()
        return sum(one.callcount for one in self._profile.getstats())


def longest_run(steps: Steps[Any]) -> tuple[int, int]:
    """The most calls of functions between two steps, and the number of steps."""
    calls, runs, end = Calls(), [], object()
    ended = False

    def run() -> None:
        nonlocal ended
        ended = next(steps, end) is end

    while not ended:
        runs.append(calls.of(run))
    return max(runs), len(runs) - 1
