"""A run's results, as they are kept in JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.figures import Idle, Ratio, Rotation, Rounds, Sample, Summary, ratio, summary
from bench.peers import OURS

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """A workload's samples by contender and round."""

    title: str
    unit: str
    samples: dict[str, list[Sample | None]] = field(default_factory=dict)

    def summary(self, contender: str) -> Summary | None:
        return summary(self.samples.get(contender, ()), self.unit)

    def ratio(self, peer: str) -> Ratio | None:
        """Of our cost to the peer's."""
        return ratio(self.rounds(OURS), self.rounds(peer), self.unit)

    def rounds(self, contender: str) -> Rounds:
        return self.samples.get(contender, ())


@dataclass(slots=True)
class Results:
    """``contenders`` has each one's version; ``absent`` the reasons of those that are not there, ``unable`` by workload
    those of contenders that cannot do it.
    """

    about: dict[str, Any]
    contenders: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unable: dict[str, dict[str, str]] = field(default_factory=dict)
    workloads: dict[str, Measured] = field(default_factory=dict)
    idle: dict[str, dict[str, Idle]] = field(default_factory=dict)
    """By number of connections, then by contender."""
    rotation: dict[str, Rotation] = field(default_factory=dict)

    def idle_ratio(self, connections: str, peer: str) -> float | None:
        ours, theirs = (self.idle.get(connections, {}).get(name) for name in (OURS, peer))
        if ours is None or theirs is None or not theirs.bytes_each:
            return None
        return ours.bytes_each / theirs.bytes_each

    def beside(self, name: str, other: str) -> Ratio | None:
        """Of our cost of a workload to that of another one in the same rounds."""
        ours = [self.workloads[each].rounds(OURS) if each in self.workloads else () for each in (name, other)]
        return ratio(ours[0], ours[1], "request")

    @property
    def is_whole(self) -> bool:
        """Whether the run came to its end."""
        return "load_average_after" in self.about

    def write(self, path: Path) -> None:
        """In the place of what was there, at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Raises BenchError for a file of another format."""
        try:
            return cls._of(json.loads(path.read_text()))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise BenchError(f"{path} is not a result of this bench") from None

    @classmethod
    def _of(cls, told: dict[str, Any]) -> Results:
        if told.pop("format", None) != FORMAT:
            raise ValueError(FORMAT)
        told["workloads"] = {
            name: Measured(
                each["title"],
                each["unit"],
                {
                    contender: [None if sample is None else Sample.of(sample) for sample in rounds]
                    for contender, rounds in each["samples"].items()
                },
            )
            for name, each in told["workloads"].items()
        }
        told["idle"] = {
            count: {name: Idle.of(each) for name, each in by_contender.items()}
            for count, by_contender in told["idle"].items()
        }
        told["rotation"] = {name: Rotation(**each) for name, each in told["rotation"].items()}
        return cls(**told)
