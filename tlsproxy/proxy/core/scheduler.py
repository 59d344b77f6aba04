"""Bounded turns: what one connection has to do beyond its first turn waits here, and everybody is served in between.

One slice is served in each iteration of the loop, so that between two of them all sockets are. Accounts take turns, and
within an account its connections, and within a connection what it has waiting: many connections of one holder get no
more of the loop than one. Whoever has work waiting here reads no more meanwhile, so that what waits is bounded by what
a connection may hold.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar

from tlsproxy.proxy.limits.fair_shares import Account
from tlsproxy.wire.cooperative import Steps

SLICE: Final = 0.003
"""Seconds: for how long nobody else is served. What has begun by then is finished."""

T = TypeVar("T")
Work = Callable[[], None]


class GuardedStream(Protocol):
    """A stream: an error in what it is told to call ends it."""

    def tell(self, callback: Callable[..., None], *args: object) -> None: ...


class ScheduledConnection(Protocol):
    """Connection that the work belongs to: its :class:`tlsproxy.proxy.core.connection_manager.Entry`."""

    @property
    def account(self) -> Account: ...


class Scheduler:
    """``waiting``: by account, then by connection, what each has still to do; the next one to be served is first."""

    __slots__ = ("_loop", "_running", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running = False
        self.waiting: dict[Account, dict[ScheduledConnection, deque[tuple[GuardedStream, Work]]]] = {}

    def add(self, connection: ScheduledConnection, stream: GuardedStream, work: Work) -> None:
        """``work`` is called when it is its turn, and does a slice of what there is to do."""
        connections = self.waiting.setdefault(connection.account, {})
        connections.setdefault(connection, deque()).append((stream, work))
        if not self._running:
            self._running = True
            self._loop.call_soon(self._serve)

    def crowded(self, connection: ScheduledConnection) -> bool:
        """Whether its account has work waiting, so that more of it has to wait behind that."""
        return bool(self.waiting) and connection.account in self.waiting

    def forget(self, connection: ScheduledConnection) -> None:
        """It has ended."""
        if self.waiting:
            connections = self.waiting.get(connection.account, {})
            if connections.pop(connection, None) is not None and not connections:
                del self.waiting[connection.account]

    def _serve(self) -> None:
        if not self.waiting:
            self._running = False
            return
        self._loop.call_soon(self._serve)
        account = next(iter(self.waiting))
        connections = self.waiting.pop(account)
        connection = next(iter(connections))
        work = connections.pop(connection)
        stream, go_on = work.popleft()
        if work:
            connections[connection] = work  # behind the others
        if connections:
            self.waiting[account] = connections
        stream.tell(go_on)


class SlicedJob(Protocol):
    """``later``: it calls this in its turn, unless it has ended by then. A RequestError that is raised there is its own
    to tell of. ``crowded``: others of its account wait already. ``reserve``: whether it may use so many bytes of memory
    from now on; if not, it calls ``go_on`` like ``later`` does, once it may, or raises RequestError.
    """

    @property
    def crowded(self) -> bool: ...
    def later(self, go_on: Work) -> None: ...
    def reserve(self, size: int, go_on: Work) -> bool: ...


def in_slices(job: SlicedJob, steps: Steps[T], then: Callable[[T], None]) -> None:
    """``then`` is told what the steps come to: before this returns, if that takes no longer than a slice and nobody
    else of the account waits.

    Raises RequestError where they do by then.
    """
    if job.crowded:
        job.later(partial(_slice, job, steps, then))
    else:
        _slice(job, steps, then)


def _slice(job: SlicedJob, steps: Steps[T], then: Callable[[T], None]) -> None:
    end = time.monotonic() + SLICE
    go_on = partial(_slice, job, steps, then)
    try:
        while True:
            wanted = next(steps)
            if wanted is not None and not job.reserve(wanted, go_on):
                return
            if time.monotonic() >= end:
                job.later(go_on)
                return
    except StopIteration as done:
        then(done.value)
