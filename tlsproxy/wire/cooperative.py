"""Cooperative work: generators that yield every millisecond or two, so that no message blocks the event loop.

A step yields None, or the number of bytes of memory that the work needs from here on, beside its input; the scheduler
resumes it once they are granted. The generator returns the result.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[int | None, None, T]


def at_once(steps: Steps[T]) -> T:
    """The result of work that is small enough to be done in one go."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
