"""Work in steps, for whoever has nothing else to do."""

from __future__ import annotations

from typing import TypeVar

from tlsproxy.wire.cooperative import Steps

T = TypeVar("T")


def at_once(steps: Steps[T]) -> T:
    """All of it. Raises what the steps raise."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            value: T = done.value
            return value
