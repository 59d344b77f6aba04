"""Merged status and metrics of several workers, in the shape that a single process has: sums, and joined lists.

A counter of an ended worker stays in the sums with its last reported value, so that no sum ever decreases. What that
worker counted after its last report is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import orjson
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tlsproxy.admin.readiness import DESCRIPTORS, Level, Part, Readiness
from tlsproxy.metrics.recent import merged_decisions, merged_refusals
from tlsproxy.proxy.core.balancer import CONDITIONS

CUMULATIVE: Final = frozenset({"counter", "histogram"})
"""Metric kinds that only grow."""
PER_PROCESS: Final = "process_"
"""Prefix of metrics that get a label for each process: a sum of memory or start times means nothing."""
CONSTANT: Final = frozenset({"tlsproxy_build_info"})
"""Metrics with the same value in every process."""

_NEGOTIATED: Final = ("version", "cipher", "group")
_NODE_SUMS: Final = ("in_flight", "connections", "ejections")

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and labels."""
Families = list[Any]
"""As JSON: name, text and kind of each family, and its samples of name, labels and value."""


def dump_families(families: Iterable[Metric]) -> bytes:
    """For the control channel."""
    return orjson.dumps(
        [
            [
                entry.name,
                entry.documentation,
                entry.type,
                [[each.name, each.labels, each.value] for each in entry.samples],
            ]
            for entry in families
        ]
    )


class Totals(Collector):
    """Families of several processes, summed."""

    def __init__(self) -> None:
        # A counter and a gauge may share their name: `connections` and `connections_total`.
        self._families: dict[tuple[str, str], tuple[str, dict[Key, float]]] = {}

    def add(self, families: Families, process: str) -> None:
        """Add all families of one process."""
        for name, text, kind, samples in families:
            each = {"process": process} if name.startswith(PER_PROCESS) else {}
            self._add(name, text, kind, ((sample, {**labels, **each}, value) for sample, labels, value in samples))

    def add_ended(self, families: Families) -> None:
        """Add the cumulative families of an ended process, without those that have its label."""
        for name, text, kind, samples in families:
            if kind in CUMULATIVE and not name.startswith(PER_PROCESS):
                self._add(name, text, kind, samples)

    def include(self, other: Totals) -> None:
        for (name, kind), (text, samples) in other._families.items():
            self._add(name, text, kind, ((sample, dict(labels), value) for (sample, labels), value in samples.items()))

    def _add(self, name: str, text: str, kind: str, samples: Iterable[Any]) -> None:
        _, sums = self._families.setdefault((name, kind), (text, {}))
        for sample, labels, value in samples:
            key = (sample, tuple(labels.items()))
            sums[key] = value if name in CONSTANT else sums.get(key, 0) + value

    def collect(self) -> Iterator[Metric]:
        for (name, kind), (text, samples) in self._families.items():
            metric = Metric(name, text, kind)
            for (sample, labels), value in samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def merged_figures(figures: Iterable[Mapping[str, Any]], most: int) -> dict[str, Any]:
    """The traffic-dependent part of a status; at most ``most`` connections are listed."""
    each = list(figures)
    sections = ("connections", "upstream", "former_upstream", "audit")
    merged: dict[str, Any] = {name: dict(each[0][name]) for name in sections if name in each[0]}
    for entry in each[1:]:
        for name, section in merged.items():
            for key, value in entry[name].items():
                section[key] = _joined(section.get(key), value)
    live = sorted(merged["connections"]["live"], key=lambda entry: int(entry["number"]))
    merged["connections"]["live"] = live[:most]
    merged["tls"] = _merged_tls(row for entry in each for row in entry["tls"])
    if nodes := _merged_nodes(node for entry in each for node in entry.get("nodes", ())):
        merged["nodes"] = nodes
    merged["decisions"] = merged_decisions(entry["decisions"] for entry in each)
    merged["refusals"] = merged_refusals(entry["refusals"] for entry in each)
    return merged


def _merged_tls(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each combination, with the connections of all workers."""
    counted: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        counted[tuple(row[name] for name in _NEGOTIATED)] += row["connections"]
    return [dict(zip(_NEGOTIATED, agreed, strict=True)) | {"connections": count} for agreed, count in counted.items()]


def _merged_nodes(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each node: the worst of its states in all workers, and sums. It is drained once it is in all."""
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        own = merged.setdefault(row["name"], {**row, **dict.fromkeys(_NODE_SUMS, 0)})
        own["state"] = max(own["state"], row["state"], key=CONDITIONS.index)
        for name in _NODE_SUMS:
            own[name] += row[name]
    return list(merged.values())


def _joined(own: Any, other: Any) -> Any:
    match own, other:
        case bool(), bool():
            return own or other
        case (int(), int()) | (list(), list()):
            return own + other
        case _:
            return own


def merged_readiness(each: Mapping[int, Readiness], workers: int) -> dict[str, Part]:
    """Parts of all workers that answer, by number: the worst of each. Of ``workers`` there are so many.

    `audit: {1: ok, 2: full}` becomes `worker 2: full`. A worker without descriptors costs no readiness while another
    accepts.
    """
    merged: dict[str, Part] = {}
    for name in dict.fromkeys(name for readiness in each.values() for name in readiness.parts):
        parts = {number: readiness.parts[name] for number, readiness in each.items() if name in readiness.parts}
        worst = max(parts.values(), key=lambda part: part.level)
        alike = [number for number, part in parts.items() if part == worst]
        if worst.good or len(alike) == workers:
            merged[name] = worst
            continue
        where = f"worker {', '.join(map(str, alike))}"
        level = worst.level
        if name == DESCRIPTORS and any(part.good for part in parts.values()):
            level = Level.DEGRADED
        merged[name] = replace(worst, level=level, where=where)
    return merged
