"""Metrics of several workers as those of one process: sums, and a label for what says nothing as a sum.

A counter of an ended worker stays in the sums with its last reported value, so that no sum ever decreases. What that
worker counted after its last report is lost. A report is bytes for the control channel, a line of JSON for each
thousand samples: one call of the parser lets no other thread run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

import orjson

from tlsproxy.metrics.counts import Histogram
from tlsproxy.metrics.families import BUILD_INFO, FAMILIES, PROCESS
from tlsproxy.metrics.prometheus import Family, Series, Value, exposition
from tlsproxy.service.workers.channel import Body

CUMULATIVE: Final = frozenset({"counter", "histogram"})
"""Kinds that only grow."""
LINE: Final = 1000
"""Samples in a line of a report."""

_BY_NAME: Final[Mapping[str, Family]] = {family.name: family for family in (*FAMILIES, *PROCESS)}
_PER_PROCESS: Final = frozenset(PROCESS)
"""Families that get a label for each process: a sum of memory or start times means nothing."""


def report(series: Iterable[Series]) -> bytes:
    """Samples for the control channel."""
    return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for one in series for line in _reported(one))


def _reported(series: Series) -> Iterator[list[object]]:
    values = (
        (labels, [value.counts, value.sum] if isinstance(value, Histogram) else value)
        for labels, value in series.values
    )
    while samples := list(islice(values, LINE)):
        yield [series.family.name, samples]


def reported(data: Body) -> Iterator[Series]:
    """The samples of a report."""
    for line in data.splitlines():
        name, samples = orjson.loads(line)
        yield Series(_BY_NAME[name], [(labels, _value(name, value)) for labels, value in samples])


def _value(name: str, value: float | list[Any]) -> Value:
    return Histogram(_BY_NAME[name].bounds).plus(*value) if isinstance(value, list) else value


@dataclass(slots=True)
class Totals:
    """Sums over several processes, by name and label values."""

    _sums: dict[str, dict[tuple[str, ...], Value]] = field(default_factory=dict)

    def copy(self) -> Totals:
        return Totals({name: dict(sums) for name, sums in self._sums.items()})

    def add(self, series: Iterable[Series], process: str) -> None:
        """Add all samples of one process."""
        for one in series:
            self._add(one, (process,) if one.family in _PER_PROCESS else ())

    def add_ended(self, series: Iterable[Series]) -> None:
        """Add the cumulative samples of an ended process, without those that have its label."""
        for one in series:
            if one.family.kind in CUMULATIVE and one.family not in _PER_PROCESS:
                self._add(one, ())

    def _add(self, series: Series, process: tuple[str, ...]) -> None:
        sums, constant = self._sums.setdefault(series.family.name, {}), series.family is BUILD_INFO
        for labels, value in series.values:
            key = (*labels, *process)
            sums[key] = value if constant or key not in sums else _sum(sums[key], value)

    def series(self) -> Iterator[Series]:
        for name, sums in self._sums.items():
            family = _BY_NAME[name]
            yield Series(replace(family, labels=("process",)) if family in _PER_PROCESS else family, sums.items())


def _sum(one: Value, other: Value) -> Value:
    if isinstance(one, Histogram) and isinstance(other, Histogram):
        return one.plus(other.counts, other.sum)
    if isinstance(one, Histogram) or isinstance(other, Histogram):
        raise TypeError("a histogram and a number have no sum")
    return one + other


def merged(
    own: Iterable[Series], reports: Mapping[str, Body], ended: Totals, ended_reports: Sequence[Body]
) -> tuple[bytes, Totals]:
    """The exposition of all processes, and the totals of those that have ended. Blocks; changes no argument.

    ``own`` are the supervisor's samples, ``reports`` those of workers by name, ``ended`` what ended workers had before,
    and ``ended_reports`` the last reports of others that have ended.
    """
    kept = ended.copy()
    for data in ended_reports:
        kept.add_ended(reported(data))
    totals = kept.copy()
    totals.add(own, "supervisor")
    for name, data in reports.items():
        totals.add(reported(data), name)
    return exposition(totals.series()), kept
