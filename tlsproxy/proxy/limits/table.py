"""Table of limits: of fixed size for any number of callers, and one for all workers.

A row has its key (a hash of the account), the arrival time of its rate (:mod:`tlsproxy.proxy.limits.gcra`), and the
number of requests in flight in each worker. A row that owes nothing and has nothing in flight is free. A caller whose
bucket is full uses one shared overflow row: possibly too strict, never unlimited.

With several workers the table is shared memory, changed under a lock, at a time that is read under the lock. Its holder
needs microseconds, unless the system stops it just there: after some milliseconds the change is made without the lock,
and may overwrite one made at the same moment. A lock ends with its process. Each worker alone writes its column of
requests in flight, so that the column of a worker that died can be cleared.

Where several gateways share their limits, columns of leases (:mod:`tlsproxy.proxy.limits.leases`) lie behind, and the
process that draws them has a view of the table. The rate of a charge with an account is counted there.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from mmap import mmap
from typing import Final

from tlsproxy.proxy.limits import leases
from tlsproxy.proxy.limits.gcra import Charge, Excess, Rate
from tlsproxy.proxy.limits.leases import Leases

ROWS: Final = 1 << 18
BUCKET: Final = 8
"""Rows in which an account's row may be."""
BUCKETS: Final = ROWS // BUCKET
OVERFLOW: Final = ROWS
TRIES: Final = 50
"""Attempts to get the lock at once; then as many again, with a pause before each."""
PAUSE: Final = 0.0001
_SECRET: Final = 32
_CELL: Final = 4


class LimitTable:
    """View of one worker. ``overflows`` counts uses of the overflow row. ``lock`` is for changes of several steps.
    ``leases`` are None where this gateway shares its limits with no other.
    """

    def __init__(
        self,
        memory: mmap,
        worker: int,
        workers: int,
        lock: int | None,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        leased: bool = False,
    ) -> None:
        """Clears the requests in flight of a former worker of this number. All workers have the same ``clock``. A
        ``worker`` of number ``workers`` serves no request.
        """
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
        if worker == workers:
            columns.append(memoryview(bytearray(cells)))
        elif lock is not None:
            columns[worker][:] = bytes(cells)
        self._own = columns[worker].cast("I")
        self._others = tuple(column.cast("I") for one, column in enumerate(columns) if one != worker)
        behind = view[start + cells * workers :]
        self.leases = Leases(behind, self._arrivals, self.lock, clock) if leased else None

    @classmethod
    def private(cls, clock: Callable[[], int] = time.monotonic_ns, *, leased: bool = False) -> LimitTable:
        """Table of a single process. Unused pages take no memory."""
        memory = mmap(-1, size(1, leased=leased))
        memory[:_SECRET] = os.urandom(_SECRET)
        return cls(memory, 0, 1, None, clock, leased=leased)

    @classmethod
    def shared(cls, descriptor: int, worker: int, workers: int, *, leased: bool = False) -> LimitTable:
        """Table of one of several workers, in the file that :func:`create` made. ``worker`` counts from 0."""
        return cls(mmap(descriptor, size(workers, leased=leased)), worker, workers, descriptor, leased=leased)

    @classmethod
    def drawing(cls, descriptor: int, workers: int) -> LimitTable:
        """The same table, for the process that draws leases and serves no request."""
        return cls(mmap(descriptor, size(workers, leased=True)), workers, workers, descriptor, leased=True)

    def key(self, *names: str) -> int:
        """Key of an account's row. Colliding names cannot be found without the table's secret."""
        digest = blake2b(ascii(names).encode(), digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "big") or 1

    def account(self, *names: str) -> tuple[int, bytes]:
        """Key of an account's row, and the account's name in the store, empty where no limits are shared."""
        if self.leases is None:
            return self.key(*names), b""
        name = blake2b(ascii(names).encode(), digest_size=leases.NAME, person=b"tlsproxy").digest()
        return self.key(name.hex()), name

    def take(self, charges: Sequence[Charge]) -> tuple[int, ...] | Excess:  # noqa: C901 - the usual rate is counted in place
        """Counts one request against all charges or none: its rows with requests in flight, or the excess."""
        keys, arrivals, own, others, leased = self._keys, self._arrivals, self._own, self._others, self.leases
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
                if leased is not None and charge.account:
                    if rate is not None:
                        wait = leased.wait(row, charge, rate, now)
                    most = most and leased.part(most)
                elif rate is not None and arrivals[row] - now + rate.interval > rate.room:
                    wait = self._wait(row, rate, now)
                full = most and (self._in_flight(row) if others else own[row]) >= most
                if (wait or full) and (excess is None or wait > excess.wait):
                    excess = Excess(charge, wait)
            if excess is not None:
                return excess
            counted = []
            for charge, row in zip(charges, rows, strict=True):
                rate = charge.rate
                if rate is not None:
                    if leased is not None and charge.account:
                        leased.count(row, rate, now)
                    else:
                        arrival = arrivals[row]
                        arrivals[row] = (max(now, arrival)) + rate.interval
                if charge.concurrent:
                    own[row] += 1
                    counted.append(row)
            return tuple(counted)

    def release(self, rows: Sequence[int]) -> None:
        """Ends a request, given the rows that :meth:`take` returned."""
        for row in rows:
            self._own[row] -= 1

    def arrival(self, key: int, now: int) -> int:
        """Arrival time that was :meth:`put`; that of a free row, which is past, if there is none."""
        return self._arrivals[self._find(key, now, ())]

    def put(self, key: int, arrival: int, now: int) -> int:
        """Stores an arrival time. Needs the lock. Returns its row."""
        row = self._row(key, now, ())
        self._arrivals[row] = arrival
        return row

    def _row(self, key: int, now: int, taken: Sequence[int]) -> int:
        row = self._find(key, now, taken)
        if row == OVERFLOW:
            self.overflows += 1
        else:
            self._keys[row] = key
        return row

    def _find(self, key: int, now: int, taken: Sequence[int]) -> int:
        """Row of this key, or else a free row of its bucket, or else the overflow row."""
        keys, arrivals = self._keys, self._arrivals
        first = key % BUCKETS * BUCKET
        free = -1
        for row in range(first, first + BUCKET):
            if keys[row] == key:
                return row
            if free < 0 and arrivals[row] <= now and row not in taken and not self._in_flight(row):
                free = row
        return OVERFLOW if free < 0 else free

    def _wait(self, row: int, rate: Rate, now: int) -> int:
        arrival = self._arrivals[row]
        if row != OVERFLOW and arrival > (capped := rate.capped(arrival, now)):
            self._arrivals[row] = arrival = capped
        return rate.wait(arrival, now)

    def _in_flight(self, row: int) -> int:
        count = self._own[row]
        for column in self._others:
            count += column[row]
        return count


class _Lock:
    """``unlocked`` counts changes without the lock."""

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


def size(workers: int, *, leased: bool = False) -> int:
    """Bytes of a table for this many workers."""
    rows = ROWS + 1
    return _SECRET + (16 + _CELL * workers) * rows + (leases.size(rows) if leased else 0)


def create(workers: int, *, leased: bool = False) -> int:
    """Anonymous file (memfd) for :meth:`LimitTable.shared`, made by the supervisor. Not inherited by default."""
    descriptor = os.memfd_create("tlsproxy-limits")
    os.ftruncate(descriptor, size(workers, leased=leased))
    os.pwrite(descriptor, os.urandom(_SECRET), 0)
    return descriptor
