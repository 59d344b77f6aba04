"""The bytes of one direction over a sliding window: whether they keep up a lowest rate.

What came early buys nothing: only the last window counts. Time in which it is not the other side that is waited for
counts neither for nor against it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

PARTS: Final = 10
"""Looks at it in one window, and marks that are kept of it."""


class Throughput:
    """Marks of a running total, each with its moment (seconds of a monotonic clock).

    ``due``: when to look next. A window may be up to a fifth longer than asked for, never shorter, and whoever sends in
    bursts keeps up the lowest rate if they are no further apart than a fifth of it.
    """

    __slots__ = ("_marks", "_paused", "due")

    def __init__(self, now: float, total: int, window: float) -> None:
        self._marks = deque(((now, total),))
        self._paused: float | None = None
        self.due = now + window / PARTS

    def too_low(self, now: float, total: int, window: float, rate: float) -> bool:
        """Whether fewer bytes have come in the last ``window`` seconds than ``rate`` bytes in each."""
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
        """From here on it is somebody else who is waited for."""
        if self._paused is None:
            self._paused = now

    @property
    def paused(self) -> bool:
        return self._paused is not None

    def resume(self, now: float) -> None:
        if self._paused is not None:
            spared = now - self._paused
            self._paused = None
            self._marks = deque((when + spared, total) for when, total in self._marks)
            self.due += spared
