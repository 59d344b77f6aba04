"""Scheduler of work that takes a connection more than one turn.

One slice runs in each iteration of the loop, so that all sockets are served between two slices. Round robin over
accounts, then over the connections of an account, then over the work of a connection: a caller with 1,000 busy
connections gets no more of the loop than a caller with one. In its turn a connection does at once what else comes up. A
connection with work waiting here reads no more, so the queue is bounded by what the connections may hold.
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
"""Seconds for which nobody else is served. A step that has begun by then is finished."""

T = TypeVar("T")
Work = Callable[[], None]


class GuardedStream(Protocol):
    """Stream that calls for its handler: an error in the callback ends that stream, and nothing else."""

    def tell(self, callback: Callable[..., None], *args: object) -> None: ...


class ScheduledConnection(Protocol):
    """Connection that the work belongs to: its :class:`tlsproxy.proxy.core.connection_manager.Entry`."""

    @property
    def account(self) -> Account: ...


class Scheduler:
    """``waiting``: work by account, then by connection; the next to be served is first."""

    __slots__ = ("_loop", "_running", "_served", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running = False
        self._served: ScheduledConnection | None = None
        self.waiting: dict[Account, dict[ScheduledConnection, deque[tuple[GuardedStream, Work]]]] = {}

    def add(self, connection: ScheduledConnection, stream: GuardedStream, work: Work) -> None:
        """Queues ``work``, which does a slice when its turn comes."""
        connections = self.waiting.setdefault(connection.account, {})
        connections.setdefault(connection, deque()).append((stream, work))
        if not self._running:
            self._running = True
            self._loop.call_soon(self._serve)

    def crowded(self, connection: ScheduledConnection) -> bool:
        """Whether its account has work waiting, behind which more work has to wait, unless it is the connection's turn.

        Without that exception one long slice of a busy account would have all its later work queued, piece by piece.
        """
        return bool(self.waiting) and connection is not self._served and connection.account in self.waiting

    def forget(self, connection: ScheduledConnection) -> None:
        """Drops the work of a connection that has ended."""
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
        self._served = connection
        try:
            stream.tell(go_on)
        finally:
            self._served = None


class SlicedJob(Protocol):
    """Request or call with work in steps. ``later`` calls ``go_on`` in its turn, unless the job has ended by then, and
    answers a RequestError from it. ``crowded``: its account has work waiting already. ``reserve``: whether it may use
    ``size`` bytes of memory from now on; if not, it calls ``go_on`` as ``later`` does, once it may, or raises
    RequestError.
    """

    @property
    def crowded(self) -> bool: ...
    def later(self, go_on: Work) -> None: ...
    def reserve(self, size: int, go_on: Work) -> bool: ...


def in_slices(job: SlicedJob, steps: Steps[T], then: Callable[[T], None]) -> None:
    """Runs ``steps`` and calls ``then`` with their result: before this returns, if they take no longer than a slice and
    the account has nothing waiting.

    Raises a RequestError of the first slice.
    """
    work = _ending(steps, then)
    if job.crowded:
        job.later(partial(_slice, job, work))
    else:
        _slice(job, work)


def _ending(steps: Steps[T], then: Callable[[T], None]) -> Steps[None]:
    then((yield from steps))  # the end of another generator would be an error object, with a traceback


def _slice(job: SlicedJob, work: Steps[None]) -> None:
    end = time.monotonic() + SLICE
    for wanted in work:
        if wanted is not None and not job.reserve(wanted, partial(_slice, job, work)):
            return
        if time.monotonic() >= end:
            job.later(partial(_slice, job, work))
            return
