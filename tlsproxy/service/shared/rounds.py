"""Times of draws: all rows in use each :data:`SLICE`, those that wait for tokens at each :data:`LOOK`."""

from __future__ import annotations

from typing import Final

LOOK: Final = 0.0125
"""Seconds between two looks at the rows."""
SLICE: Final = 0.1
"""Seconds that a lease is drawn for."""
MOST_DRAWS: Final = 1024
"""Draws in one round trip."""
_LOOKS: Final = round(SLICE / LOOK)


class Rounds:
    __slots__ = ("_looks",)

    def __init__(self) -> None:
        self._looks = 0

    def whole(self) -> bool:
        """Whether this look is for all rows in use."""
        self._looks = (self._looks + 1) % _LOOKS
        return not self._looks
