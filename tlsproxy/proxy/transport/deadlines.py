"""Deadlines of streams: an attribute of each stream, checked by one sweep every :data:`TICK` seconds.

A timer for each wait would be armed and cancelled several times for each request; an attribute costs an assignment. The
price is precision: a wait ends up to ``TICK`` seconds late.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Protocol

TICK: Final = 0.1
NEVER: Final = float("inf")
SLICE: Final = 500
"""Streams that get new deadlines in one callback of the loop."""


class Receiving(Protocol):
    """Stream that received data: ``look`` is called at the next sweep."""

    def look(self) -> None: ...


class Expiring(Receiving, Protocol):
    """Stream with a ``deadline`` on the monotonic clock; ``expired`` is called at every sweep after it, until it moves.

    ``rearm``: the limits have changed, the current wait gets its new deadline.
    """

    deadline: float

    def expired(self) -> None: ...
    def rearm(self) -> None: ...


class Deadlines:
    """Sweep over the deadlines of streams, with the callbacks of ``each`` sweep. Ended by :meth:`close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: set[Expiring] = set()
        self.heard: set[Receiving] = set()
        """Streams that received data since the last sweep. A stream adds itself."""
        self.each: list[Callable[[], None]] = []
        self._to_rearm: Iterator[Expiring] = iter(())
        self._handle = loop.call_later(TICK, self._sweep)

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: Expiring) -> None:
        self._streams.add(stream)

    def discard(self, stream: Expiring) -> None:
        self._streams.discard(stream)
        self.heard.discard(stream)

    def rearm(self) -> None:
        """Applies changed limits to waits in progress, some hundred at a time so that other work runs in between."""
        self._to_rearm = iter(list(self._streams))
        self._loop.call_soon(self._rearm_some)

    def _rearm_some(self) -> None:
        some = list(islice(self._to_rearm, SLICE))
        for stream in some:
            if stream in self._streams:
                stream.rearm()
        if some:
            self._loop.call_soon(self._rearm_some)

    def close(self) -> None:
        self._handle.cancel()

    def _sweep(self) -> None:
        self._handle = self._loop.call_later(TICK, self._sweep)
        now = time.monotonic()
        for stream in [stream for stream in self._streams if stream.deadline <= now]:
            stream.expired()
        heard = list(self.heard)
        self.heard.clear()
        for receiving in heard:
            receiving.look()
        for call in self.each:
            call()
