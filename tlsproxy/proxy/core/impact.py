"""Consequences of a publication, known before it: connections cut, clients shut out, roles that change.

Values alone; found by :meth:`tlsproxy.proxy.core.connection_manager.ConnectionManager.consider`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Final, Self

NAMED: Final = 100
"""Connections, requests or calls of one kind that are listed one by one."""


@dataclass(frozen=True, slots=True)
class Affected:
    """Connection of an affected client, or its last one. ``client`` is its certificate's digest, else its address;
    ``identity`` and the roles may be empty. ``becomes`` is the role that it would have.
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
    def label(self) -> str:
        return self.reason or f"{self.role} → {self.becomes or '(no role)'}"


@dataclass(frozen=True, slots=True)
class Group:
    """Counts by reason, and the first :data:`NAMED` connections."""

    reasons: Mapping[str, int] = field(default_factory=dict)
    named: tuple[Affected, ...] = ()

    @property
    def count(self) -> int:
        return sum(self.reasons.values())

    @classmethod
    def of(cls, affected: Iterable[Affected]) -> Self:
        each = tuple(affected)
        return cls(dict(Counter(one.label for one in each)), each[:NAMED])

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
    """``connections`` counts all live ones; those in ``cut`` would end, and their clients could not come back.

    ``ended`` are requests and calls under way that would end on a connection that stays, e.g. because their key is
    removed: one entry for each. ``barred`` are clients without a connection, seen in the last minutes, that could not
    come back: one entry for each. ``moved`` would stay, with another role or none. ``unheard`` counts the workers that
    did not answer, whose connections are missing here. ``affected`` counts the live connections that the publication
    concerns at all, by role, or without one by key (`key NAME`): those of ``cut`` and ``moved``, and those whose role
    or key means something else from then on.
    """

    connections: int = 0
    cut: Group = Group()
    ended: Group = Group()
    barred: tuple[Affected, ...] = ()
    moved: Group = Group()
    unheard: int = 0
    affected: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def merged(cls, each: Iterable[Consequences], unheard: int) -> Self:
        """Sum over several processes. A client that is ``barred`` in one may be ``cut`` in another: then it is cut."""
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
            dict(sum((Counter(part.affected) for part in parts), Counter[str]())),
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values for people: counts, and the first connections of each kind."""
        groups = {"cut": self.cut, "ended": self.ended, "barred": Group.of(self.barred), "moved": self.moved}
        return {
            "connections": self.connections,
            "unheard": self.unheard,
            "affected": {"count": sum(self.affected.values()), "roles": dict(self.affected)},
            **{name: {"count": group.count, **asdict(group)} for name, group in groups.items()},
        }

    @classmethod
    def decoded(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :func:`dataclasses.asdict`, for the message of another process."""
        return cls(
            values["connections"],
            _group(values["cut"]),
            _group(values["ended"]),
            tuple(Affected(**one) for one in values["barred"]),
            _group(values["moved"]),
            affected=values["affected"],
        )


def _group(values: Mapping[str, Any]) -> Group:
    return Group(values["reasons"], tuple(Affected(**one) for one in values["named"]))
