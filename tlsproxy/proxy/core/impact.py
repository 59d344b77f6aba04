"""The consequences of a publication, known before it: who would be cut, who could not come back, whose role changes.

Values alone: :meth:`tlsproxy.proxy.core.connection_manager.ConnectionManager.consider` finds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Final, Self

NAMED: Final = 100
"""Connections, requests or calls of one kind that are told one by one."""


@dataclass(frozen=True, slots=True)
class Affected:
    """A connection, or the last one of a client that has none now. ``client`` is its certificate's digest, else its
    address; ``identity`` and the roles may be empty. ``becomes`` is the role that it would have.
    """

    number: int
    protocol: str
    address: str
    client: str
    identity: str
    role: str
    becomes: str
    reason: str = ""

    @property
    def why(self) -> str:
        return self.reason or f"{self.role} → {self.becomes or '(no role)'}"


@dataclass(frozen=True, slots=True)
class Group:
    """Counts by reason, and the first :data:`NAMED` of them by name."""

    reasons: Mapping[str, int] = field(default_factory=dict)
    named: tuple[Affected, ...] = ()

    @property
    def count(self) -> int:
        return sum(self.reasons.values())

    @classmethod
    def of(cls, affected: Iterable[Affected]) -> Self:
        each = tuple(affected)
        return cls(dict(Counter(one.why for one in each)), each[:NAMED])

    @classmethod
    def joined(cls, groups: Iterable[Group]) -> Self:
        reasons: Counter[str] = Counter()
        named: list[Affected] = []
        for group in groups:
            reasons.update(group.reasons)
            named += group.named
        return cls(dict(reasons), tuple(sorted(named, key=lambda one: one.number)[:NAMED]))


@dataclass(frozen=True, slots=True)
class Consequences:
    """``connections`` are all that are live; ``cut`` would end, and their clients could not come back.

    ``ended`` are requests and calls under way that would end on a connection that stays (a key is removed, say): it is
    named for each of them.
    ``barred`` are clients without a connection, seen a short while ago, that could not come back: each once.
    ``moved`` would stay, with another role or none. ``unheard`` are workers whose connections are not among them.
    """

    connections: int = 0
    cut: Group = Group()
    ended: Group = Group()
    barred: tuple[Affected, ...] = ()
    moved: Group = Group()
    unheard: int = 0

    @classmethod
    def merged(cls, each: Iterable[Consequences], unheard: int) -> Self:
        """Sum over several processes. A client that one has seen lately may be among those that another would cut."""
        parts = list(each)
        barred = {one.client: one for one in chain.from_iterable(part.barred for part in parts)}
        cut = Group.joined(part.cut for part in parts)
        for one in cut.named:
            barred.pop(one.client, None)
        return cls(
            sum(part.connections for part in parts),
            cut,
            Group.joined(part.ended for part in parts),
            tuple(barred.values()),
            Group.joined(part.moved for part in parts),
            unheard,
        )

    def told(self) -> dict[str, Any]:
        """As JSON values, for people: counts, and the first of each kind by name."""
        groups = {"cut": self.cut, "ended": self.ended, "barred": Group.of(self.barred), "moved": self.moved}
        return {
            "connections": self.connections,
            "unheard": self.unheard,
            **{name: {"count": group.count, **asdict(group)} for name, group in groups.items()},
        }

    @classmethod
    def decoded(cls, told: Mapping[str, Any]) -> Self:
        """Inverse of :func:`dataclasses.asdict`, for what another process has sent."""
        return cls(
            told["connections"],
            _group(told["cut"]),
            _group(told["ended"]),
            tuple(Affected(**one) for one in told["barred"]),
            _group(told["moved"]),
        )


def _group(told: Mapping[str, Any]) -> Group:
    return Group(told["reasons"], tuple(Affected(**one) for one in told["named"]))
