"""How many audit lines each process has promised, written and lost, where the one that outlives it can see.

A worker may be killed at any time. Whatever it then owed (lines that waited to be written, requests that went on) and
had not told is a number that its supervisor reads here, and tells in its place.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from typing import Final


class Count(IntEnum):
    """``TAKEN``: lines for which there is room, written or not. ``TOLD``: of those ``LOST``."""

    TAKEN = 0
    WRITTEN = 1
    LOST = 2
    TOLD = 3


Counts = memoryview
"""Counters of one process by :class:`Count`. Each has one writer: the event loop's thread, or the audit log's."""

_SIZE: Final = len(Count) * 8


def private() -> Counts:
    return memoryview(bytearray(_SIZE)).cast("Q")


def shared(descriptor: int, place: int) -> Counts:
    """Those of the process with this place, counted from 0, in an anonymous file that grows as needed."""
    size = (place + 1) * _SIZE
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)
    return memoryview(mmap.mmap(descriptor, size)).cast("Q")[place * len(Count) :]


def settle(counts: Counts) -> int:
    """Lines that a process took with it when it ended; its place is its successor's then."""
    owed = counts[Count.TAKEN] - counts[Count.WRITTEN] + counts[Count.LOST] - counts[Count.TOLD]
    for cell in Count:
        counts[cell] = 0
    return max(0, owed)
