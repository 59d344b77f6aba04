"""Whether others are served while something takes long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def longest_wait(ask: Callable[[], float], other: Callable[[], None]) -> tuple[float, float]:
    """(the longest that ``other`` took, over and over while ``ask`` went on; what that says it took), in seconds.

    An ``ask`` that fails says nothing, which is an error here too.
    """
    waits: list[float] = []
    took: list[float] = []
    asking = threading.Thread(target=lambda: took.append(ask()))
    asking.start()
    while asking.is_alive():
        begun = time.monotonic()
        other()
        waits.append(time.monotonic() - begun)
    assert took
    return max(waits), took[0]
