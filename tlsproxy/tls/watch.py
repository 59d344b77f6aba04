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

from tlsproxy.config.model import Tls
from tlsproxy.errors import TlsproxyError
from tlsproxy.threads import in_thread
from tlsproxy.tls.files import UnstableInputs, read_inputs
from tlsproxy.tls.hint import Hint
from tlsproxy.tls.places import Places, places_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from tlsproxy.tls.files import Inputs

JITTER: Final = 0.1
"""Share of the interval by which polls are spread, so that many gateways on one file server do not read in step."""
PATIENCE: Final = 3
"""Polls in a row that may find the inputs being written, before that is a state of its own to tell somebody of."""


class Watcher:
    """``inputs`` are those of the last poll, fit for :func:`tlsproxy.tls.generation.build`; None if it could not read.

    The last state that was yielded, or handed over to :meth:`seen`, is not yielded again. So inputs that cannot be used
    are tried once and then left alone until they change; inputs that could not be read are read again at each poll.
    """

    def __init__(self, config_path: Path, environ: Mapping[str, str]) -> None:
        self._config_path = config_path
        self._environ = environ
        self._state = ""
        self._interval: float = Tls.model_fields["poll_interval"].default
        self._ttl: float = 0
        self._renewed = time.monotonic()
        self._known: Inputs | None = None
        self._unstable = 0
        self.inputs: Inputs | None = None

    def seen(self, digest: str) -> None:
        """The inputs with this digest serve now."""
        self._state = digest
        self._renewed = time.monotonic()

    async def changes(self) -> AsyncGenerator[str, None]:
        """Yield ``poll`` or ``watch`` when the inputs have changed, ``ttl`` when `tls.cert_ttl` is over.

        Runs until it is cancelled or closed (`contextlib.aclosing`), and leaves no task behind then. One at a time.
        """
        hint = Hint()
        try:
            stirred = False
            while True:
                state, places = await in_thread(self._poll)
                await hint.watch(places)
                if trigger := self._trigger(state, stirred=stirred):
                    self._state = state
                    self._renewed = time.monotonic()
                    yield trigger
                stirred = await self._pause(hint.stirred)
        finally:
            await hint.close()

    def _poll(self) -> tuple[str, Places]:
        """The state of the inputs: their digest, or else why they cannot be read. Runs in a worker thread."""
        try:
            self.inputs = read_inputs(self._config_path, self._environ, earlier=self._known)
        except TlsproxyError as error:
            self.inputs = None
            self._unstable = self._unstable + 1 if isinstance(error, UnstableInputs) else 0
            state = self._state if 0 < self._unstable < PATIENCE else f"{type(error).__name__}: {error}"
        else:
            self._known, self._unstable = self.inputs, 0
            tls = self.inputs.loaded.config.tls
            self._interval, self._ttl = tls.poll_interval, tls.cert_ttl or 0
            state = self.inputs.digest
        paths = {self._config_path} if self._known is None else self._known.files.keys()
        return state, places_of(paths)

    def _trigger(self, state: str, *, stirred: bool) -> str:
        if state != self._state:
            return "watch" if stirred else "poll"
        if self.inputs is not None and self._ttl_left() <= 0:
            return "ttl"
        return ""

    def _ttl_left(self) -> float:
        """Seconds until a rebuild is due. Qdrant's ``cert_ttl: 0`` means never."""
        return self._renewed + self._ttl - time.monotonic() if self._ttl else float("inf")

    async def _pause(self, stirred: asyncio.Event) -> bool:
        """Wait for the next poll. True where a notification made it due."""
        spread = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, guards nothing
        seconds = self._interval * spread
        if self.inputs is not None:
            seconds = min(seconds, max(self._ttl_left(), 0.0))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stirred.wait()
        prompted = stirred.is_set()
        stirred.clear()
        return prompted
