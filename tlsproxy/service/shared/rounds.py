"""Times of draws: all rows in use about each :data:`SLICE`, those that wait for tokens at each :data:`LOOK`.

Slices differ in length, by chance. Else two gateways would keep their order, and of a limit of less than a token in a
slice the same one would always get it.
"""

from __future__ import annotations

from random import Random
from typing import Final

LOOK: Final = 0.0125
"""Seconds between two looks at the rows."""
SLICE: Final = 0.1
"""Seconds that a lease is drawn for, on average."""
MOST_DRAWS: Final = 128
"""Draws in one round trip: their requests wait for none of it, but share the loop with it."""
_LOOKS: Final = round(SLICE / LOOK)


class Rounds:
    __slots__ = ("_chance", "_looks")

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._looks = 0

    def whole(self) -> bool:
        """Whether this look is for all rows in use."""
        if self._looks:
            self._looks -= 1
            return False
        self._looks = self._chance.randrange(_LOOKS // 2, _LOOKS * 3 // 2)
        return True
