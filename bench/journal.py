"""What a run leaves as it goes: lines that say how far it is, and the results so far, on disk.

A run that is ended in the middle has lost the measurement that was under way, and no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.results import Results

Say = Callable[[str], None]


@dataclass(slots=True)
class Journal:
    """``path`` is where results are kept."""

    path: Path
    say: Say
    clock: Callable[[], float] = time.monotonic
    _planned: float = field(default=0.0, init=False)
    _began: float = field(default=0.0, init=False)
    _done: float = field(default=0.0, init=False)

    def begin(self, planned: float) -> None:
        """``planned``: how long all steps should take, in seconds."""
        self._planned, self._began, self._done = planned, self.clock(), 0.0

    def step(self, results: Results, planned: float, line: str) -> None:
        """One is done that should have taken ``planned`` seconds."""
        results.write(self.path)
        self._done += planned
        self.say(f"{line}{self._left()}")

    def _left(self) -> str:
        """By what the steps took so far, beside what they should have."""
        ahead = self._planned - self._done
        if ahead <= 0 or not self._done:
            return ""
        seconds = round(ahead * (self.clock() - self._began) / self._done)
        return f"  [{seconds // 60}:{seconds % 60:02} left]"
