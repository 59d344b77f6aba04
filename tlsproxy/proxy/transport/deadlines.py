"""One clock for every wait: streams carry the moment by which something must have happened, and one sweep looks.

A timer for each wait would be armed and cancelled several times for each request; a deadline that is an attribute costs
an assignment. The price is precision: a wait ends up to ``TICK`` seconds late.
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
"""Waits that get their new times in one go."""


class Hearing(Protocol):
    """``look`` is called at the sweep after something came."""

    def look(self) -> None: ...


class Expiring(Hearing, Protocol):
    """``deadline`` is on the monotonic clock; ``expired`` is called at every sweep from then on, until it moves.

    ``rearm``: limits are others now, so what is waited for gets its new time.
    """

    deadline: float

    def expired(self) -> None: ...
    def rearm(self) -> None: ...


class Deadlines:
    """The streams that are swept, and what else is called ``each`` time. Ended by :meth:`close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: set[Expiring] = set()
        self.heard: set[Hearing] = set()
        """Those that something came to since the last sweep. A stream adds itself."""
        self.each: list[Callable[[], None]] = []
        self._waits: Iterator[Expiring] = iter(())
        self._handle = loop.call_later(TICK, self._sweep)

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: Expiring) -> None:
        self._streams.add(stream)

    def discard(self, stream: Expiring) -> None:
        self._streams.discard(stream)
        self.heard.discard(stream)

    def rearm(self) -> None:
        """Limits have changed, also for what is waited for by now: some hundred waits at a time, others in between."""
        self._waits = iter(list(self._streams))
        self._loop.call_soon(self._rearm_some)

    def _rearm_some(self) -> None:
        some = list(islice(self._waits, SLICE))
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
        for hearing in heard:
            hearing.look()
        for call in self.each:
            call()
