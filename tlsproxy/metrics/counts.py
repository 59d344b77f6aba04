"""Counts that requests add to on the hot path: plain dicts and integers, in the event loop's thread, without locks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from tlsproxy.metrics.recent import Recent


class Histogram:
    """Counts of values by upper bound; the last bucket has no bound."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        # `le` is inclusive: a value equal to a bound belongs to it.
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def plus(self, counts: Sequence[int], total: float) -> Histogram:
        """A histogram with the counts and the sum of another one with the same bounds added."""
        joined = Histogram(self._bounds)
        joined.counts = [one + more for one, more in zip(self.counts, counts, strict=True)]
        joined.sum = self.sum + total
        return joined

    def copy(self) -> Histogram:
        copied = Histogram(self._bounds)
        copied.counts, copied.sum = self.counts.copy(), self.sum
        return copied

    def buckets(self) -> Iterator[tuple[str, int]]:
        """Cumulated counts by upper bound."""
        total = 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self.counts, strict=True):
            total += count
            yield bound, total


class RequestCounts:
    """Requests that have ended: ``numbers`` by (operation, role, outcome, reason), ``durations`` by operation.

    They count among the ``recent`` decisions too. ``bounds`` are those of the durations' buckets, in seconds.
    """

    __slots__ = ("_bounds", "_recent", "durations", "numbers")

    def __init__(self, recent: Recent, bounds: Sequence[float]) -> None:
        self._recent = recent
        self._bounds = bounds
        self.numbers: dict[tuple[str, str, str, str], int] = {}
        self.durations: dict[str, Histogram] = {}

    def ended(self, operation: str, role: str, outcome: str, reason: str, seconds: float) -> None:
        """`outcome` is allowed, denied, or failed (allowed, but not completed)."""
        key = operation, role, outcome, reason
        self.numbers[key] = self.numbers.get(key, 0) + 1
        durations = self.durations.get(operation)
        if durations is None:
            durations = Histogram(self._bounds)
            self.durations[operation] = durations
        durations.observe(seconds)
        self._recent.decided(role, outcome)
