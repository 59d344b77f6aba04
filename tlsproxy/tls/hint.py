"""File system notifications: a hint that it may be worth looking now, never the truth (:mod:`tlsproxy.tls.watch`).

Notifications miss what happens through links and network file systems, end for ever with their directory, and are
limited in number by the kernel. So a failure here is told once and costs promptness, nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from watchfiles import awatch

if TYPE_CHECKING:
    from watchfiles import Change

    from tlsproxy.tls.places import Places

log = logging.getLogger(__name__)

DEBOUNCE_MS: Final = 100
STEP_MS: Final = 50
"""How long a burst of notifications is gathered at most, and how long it must be quiet to end it earlier."""


class Hint:
    """Owns one task. ``stirred`` is set when an entry of the places may have changed."""

    def __init__(self) -> None:
        self.stirred = asyncio.Event()
        self._places: Places | None = None
        self._task: asyncio.Task[None] | None = None
        self._told = ""

    async def watch(self, places: Places) -> None:
        """Watch these places from now on. Does nothing where they are being watched already."""
        if self._task is not None and self._task.done():
            await self.close()
        elif places == self._places:
            return
        await self.close()
        if not places.directories:
            return
        if places != self._places:
            # What changed before the new watch was in place has no notification: look once more.
            self.stirred.set()
        self._places = places
        self._task = asyncio.create_task(self._run(places), name="tlsproxy watch hint")

    async def close(self) -> None:
        """End the task, and say why it had failed, if it had."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        # gather keeps apart the task's own end and a cancellation of ours, which goes on from here.
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, Exception) and self._told != str(outcome):
            self._told = str(outcome)
            log.warning("file notifications do not work (%s); changes are found by polling alone", outcome)

    async def _run(self, places: Places) -> None:
        def matters(_change: Change, path: str) -> bool:
            return path in places.entries

        async for _ in awatch(
            *places.directories, watch_filter=matters, debounce=DEBOUNCE_MS, step=STEP_MS, recursive=False
        ):
            self.stirred.set()
