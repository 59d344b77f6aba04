"""Deadlines of streams: an attribute of each stream, checked by one sweep every :data:`TICK` seconds.

A timer for each wait would be armed and cancelled several times for each request; an attribute costs an assignment. The
price is precision: a wait ends up to ``TICK`` seconds late.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from tlsproxy.slices import act_in_slices

TICK: Final = 0.1
NEVER: Final = float("inf")


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
        self._looked_at: set[Receiving] = set()
        self.each: list[Callable[[], None]] = []
        self._handle = loop.call_later(TICK, self._sweep)

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: Expiring) -> None:
        self._streams.add(stream)

    def discard(self, stream: Expiring) -> None:
        self._streams.discard(stream)
        self.heard.discard(stream)
        self._looked_at.discard(stream)

    def rearm(self) -> None:
        """Applies changed limits to waits in progress, in slices."""
        self._loop.call_soon(act_in_slices, self._loop, list(self._streams), self._rearm_one)

    def _rearm_one(self, stream: Expiring) -> None:
        if stream in self._streams:
            stream.rearm()

    def close(self) -> None:
        self._handle.cancel()

    def _sweep(self) -> None:
        self._handle = self._loop.call_later(TICK, self._sweep)
        now = time.monotonic()
        over = [stream for stream in self._streams if stream.deadline <= now]
        act_in_slices(self._loop, over, self._expire)  # twenty thousand may expire at once
        self._looked_at |= self.heard
        self.heard.clear()
        act_in_slices(self._loop, self._looked_at, _look)
        for call in self.each:
            call()

    def _expire(self, stream: Expiring) -> None:
        if stream in self._streams and stream.deadline <= time.monotonic():
            stream.expired()


def _look(receiving: Receiving) -> None:
    receiving.look()
