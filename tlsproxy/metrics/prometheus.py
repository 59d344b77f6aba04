"""Prometheus metric families from plain values."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Value = TypeVar("Value")

_PREFIX: Final = "tlsproxy_"


class Histogram:
    """Counts of values by upper bound; the last bucket has no bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        # `le` is inclusive: a value equal to a bound belongs to it.
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def total(self) -> int:
        """The number of observed values."""
        return sum(self._counts)

    def add(self, other: Histogram) -> None:
        """Adds the counts of another histogram with the same bounds."""
        self._counts = [one + more for one, more in zip(self._counts, other._counts, strict=True)]
        self._sum += other._sum

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(labels, buckets, self._sum)


def counters(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> CounterMetricFamily:
    """A counter family; `name` is without the `_total` that the exposition adds."""
    family = CounterMetricFamily(_PREFIX + name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def gauges(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def histograms(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], Histogram]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(_PREFIX + name, text, labels=labels)
    for key, histogram in values:
        histogram.add_to(family, key)
    return family


def keyed(values: Mapping[str, Value]) -> Iterable[tuple[Sequence[str], Value]]:
    """(labels, value) pairs of a family with one label."""
    return (((key,), value) for key, value in values.items())
