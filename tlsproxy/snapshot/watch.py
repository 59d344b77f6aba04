"""Detection of changed inputs: by content, on a monotonic clock.

Every poll reads all inputs and compares a digest over their bytes. Nothing less is reliable: times and sizes can stay
the same, and notifications miss common ways of replacing certificates (a swapped link). They only prompt the next poll.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tlsproxy.snapshot.files import confined, read_inputs
from tlsproxy.snapshot.notify import FileNotifications
from tlsproxy.snapshot.watch_paths import WatchPaths, places_of
from tlsproxy.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from tlsproxy.config.model import Config
    from tlsproxy.snapshot.files import Inputs

JITTER: Final = 0.1
"""Share of the interval by which polls vary, so that many gateways on one file server do not poll in step."""


class Watcher:
    """``inputs`` are the last reading, with the files that could not be read.

    A state that was yielded, or passed to :meth:`seen`, is not yielded again. So bad inputs are tried once, and again
    when they change; unreadable files are read again at each poll.
    """

    def __init__(self, config_path: Path, environ: Mapping[str, str], inputs: Inputs) -> None:
        """``inputs`` are in force."""
        self._config_path = config_path
        self._environ = environ
        self._state = inputs.digest
        self._renewed = time.monotonic()
        self._reading = asyncio.Lock()
        self._serving = inputs.loaded.config
        self.inputs = inputs

    async def read(self) -> Inputs:
        """Read the inputs, for a poll or a reload.

        Readings are serialised, each based on the last one: a file that is being written stays as it was found last.
        Based on an older reading, a reload could bring back a right that a former reload took away.

        Files of the configuration in force are read too, so that a refused configuration holds up none of them.
        """
        async with self._reading:
            self.inputs = await in_thread(
                read_inputs, self._config_path, self._environ, earlier=self.inputs, serving=self._serving
            )
            return self.inputs

    def serves(self, config: Config) -> None:
        """Note the configuration in force after a publication. Files that only a former one named are dropped."""
        self._serving, read = config, self.inputs
        if read.loaded.config == config:
            self.inputs = confined(read, self._config_path)
            if read.digest == self._state:
                self._state = self.inputs.digest

    def seen(self, digest: str) -> None:
        """Note that the inputs with this digest have been dealt with."""
        self._state = digest
        self._renewed = time.monotonic()

    async def changes(self) -> AsyncGenerator[str, None]:
        """Yield ``poll`` or ``watch`` when inputs have changed, ``ttl`` when `tls.cert_ttl` has passed.

        Runs until it is cancelled or closed (`contextlib.aclosing`), and leaves no task behind. One at a time.
        """
        hint = FileNotifications()
        try:
            stirred = False
            while True:
                await hint.watch(await self._poll())
                if trigger := self._trigger(stirred=stirred):
                    self._state = self.inputs.digest
                    self._renewed = time.monotonic()
                    yield trigger
                stirred = await self._pause(hint.stirred)
        finally:
            await hint.close()

    async def _poll(self) -> WatchPaths:
        inputs = await self.read()
        paths = inputs.files.keys() | inputs.failures.keys()
        timeout = inputs.loaded.config.tls.read_timeout
        return await in_thread(places_of, paths, timeout, inputs.config_files.directories)

    def _trigger(self, *, stirred: bool) -> str:
        if self.inputs.digest != self._state:
            return "watch" if stirred else "poll"
        return "ttl" if self._ttl_left() <= 0 else ""

    def _ttl_left(self) -> float:
        """Seconds until a rebuild is due. With Qdrant's ``cert_ttl: 0`` that is never."""
        ttl = self.inputs.loaded.config.tls.cert_ttl
        return self._renewed + ttl - time.monotonic() if ttl else float("inf")

    async def _pause(self, stirred: asyncio.Event) -> bool:
        """Wait for the next poll. Whether a notification prompted it."""
        spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, guards nothing
        seconds = min(self.inputs.loaded.config.tls.poll_interval * spread, max(self._ttl_left(), 0.0))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stirred.wait()
        prompted = stirred.is_set()
        stirred.clear()
        return prompted
