"""File system notifications: a hint to poll now (:mod:`tlsproxy.snapshot.watch`), never the truth.

They miss changes behind links and on network file systems, end for ever with their directory, and are limited in number
by the kernel. A failure is logged once, and costs promptness only.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from watchfiles import watch

from tlsproxy.threads import in_thread

if TYPE_CHECKING:
    from watchfiles import Change

    from tlsproxy.snapshot.watch_paths import WatchPaths

log = logging.getLogger(__name__)

DEBOUNCE_MS: Final = 100
STEP_MS: Final = 50
"""Milliseconds: a burst of notifications is one hint for at most DEBOUNCE_MS, or until STEP_MS of silence."""
END: Final = 1.0
"""Seconds for the thread to end, after which it counts as hung."""


class FileNotifications:
    """``stirred`` is set when a watched path may have changed.

    The watch runs in a thread of its own: a file system may never answer.
    """

    def __init__(self) -> None:
        self.stirred = asyncio.Event()
        self._places: WatchPaths | None = None
        self._thread: asyncio.Future[None] | None = None
        self._stop = threading.Event()
        self._reported = ""

    async def watch(self, places: WatchPaths) -> None:
        """Watch these paths from now on. Does nothing if they are watched already."""
        if self._thread is not None and not self._thread.done() and places == self._places:
            return
        await self.close()
        if self._thread is not None or not places.directories:
            return
        if places != self._places:
            # Changes before the new watch was in place have no notification: poll once more.
            self.stirred.set()
        self._places = places
        self._stop = threading.Event()
        self._thread = in_thread(self._run, places, self._stop, asyncio.get_running_loop())

    async def close(self) -> None:
        """End the thread, and log its failure, if any. A hung one stays, and no second one is started."""
        if self._thread is None:
            return
        if not self._stop.is_set():
            self._stop.set()
            await asyncio.wait([self._thread], timeout=END)
        if not self._thread.done():
            self._report("no answer from a file system")
            return
        error, self._thread = self._thread.exception(), None
        if error is not None:
            self._report(str(error))

    def _report(self, cause: str) -> None:
        if self._reported != cause:
            self._reported = cause
            log.warning("file notifications do not work (%s); changes are found by polling alone", cause)

    def _run(self, places: WatchPaths, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        def matters(_change: Change, path: str) -> bool:
            return places.matters(path)

        for _ in watch(
            *places.directories,
            watch_filter=matters,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            stop_event=stop,
            raise_interrupt=False,
            recursive=False,
            ignore_permission_denied=True,
        ):
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.stirred.set)
