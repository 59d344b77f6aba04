"""Memory, CPU time and descriptors of this process, from /proc (proc(5))."""

from __future__ import annotations

import os
import resource
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tlsproxy.metrics.families import PROCESS
from tlsproxy.metrics.prometheus import Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def process_series() -> list[Series]:
    """Read when the samples are: 40,000 descriptors are not counted in a moment."""
    reading = cache(_reading)
    return [Series(family, _sample(reading, number)) for number, family in enumerate(PROCESS)]


def _sample(reading: Callable[[], tuple[float, ...]], number: int) -> Iterator[tuple[tuple[()], float]]:
    if values := reading():
        yield (), values[number]


def _reading() -> tuple[float, ...]:
    """Values of the families in their order; none where /proc cannot be read, e.g. without a free descriptor."""
    try:
        # The command's name comes second, in brackets, and may hold anything; field 3 is the first behind it.
        fields = Path("/proc/self/stat").read_text("latin-1").rpartition(")")[2].split()
        lines = Path("/proc/stat").read_text("ascii").splitlines()
        descriptors = sum(1 for _ in os.scandir("/proc/self/fd"))
    except OSError:
        return ()
    booted = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    ticks = os.sysconf("SC_CLK_TCK")
    return (
        float(fields[20]),
        float(fields[21]) * resource.getpagesize(),
        booted + float(fields[19]) / ticks,
        (float(fields[11]) + float(fields[12])) / ticks,
        float(descriptors),
        float(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    )
