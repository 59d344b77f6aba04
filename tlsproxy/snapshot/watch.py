"""Noticing that an input of the generation has changed: by content, on a monotonic clock.

Every poll reads all inputs and compares a digest over their bytes, because nothing less is reliable: times and sizes
can stay the same, and notifications miss the ways in which certificates are replaced in practice. Notifications only
make the next poll prompt. Nothing is built or published here.
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
"""Share of the interval by which polls are spread, so that many gateways on one file server do not read in step."""


class Watcher:
    """``inputs`` are those of the last reading, with what could not be read of them.

    The last state that was yielded, or handed over to :meth:`seen`, is not yielded again. So inputs that cannot be used
    are tried once and then left alone until they change; files that could not be read are read again at each poll.
    """

    def __init__(self, config_path: Path, environ: Mapping[str, str], inputs: Inputs) -> None:
        """``inputs`` have been read already, and serve."""
        self._config_path = config_path
        self._environ = environ
        self._state = inputs.digest
        self._renewed = time.monotonic()
        self._reading = asyncio.Lock()
        self._serving = inputs.loaded.config
        self.inputs = inputs

    async def read(self) -> Inputs:
        """The inputs as they are now, for a poll or a reload.

        One reading at a time, each beside the one before: a file that is being written stays as it was found last. Were
        it to stay as an older reading found it, a reload would bring back what a former one took away.

        The files of the configuration that serves are among them: one that is refused keeps none from being judged.
        """
        async with self._reading:
            self.inputs = await in_thread(
                read_inputs, self._config_path, self._environ, earlier=self.inputs, serving=self._serving
            )
            return self.inputs

    def serves(self, config: Config) -> None:
        """Called with the configuration after each publication. Files that only a former one named are dropped."""
        self._serving, read = config, self.inputs
        if read.loaded.config == config:
            self.inputs = confined(read, self._config_path)
            if read.digest == self._state:
                self._state = self.inputs.digest

    def seen(self, digest: str) -> None:
        """The inputs with this digest serve now."""
        self._state = digest
        self._renewed = time.monotonic()

    async def changes(self) -> AsyncGenerator[str, None]:
        """Yield ``poll`` or ``watch`` when the inputs have changed, ``ttl`` when `tls.cert_ttl` is over.

        Runs until it is cancelled or closed (`contextlib.aclosing`), and leaves no task behind then. One at a time.
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
        return await in_thread(places_of, paths, inputs.loaded.config.tls.read_timeout)

    def _trigger(self, *, stirred: bool) -> str:
        if self.inputs.digest != self._state:
            return "watch" if stirred else "poll"
        return "ttl" if self._ttl_left() <= 0 else ""

    def _ttl_left(self) -> float:
        """Seconds until a rebuild is due. Qdrant's ``cert_ttl: 0`` means never."""
        ttl = self.inputs.loaded.config.tls.cert_ttl
        return self._renewed + ttl - time.monotonic() if ttl else float("inf")

    async def _pause(self, stirred: asyncio.Event) -> bool:
        """Wait for the next poll. True where a notification made it due."""
        spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, guards nothing
        seconds = min(self.inputs.loaded.config.tls.poll_interval * spread, max(self._ttl_left(), 0.0))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stirred.wait()
        prompted = stirred.is_set()
        stirred.clear()
        return prompted
