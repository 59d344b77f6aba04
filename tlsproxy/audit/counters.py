"""Counters of audit lines in memory that a worker shares with its supervisor.

A worker may be killed at any time. Its supervisor then computes from these counters how many lines are lost (queued
ones, and those of requests in progress), and reports them in its place.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from typing import Final


class Count(IntEnum):
    """``TAKEN``: lines with reserved room, written or not. ``TOLD``: lost lines that were reported."""

    TAKEN = 0
    WRITTEN = 1
    LOST = 2
    TOLD = 3


Counts = memoryview
"""The counters of one process, by :class:`Count`. Each has one writing thread: the event loop's, or the writer's."""

_SIZE: Final = len(Count) * 8


def private() -> Counts:
    """Counters of a process without a supervisor."""
    return memoryview(bytearray(_SIZE)).cast("Q")


def shared(descriptor: int, place: int) -> Counts:
    """The counters of the process with this place, from 0, in an anonymous file that grows as needed."""
    size = (place + 1) * _SIZE
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)
    return memoryview(mmap.mmap(descriptor, size)).cast("Q")[place * len(Count) :]


def settle(counts: Counts) -> int:
    """Resets the counters of a process that has ended, for its successor; returns the lines that it lost unreported."""
    lost = counts[Count.TAKEN] - counts[Count.WRITTEN] + counts[Count.LOST] - counts[Count.TOLD]
    for cell in Count:
        counts[cell] = 0
    return max(0, lost)
