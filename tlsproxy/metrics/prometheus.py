"""Prometheus metric families from plain values."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prometheus_client.metrics_core import Metric


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

    def exposed(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulated counts by upper bound, and the sum of the values."""
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets, self._sum


_EXPOSED: Final[dict[str, Callable[..., Any]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


@dataclass(frozen=True, slots=True)
class Family:
    """A metric family: ``name`` as it is exposed, a counter's with `_total`; ``unit`` in words."""

    kind: str
    name: str
    unit: str
    text: str
    labels: tuple[str, ...]

    def of(self, values: Iterable[tuple[Sequence[str], float | Histogram]]) -> Metric:
        """The family with a sample for each pair of label values and value."""
        family: HistogramMetricFamily | CounterMetricFamily | GaugeMetricFamily
        family = _EXPOSED[self.kind](self.name, self.text, labels=self.labels)
        for labels, value in values:
            family.add_metric(labels, *(value.exposed() if isinstance(value, Histogram) else (value,)))
        return family

    def single(self, value: float | Histogram) -> Metric:
        """The family without labels."""
        return self.of([((), value)])

    def keyed(self, values: Mapping[str, float] | Mapping[str, Histogram]) -> Metric:
        """The family with one label."""
        return self.of(((key,), value) for key, value in values.items())
