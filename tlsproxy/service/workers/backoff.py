"""How long to wait before a worker that ended is replaced."""

from __future__ import annotations

from typing import Final

FIRST: Final = 0.1
CAP: Final = 30.0
WELL: Final = 60.0
"""Seconds of serving after which an end is a misfortune, and no habit."""


class Backoff:
    """Twice as long each time, from ``FIRST`` to ``CAP`` seconds, and from the beginning after one that served well."""

    def __init__(self) -> None:
        self._next = FIRST

    def after(self, served: float) -> float:
        """``served``: for how many seconds the one that ended had served; 0 where it never did."""
        if served >= WELL:
            self._next = FIRST
        pause, self._next = self._next, min(2 * self._next, CAP)
        return pause
