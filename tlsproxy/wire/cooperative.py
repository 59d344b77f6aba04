"""Cooperative work: generators that yield every millisecond or two, so that no message blocks the event loop.

A step yields None, or the number of bytes of memory that the work needs from here on, beside its input; the scheduler
resumes it once they are granted. The generator returns the result.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[int | None, None, T]


STEP: Final = 2000
"""Work per step, in units of about a microsecond."""


class Pace:
    """The work done since the last step, in all the loops of one piece of work: `if pace.is_step(5): yield None`.

    Many short loops within another loop make a step together, though none of them is long enough for one.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = STEP

    def is_step(self, cost: int = 1) -> bool:
        """Whether it is time for a step, with the ``cost`` of what comes next."""
        self._left -= cost
        if self._left > 0:
            return False
        self._left = STEP
        return True


def at_once(steps: Steps[T]) -> T:
    """The result of work that is small enough to be done in one go."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
