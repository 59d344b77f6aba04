"""Moments at which many connections end, spread so that their clients do not all come back at once."""

from __future__ import annotations

from typing import Final

FEW: Final = 32
"""Connections that may end in one moment."""
_GOLDEN: Final = 0.6180339887498949


def share(number: int) -> float:
    """Part of an interval, from 0 to 1, for the connection of this number: the same each time, and even over numbers at
    any distance, such as those of one worker (multiples of the golden ratio are a low-discrepancy sequence).
    """
    return number * _GOLDEN % 1.0
