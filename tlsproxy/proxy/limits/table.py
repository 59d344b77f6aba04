"""The table that limits are counted in: of fixed size whoever comes, and one for all workers.

A row is whose it is (a hash), the arrival time of its rate (:mod:`tlsproxy.proxy.limits.gcra`), and for each worker how
many requests are going on there. A row that owes nothing and has nothing going on is free for the next one who comes.
Who finds none free among the few that are theirs shares one row with all others who found none: too little for them
together, and never unlimited.

With several workers the table is one shared memory, and each change is made under a lock on it, at a time that is read
under the lock. Whoever holds that is done in microseconds unless the system stops it just there: after some
milliseconds the change is made without, at the risk that one that is made in the same moment is forgotten. A lock ends
with its process. What a worker has going on is written by that worker alone, so that it is known what to forget of one
that died.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from mmap import mmap
from typing import Final

from tlsproxy.proxy.limits.gcra import Charge, Excess, Rate

ROWS: Final = 1 << 18
BUCKET: Final = 8
"""Rows among which one's own is."""
BUCKETS: Final = ROWS // BUCKET
OVERFLOW: Final = ROWS
TRIES: Final = 50
"""Of getting the lock at once; then as many again, with a pause before each."""
PAUSE: Final = 0.0001
_SECRET: Final = 32
_CELL: Final = 4


class LimitTable:
    """One worker's view. ``overflows`` counts what met the shared row. ``lock`` is for changes of several steps."""

    def __init__(
        self, memory: mmap, worker: int, workers: int, lock: int | None, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """Forgets what was going on in a former worker of this number. The ``clock`` is one for all workers."""
        self.overflows = 0
        self.lock = _Lock(lock)
        self.clock = clock
        view = memoryview(memory)
        self._secret = bytes(view[:_SECRET])
        words, cells = 8 * (ROWS + 1), _CELL * (ROWS + 1)
        start = _SECRET
        self._keys = view[start : start + words].cast("Q")
        self._arrivals = view[start + words : start + 2 * words].cast("q")
        start += 2 * words
        columns = [view[start + cells * one : start + cells * (one + 1)] for one in range(workers)]
        if lock is not None:
            columns[worker][:] = bytes(cells)
        self._own = columns[worker].cast("I")
        self._others = tuple(column.cast("I") for one, column in enumerate(columns) if one != worker)

    @classmethod
    def private(cls, clock: Callable[[], int] = time.monotonic_ns) -> LimitTable:
        """Of a process that is alone. Pages that nobody's row is in take no memory."""
        memory = mmap(-1, size(1))
        memory[:_SECRET] = os.urandom(_SECRET)
        return cls(memory, 0, 1, None, clock)

    @classmethod
    def shared(cls, descriptor: int, worker: int, workers: int) -> LimitTable:
        """Of one of several workers, over what :func:`create` made for all of them. ``worker`` counts from 0."""
        return cls(mmap(descriptor, size(workers)), worker, workers, descriptor)

    def key(self, *names: str) -> int:
        """Whose a row is, as a number. Nobody can find names that collide without knowing the table's secret."""
        digest = blake2b(ascii(names).encode(), digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "big") or 1

    def take(self, charges: Sequence[Charge]) -> tuple[int, ...] | Excess:
        """Counts one request against all of these, or none: the rows that it has something going on in, or why not."""
        keys, arrivals, own, others = self._keys, self._arrivals, self._own, self._others
        with self.lock:
            now = self.clock()
            rows: list[int] = []
            excess: Excess | None = None
            for charge in charges:
                key, rate, most = charge.key, charge.rate, charge.concurrent
                row = key % BUCKETS * BUCKET
                if keys[row] != key:
                    row = self._row(key, now, rows)
                rows.append(row)
                wait = 0
                if rate is not None and arrivals[row] - now + rate.interval > rate.room:
                    wait = self._wait(row, rate, now)
                full = most and (self._going_on(row) if others else own[row]) >= most
                if (wait or full) and (excess is None or wait > excess.wait):
                    excess = Excess(charge, wait)
            if excess is not None:
                return excess
            held = []
            for charge, row in zip(charges, rows, strict=True):
                rate = charge.rate
                if rate is not None:
                    arrival = arrivals[row]
                    arrivals[row] = (max(now, arrival)) + rate.interval
                if charge.concurrent:
                    own[row] += 1
                    held.append(row)
            return tuple(held)

    def release(self, rows: Sequence[int]) -> None:
        """What :meth:`take` returned has ended."""
        for row in rows:
            self._own[row] -= 1

    def arrival(self, key: int, now: int) -> int:
        """A time that was :meth:`put`; one that is past where there is none."""
        row = self._seat(key, now, ())
        return self._arrivals[row] if row == OVERFLOW or self._keys[row] == key else 0

    def put(self, key: int, arrival: int, now: int) -> None:
        """Needs the lock."""
        self._arrivals[self._row(key, now, ())] = arrival

    def _row(self, key: int, now: int, taken: Sequence[int]) -> int:
        row = self._seat(key, now, taken)
        if row == OVERFLOW:
            self.overflows += 1
        else:
            self._keys[row] = key
        return row

    def _seat(self, key: int, now: int, taken: Sequence[int]) -> int:
        """The row of this key, or one that could be."""
        keys, arrivals = self._keys, self._arrivals
        first = key % BUCKETS * BUCKET
        free = -1
        for row in range(first, first + BUCKET):
            if keys[row] == key:
                return row
            if free < 0 and arrivals[row] <= now and row not in taken and not self._going_on(row):
                free = row
        return OVERFLOW if free < 0 else free

    def _wait(self, row: int, rate: Rate, now: int) -> int:
        arrival = self._arrivals[row]
        if row != OVERFLOW and arrival > (capped := rate.capped(arrival, now)):
            self._arrivals[row] = arrival = capped
        return rate.wait(arrival, now)

    def _going_on(self, row: int) -> int:
        count = self._own[row]
        for column in self._others:
            count += column[row]
        return count


class _Lock:
    """``unlocked`` counts how often it was gone on without."""

    __slots__ = ("_descriptor", "_held", "unlocked")

    def __init__(self, descriptor: int | None) -> None:
        self.unlocked = 0
        self._descriptor = descriptor
        self._held = False

    def __enter__(self) -> None:
        if self._descriptor is None:
            return
        for attempt in range(2 * TRIES):
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt < TRIES:
                    os.sched_yield()
                else:
                    time.sleep(PAUSE)
            else:
                self._held = True
                return
        self.unlocked += 1

    def __exit__(self, *_: object) -> None:
        if self._held and self._descriptor is not None:
            self._held = False
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def size(workers: int) -> int:
    """Bytes of a table for so many."""
    return _SECRET + (16 + _CELL * workers) * (ROWS + 1)


def create(workers: int) -> int:
    """An anonymous file (memfd) for :meth:`LimitTable.shared`, for whoever starts the workers. Inherited on request."""
    descriptor = os.memfd_create("tlsproxy-limits")
    os.ftruncate(descriptor, size(workers))
    os.pwrite(descriptor, os.urandom(_SECRET), 0)
    return descriptor
