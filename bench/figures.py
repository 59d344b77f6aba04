"""The arithmetic: from what each round measured to what the report says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from statistics import median
from typing import Any

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender in one round of one workload, as the load generator tells it. CPU and latencies are seconds."""

    requests: int
    errors: int
    error: str
    seconds: float
    cpu: float
    p50: float
    p99: float
    bytes_in: int
    bytes_out: int
    pss_kb: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Sample:
        return cls(**{name: told[name] for name in cls.__slots__})

    @property
    def counts(self) -> bool:
        """Whether it measured what it should: a round with a single wrong answer is none."""
        return not self.errors and self.requests > 0

    @property
    def megabytes(self) -> float:
        return (self.bytes_in + self.bytes_out) / MEGABYTE

    def cost(self, unit: str) -> float:
        """Microseconds of CPU for each ``request`` or ``MB``."""
        return self.cpu / (self.megabytes if unit == "MB" else self.requests) * 1e6


Rounds = Sequence[Sample | None]
"""A contender's samples of a workload by round; None where it did not run."""


@dataclass(frozen=True, slots=True)
class Summary:
    """``cost`` and ``cost_min`` in µs of CPU, latencies in ms, ``memory`` in MiB: medians, but for ``cost_min``."""

    cost: float
    cost_min: float
    rate: float
    p50: float
    p99: float
    throughput: float
    memory: float
    rounds: int
    errors: int
    error: str


def summary(rounds: Rounds, unit: str) -> Summary | None:
    """None without a single good round; errors are those of all rounds."""
    told = [sample for sample in rounds if sample is not None]
    good = [sample for sample in told if sample.counts]
    errors = sum(sample.errors for sample in told)
    error = next((sample.error for sample in told if sample.error), "")
    if not good:
        return None
    costs = [sample.cost(unit) for sample in good]
    return Summary(
        cost=median(costs),
        cost_min=min(costs),
        rate=median(sample.requests / sample.seconds for sample in good),
        p50=median(sample.p50 for sample in good) * 1e3,
        p99=median(sample.p99 for sample in good) * 1e3,
        throughput=median(sample.megabytes / sample.seconds for sample in good),
        memory=median(sample.pss_kb for sample in good) / 1024,
        rounds=len(good),
        errors=errors,
        error=error,
    )


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over theirs, of one round each: what disturbs a round disturbs both."""

    median: float
    min: float
    rounds: int


def ratio(ours: Rounds, theirs: Rounds, unit: str) -> Ratio | None:
    """None without a round in which both were good."""
    pairs = [
        one.cost(unit) / other.cost(unit)
        for one, other in zip(ours, theirs, strict=False)
        if one is not None and other is not None and one.counts and other.counts
    ]
    return Ratio(median(pairs), min(pairs), len(pairs)) if pairs else None


@dataclass(frozen=True, slots=True)
class Idle:
    """Memory of connections that were asked once and then rest."""

    connections: int
    errors: int
    error: str
    pss_before_kb: int
    pss_kb: int
    idle_cpu: float

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Idle:
        return cls(**{name: told[name] for name in cls.__slots__})

    @property
    def bytes_each(self) -> float:
        return (self.pss_kb - self.pss_before_kb) * 1024 / self.connections if self.connections else 0.0


@dataclass(frozen=True, slots=True)
class Rotation:
    """What clients met while the server certificate changed each second.

    ``taken``: how many new ones a client saw before the next came. Latencies in ms: of kept connections without
    rotations and with them, and of handshakes with them.
    """

    rotations: int
    taken: int
    requests: int
    handshakes: int
    failed: int
    error: str
    p99_still: float
    p99: float
    p99_handshake: float


def growth(costs: Iterable[tuple[float, float]]) -> float:
    """The steepest step of (size, cost) as an exponent: 1 is linear, 0 is constant. Sizes must be above 0."""
    points = sorted(costs)
    steps = [log(cost / before) / log(size / smaller) for (smaller, before), (size, cost) in pairwise(points)]
    return max(steps, default=0.0)
