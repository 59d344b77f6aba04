"""Minimum throughput of one direction over a sliding window.

Only the last window counts: a fast beginning buys no slow end. Time in which the gateway waits for another party than
the peer is left out.
"""

from __future__ import annotations

from collections import deque
from typing import Final

PARTS: Final = 10
"""Checks per window, and marks that are retained of it."""


class Throughput:
    """Marks (moment, total) of a running total; moments are seconds of a monotonic clock.

    ``due``: the moment of the next check. A window may be up to a fifth longer than configured, never shorter. Bursts
    count as a steady rate if they are no further apart than a fifth of the window: with 30 s, 6 s.
    """

    __slots__ = ("_marks", "_paused", "due")

    def __init__(self, now: float, total: int, window: float) -> None:
        self._marks = deque(((now, total),))
        self._paused: float | None = None
        self.due = now + window / PARTS

    def too_low(self, now: float, total: int, window: float, rate: float) -> bool:
        """Whether the last ``window`` seconds had fewer than ``rate`` bytes per second."""
        marks, part = self._marks, window / PARTS
        while len(marks) > 1 and marks[1][0] <= now - window - part:
            marks.popleft()
        since, before = marks[0]
        span = now - since
        if span >= window and total - before < rate * (span - window / 5):
            return True
        if now - marks[-1][0] >= part:
            marks.append((now, total))
        self.due = now + part
        return False

    def pause(self, now: float) -> None:
        """Stops the clock: the gateway waits for another party from now on."""
        if self._paused is None:
            self._paused = now

    @property
    def paused(self) -> bool:
        return self._paused is not None

    def resume(self, now: float) -> None:
        if self._paused is not None:
            paused = now - self._paused
            self._paused = None
            self._marks = deque((when + paused, total) for when, total in self._marks)
            self.due += paused
