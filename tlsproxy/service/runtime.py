"""The interpreter's settings in a process that serves: event loop, threads, collector, and glibc's allocator."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Final

THRESHOLDS: Final = (700, 3, 2_000)
"""Allocations before a collection of each generation. With Python's own (700, 10, 10) every 3,500 new connections cost
a full one. All threads wait for a collection: the young ones are small, since a reload makes a million objects, and a
collection of 12,000 of them took 16 ms where one of 3,500 takes 5."""

SWITCH_INTERVAL: Final = 0.0005
"""Seconds for which a thread keeps the interpreter from others that want it. With Python's own (5 ms) the loop, which
gives it away with each system call, waits so long after each while a reload is computed in a thread."""

_MMAP_THRESHOLD: Final = -3
_TRIM_THRESHOLD: Final = -1
"""Parameters of mallopt(3)."""
LARGE: Final = 262_144
"""Bytes from which a block is mapped for itself; what a connection receives or sends at a time has less."""
TRIMMED: Final = 8 << 20
"""Bytes that may be free at the heap's end."""

loop_factory: Callable[[], asyncio.AbstractEventLoop]
"""uvloop where it is installed, else asyncio's own loop, which does the same, slower."""

try:
    import uvloop
except ImportError:
    loop_factory = asyncio.new_event_loop
else:
    loop_factory = uvloop.new_event_loop


def tune_collector() -> None:
    """Collect rarely, from the start on: the first configuration may be a million objects."""
    gc.set_threshold(*THRESHOLDS)


def freeze() -> None:
    """Freeze modules and the first generation, so that no collection looks at them again.

    They are 76,000 objects: a full collection of them took 100 ms, in which no connection was served. Connections end
    by reference count (`tests/unit/test_ended_connections.py`); for the collector are left the few reference cycles of
    libraries and of exceptions.
    """
    gc.collect()
    gc.freeze()


def tune_threads() -> None:
    """Let the event loop have its turn beside threads that compute."""
    sys.setswitchinterval(SWITCH_INTERVAL)


def tune_allocator() -> None:
    """Take large blocks from the system, and give them back to it. Does nothing where the C library has no mallopt.

    By itself glibc raises its threshold with the first large block that is freed (mallopt(3), `M_MMAP_THRESHOLD`):
    later blocks of up to 32 MB come out of one heap, where they are copied as they grow and leave holes that stay with
    the process. A body would take more than the memory budget counts, and the supervisor would keep the memory in which
    it sent large CRLs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(_TRIM_THRESHOLD, TRIMMED)
