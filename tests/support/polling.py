"""Waiting for a state that nothing tells of: it is asked for again, after longer and longer pauses."""

from __future__ import annotations

import time
from collections.abc import Callable

from support.gateway import DEADLINE

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1


def until(reached: Callable[[], bool], deadline: float = DEADLINE) -> None:
    """Each question costs a gateway some milliseconds: without pauses it and the test would take all of both cores."""
    end, pause = time.monotonic() + deadline, _FIRST_PAUSE
    while not reached():
        assert time.monotonic() < end, "not within the deadline"
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
