"""How glibc's allocator is set where connections are served: large blocks come from the system and go back to it.

By itself it learns from the first large block that is freed (mallopt(3), `M_MMAP_THRESHOLD`): later ones of up to 32 MB
then come out of one heap, where they are copied as they grow and leave holes that stay with the process. What a body
takes would be more than the budget of bodies counts, and would not come back; nor would what a supervisor sends of
large CRLs.
"""

from __future__ import annotations

import ctypes
from typing import Final

_MMAP_THRESHOLD: Final = -3
_TRIM_THRESHOLD: Final = -1
LARGE: Final = 262_144
"""Bytes from which a block is mapped for itself; what a connection receives or sends at a time has less."""
TRIMMED: Final = 8 << 20
"""Bytes that may be free at the heap's end."""


def settle() -> None:
    """Does nothing where the C library has no such call."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(_TRIM_THRESHOLD, TRIMMED)
