"""Readiness looked at every few seconds, and at once when something fails: for the log, the metric and systemd."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol

from tlsproxy.admin.readiness import Readiness
from tlsproxy.service.episodes import Episodes

INTERVAL: Final = 3.0
LEAST_PAUSE: Final = 0.25
"""Seconds between two looks, however much fails."""

_log = logging.getLogger(__name__)


class ReadinessMetrics(Protocol):
    def readiness(self, parts: Mapping[str, bool]) -> None: ...


class ReadinessObserver(Protocol):
    def headline(self, text: str) -> None: ...


class ReadinessMonitor:
    """``impaired`` is set where a look should not wait for its time."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[Readiness]],
        metrics: ReadinessMetrics,
        observer: ReadinessObserver,
        impaired: asyncio.Event,
    ) -> None:
        self._ask = ask
        self._metrics = metrics
        self._observer = observer
        self._impaired = impaired
        self._episodes = Episodes()

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            self._impaired.clear()
            try:
                self.note(await self._ask(), time.monotonic())
            except Exception as error:  # noqa: BLE001 - nothing may end the watching for good
                _log.critical("a defect in readiness", exc_info=error)
            await asyncio.sleep(LEAST_PAUSE)
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL - LEAST_PAUSE):
                    await self._impaired.wait()

    def note(self, readiness: Readiness, now: float) -> None:
        """``now`` is of the monotonic clock."""
        for level, text in self._episodes.lines(readiness, now):
            _log.log(level, "%s", text)
        self._metrics.readiness(readiness.good)
        self._observer.headline(readiness.headline)
