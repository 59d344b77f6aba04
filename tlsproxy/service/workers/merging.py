"""What several workers tell, as one service tells it: sums, lists joined, and the same shape as of a single process.

A counter of a worker that ended stays in the sums with the value that was told last, so that no sum ever goes back:
what the worker counted after that is lost with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tlsproxy.admin.readiness import OK
from tlsproxy.metrics.recent import merged_decisions, merged_refusals

LASTING: Final = frozenset({"counter", "histogram"})
"""The kinds that only grow."""
EACH: Final = "process_"
"""What begins so is told of each process, with a label, since memory or a start time has no meaning as a sum."""
SAME: Final = frozenset({"tlsproxy_build_info"})
"""What is the same in all of them."""

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and labels."""
Families = list[Any]
"""As JSON: for each family its name, text, kind, and samples of name, labels and value."""


def told(families: Iterable[Metric]) -> bytes:
    """For the control channel."""
    return orjson.dumps(
        [
            [one.name, one.documentation, one.type, [[each.name, each.labels, each.value] for each in one.samples]]
            for one in families
        ]
    )


class Totals(Collector):
    """Families of several processes, summed."""

    def __init__(self) -> None:
        # A counter and a gauge may share their name: `connections` and `connections_total`.
        self._families: dict[tuple[str, str], tuple[str, dict[Key, float]]] = {}

    def add(self, families: Families, process: str) -> None:
        """All that one process tells."""
        for name, text, kind, samples in families:
            each = {"process": process} if name.startswith(EACH) else {}
            self._add(name, text, kind, ((sample, {**labels, **each}, value) for sample, labels, value in samples))

    def keep(self, families: Families) -> None:
        """Of one that ended: what only grows, but for what was told of that very process."""
        for name, text, kind, samples in families:
            if kind in LASTING and not name.startswith(EACH):
                self._add(name, text, kind, samples)

    def include(self, other: Totals) -> None:
        for (name, kind), (text, samples) in other._families.items():
            self._add(name, text, kind, ((sample, dict(labels), value) for (sample, labels), value in samples.items()))

    def _add(self, name: str, text: str, kind: str, samples: Iterable[Any]) -> None:
        _, sums = self._families.setdefault((name, kind), (text, {}))
        for sample, labels, value in samples:
            key = (sample, tuple(labels.items()))
            sums[key] = value if name in SAME else sums.get(key, 0) + value

    def collect(self) -> Iterator[Metric]:
        for (name, kind), (text, samples) in self._families.items():
            metric = Metric(name, text, kind)
            for (sample, labels), value in samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def merged_figures(figures: Iterable[Mapping[str, Any]], most: int) -> dict[str, Any]:
    """What of a status changes with the traffic; at most so many connections are named."""
    each = list(figures)
    sections = ("connections", "upstream", "former_upstream", "audit")
    merged: dict[str, Any] = {name: dict(each[0][name]) for name in sections if name in each[0]}
    for one in each[1:]:
        for name, section in merged.items():
            for key, value in one[name].items():
                section[key] = _joined(section.get(key), value)
    live = sorted(merged["connections"]["live"], key=lambda entry: int(entry["number"]))
    merged["connections"]["live"] = live[:most]
    merged["decisions"] = merged_decisions(one["decisions"] for one in each)
    merged["refusals"] = merged_refusals(one["refusals"] for one in each)
    return merged


def _joined(ours: Any, theirs: Any) -> Any:
    match ours, theirs:
        case bool(), bool():
            return ours or theirs
        case (int(), int()) | (list(), list()):
            return ours + theirs
        case _:
            return ours


def merged_parts(parts: Mapping[int, Mapping[str, str]]) -> dict[str, str]:
    """Of `/readyz`, by the number of the worker: `ok` where all say so, else why the first does not."""
    merged: dict[str, str] = {}
    for number, told_of in parts.items():
        for name, text in told_of.items():
            if merged.get(name, OK) == OK:
                merged[name] = text if text == OK else f"worker {number}: {text}"
    return merged
