"""A bounded first-in-first-out cache, for results that are cheap to compute again."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """At most ``capacity`` entries: a new one drives out the oldest. Reads are a dictionary's own, at its speed.

    First in, first out: a hit moves nothing, so that a read costs one look-up and a stranger's keys cost only a place.
    """

    __slots__ = ("_capacity",)

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def remember(self, key: K, value: V) -> None:
        """A key that is here already becomes the newest."""
        if key in self:
            del self[key]
        elif len(self) >= self._capacity:
            del self[next(iter(self))]
        self[key] = value
