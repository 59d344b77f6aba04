"""Metric families, their samples, and Prometheus' text format, 0.0.4: the one that every scraper reads.

(OpenMetrics allows no gauge `connections` beside the counter `connections_total`.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from tlsproxy.metrics.counts import Histogram
from tlsproxy.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SPECIAL: Final = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}


Value: TypeAlias = float | Histogram


@dataclass(frozen=True, slots=True)
class Family:
    """A metric family: ``name`` as it is exposed, a counter's with `_total`; ``unit`` in words. ``bounds`` are those of
    a histogram's buckets.
    """

    kind: str
    name: str
    unit: str
    text: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()

    def of(self, values: Iterable[tuple[Sequence[str], Value]]) -> Series:
        """The family with a sample for each pair of label values and value, as they are now."""
        return Series(self, [(labels, one.copy() if isinstance(one, Histogram) else one) for labels, one in values])

    def single(self, value: Value) -> Series:
        """The family without labels."""
        return self.of([((), value)])

    def keyed(self, values: Mapping[str, float] | Mapping[str, Histogram]) -> Series:
        """The family with one label."""
        return self.of(((key,), value) for key, value in values.items())


@dataclass(frozen=True, slots=True)
class Series:
    """A family with its samples, which are read once, and perhaps in a thread: nothing that changes is among them."""

    family: Family
    values: Iterable[tuple[Sequence[str], Value]]


def exposition(series: Iterable[Series]) -> bytes:
    """All samples as text. Blocks: 20,000 of them are 1.8 MB, and a thread's work."""
    escaped = _Escaped()
    return "".join(line for one in series for line in _lines(one, escaped)).encode()


async def exposed(series: Iterable[Series]) -> tuple[bytes, str]:
    """The exposition, made in a thread, and its content type."""
    return await in_thread(exposition, series), CONTENT_TYPE


class _Escaped(dict[str, str]):
    """Label values in their escaped form."""

    def __missing__(self, value: str) -> str:
        text = self[value] = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        return text


def _lines(series: Series, escaped: _Escaped) -> Iterator[str]:
    family = series.family
    yield f"# HELP {family.name} {family.text}\n# TYPE {family.name} {family.kind}\n"
    form = _form(family.labels)
    for values, value in series.values:
        known = map(escaped.__getitem__, values)
        if isinstance(value, Histogram):
            yield from _histogram(family, tuple(known), value)
        else:
            yield f"{family.name}{form.format(*known)} {_number(value)}\n"


def _histogram(family: Family, known: tuple[str, ...], value: Histogram) -> Iterator[str]:
    name, bucket, alone = family.name, _form((*family.labels, "le")), _form(family.labels).format(*known)
    total = 0
    for bound, total in value.buckets():
        yield f"{name}_bucket{bucket.format(*known, bound)} {total}.0\n"
    yield f"{name}_count{alone} {total}.0\n{name}_sum{alone} {_number(value.sum)}\n"


def _form(labels: Sequence[str]) -> str:
    """Labels in braces, by name, with fields for their values; nothing without labels."""
    named = sorted((label, number) for number, label in enumerate(labels))
    return "{{" + ",".join(f'{label}="{{{number}}}"' for label, number in named) + "}}" if labels else ""


def _number(value: float) -> str:
    text = repr(float(value))
    return _SPECIAL.get(text, text)
