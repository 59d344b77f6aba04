"""How Python's garbage collector is set where connections are served.

Connections end without it: what they are made of goes by reference count (`tests/unit/test_ended_connections.py`). What
is left for it are circles of libraries and of exceptions, which are few.
"""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (10_000, 10, 50)
"""Python's are for programs that make circles all the time: with them it looked at all that is young with every 35
connections that are opened, and at everything with every 3,500."""


def settle() -> None:
    """What is there by now, modules and the first generation, is for good: no collection looks at it again.

    That is 76,000 objects, of which a full collection took 100 ms; no connection was served meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
