"""Merged status of several workers, in the shape that a single process has: sums, and joined lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from tlsproxy.admin.readiness import DESCRIPTORS, Level, Part, Readiness
from tlsproxy.metrics.recent import merged_decisions, merged_refusals
from tlsproxy.proxy.core.balancer import CONDITIONS

_NEGOTIATED: Final = ("version", "cipher", "group")
_NODE_SUMS: Final = ("in_flight", "connections", "ejections")


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
