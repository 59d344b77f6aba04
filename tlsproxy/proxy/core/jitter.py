"""Spread of the moments at which many connections end, so that their clients do not all reconnect at once."""

from __future__ import annotations

from typing import Final

FEW: Final = 32
"""Connections that may end at one moment."""
_GOLDEN: Final = 0.6180339887498949


def share(number: int) -> float:
    """Place in an interval, from 0 to 1, of the connection with this number: the same each time, and evenly spread also
    over numbers that are 4 apart, as in one of 4 workers (multiples of the golden ratio: a low-discrepancy sequence).
    """
    return number * _GOLDEN % 1.0
