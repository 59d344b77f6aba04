"""File system notifications: a hint that it may be worth looking now, never the truth (:mod:`tlsproxy.snapshot.watch`).

Notifications miss what happens through links and network file systems, end for ever with their directory, and are
limited in number by the kernel. So a failure here is told once and costs promptness, nothing else.
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
"""How long a burst of notifications is gathered at most, and how long it must be quiet to end it earlier."""
END: Final = 1.0
"""Seconds in which the thread ends, or it hangs."""


class FileNotifications:
    """``stirred`` is set when an entry of the places may have changed.

    It owns one thread, since a file system may never answer to being watched.
    """

    def __init__(self) -> None:
        self.stirred = asyncio.Event()
        self._places: WatchPaths | None = None
        self._thread: asyncio.Future[None] | None = None
        self._stop = threading.Event()
        self._told = ""

    async def watch(self, places: WatchPaths) -> None:
        """Watch these places from now on. Does nothing where they are being watched already."""
        if self._thread is not None and not self._thread.done() and places == self._places:
            return
        await self.close()
        if self._thread is not None or not places.directories:
            return
        if places != self._places:
            # What changed before the new watch was in place has no notification: look once more.
            self.stirred.set()
        self._places = places
        self._stop = threading.Event()
        self._thread = in_thread(self._run, places, self._stop, asyncio.get_running_loop())

    async def close(self) -> None:
        """End the thread, and say why it had failed, if it had. One that hangs stays, with no other beside it."""
        if self._thread is None:
            return
        if not self._stop.is_set():
            self._stop.set()
            await asyncio.wait([self._thread], timeout=END)
        if not self._thread.done():
            self._tell("no answer from a file system")
            return
        error, self._thread = self._thread.exception(), None
        if error is not None:
            self._tell(str(error))

    def _tell(self, reason: str) -> None:
        if self._told != reason:
            self._told = reason
            log.warning("file notifications do not work (%s); changes are found by polling alone", reason)

    def _run(self, places: WatchPaths, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        def matters(_change: Change, path: str) -> bool:
            return path in places.entries

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
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self.stirred.set)
