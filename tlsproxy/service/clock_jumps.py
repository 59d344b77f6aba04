"""Jumps of the wall clock: logged, counted, and in the status.

Once a jump is followed, a reload validates the dates of files by the new time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from tlsproxy.proxy.core.wall_clock import HELD, Clock

TICK: Final = 0.25

_log = logging.getLogger(__name__)


class ClockMetrics(Protocol):
    def clock_jumped(self, direction: str) -> None: ...


class ClockJumps:
    """Jumps that this process notices; with workers, the supervisor."""

    def __init__(self, clock: Clock, metrics: ClockMetrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._number = 0
        self._last: dict[str, float] | None = None
        clock.jumped = self._jumped

    async def run(self, reload: Callable[[str], Awaitable[Any]]) -> None:
        """Watch the clock. Never ends."""
        followed = 0
        while True:
            self._clock.now()
            if followed != self._clock.followed:
                followed = self._clock.followed
                _log.info("dates are judged by the wall clock as it is now")
                await reload("clock")
            await asyncio.sleep(TICK)

    def status(self) -> dict[str, Any]:
        """JSON values: ``seconds`` is negative if the clock was set back, ``when`` is by the clock after the jump."""
        return {"jumps": self._number, "last_jump": self._last}

    def _jumped(self, by: float) -> None:
        direction = "forward" if by > 0 else "back"
        self._number += 1
        self._last = {"when": time.time(), "seconds": round(by, 3)}
        self._metrics.clock_jumped(direction)
        text = "the wall clock has jumped %s by %.1f s; dates are judged by it once that has lasted %g s"
        _log.warning(text, direction, abs(by), HELD)
