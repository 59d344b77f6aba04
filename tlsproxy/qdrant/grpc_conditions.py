"""Filters of Qdrant's gRPC API that confine a request to the points of a caller's conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from tlsproxy.authz.access import Confinements
from tlsproxy.qdrant import tenant_filters
from tlsproxy.qdrant.grpc_marks import Mark
from tlsproxy.qdrant.grpc_rewrite import Reading
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.qdrant.tenant_examples import Examples
from tlsproxy.qdrant.tenant_filters import marks_of
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import VARINT, delimited, varint

Within = Callable[[bytes, "RewriteState"], Steps[bytes]]
"""The confined form of a nested message, from its content."""


@dataclass(slots=True)
class RewriteState:
    """The state of confining one message about a ``collection``. ``exact``: its searches are exact. ``facts``: of the
    collection, None until they are fetched. ``examples``: points by whose vectors it queries.
    """

    collection: str
    confinements: Confinements
    reading: Reading
    facts: Facts | None = None
    exact: bool = False
    examples: Examples = field(default_factory=Examples)
    _filters: int = 0
    _marks: tuple[Mark, ...] | None = None

    def narrowed(self, own: bytes, *, alone: bool = False, ids: bytes | None = None) -> bytes:
        """One more filter, as :func:`narrowed` makes it. Raises :class:`BadRequest` for too many of them."""
        self._filters += 1
        tenant_filters.check_count(self._filters, self.confinements)
        return narrowed(own, self.confinements, alone=alone, ids=ids)

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The marks of a point of the caller's. Raises :class:`Unconfined` where there can be none."""
        if self._marks is None:
            self._marks = tuple(map(Mark.of, marks_of(self.confinements)))
        return self._marks


_CLAUSES: Final = {"should": 1, "must": 2, "must_not": 3}


def narrowed(own: bytes, confinements: Confinements, *, alone: bool = False, ids: bytes | None = None) -> bytes:
    """A Filter of all confinements, with the caller's own filter as one more condition.

    ``alone``: for a change. ``ids``: a PointsIdsList, whose points alone are meant.
    """
    parts = [] if ids is None else [delimited(2, delimited(3, ids))]  # HasIdCondition has the same field
    parts.append(_encoded_clauses(confinements, alone=alone))
    if own:
        parts.append(delimited(2, delimited(4, own)))
    return b"".join(parts)


@lru_cache(maxsize=64)
def _encoded_clauses(confinements: Confinements, *, alone: bool) -> bytes:
    return encoded(tenant_filters.clauses_of(confinements, alone=alone))


def encoded(clauses: dict[str, Any]) -> bytes:
    """A Filter, from one in REST's form with the conditions that :mod:`tlsproxy.qdrant.tenant_filters` has."""
    return b"".join(delimited(_CLAUSES[clause], _condition(one)) for clause, found in clauses.items() for one in found)


def _condition(condition: dict[str, Any]) -> bytes:
    if "nested" in condition:
        nested = condition["nested"]
        return delimited(6, delimited(1, nested["key"].encode()) + delimited(2, encoded(nested["filter"])))
    if "is_empty" in condition:
        return delimited(2, delimited(1, condition["is_empty"]["key"].encode()))
    if "key" not in condition:
        return delimited(4, encoded(condition))
    field = delimited(1, condition["key"].encode())
    if "match" in condition:
        field += delimited(2, _match(condition["match"]))
    else:
        field += delimited(6, _number(2, condition["values_count"]["gt"]))
    return delimited(1, field)


def _match(match: dict[str, Any]) -> bytes:
    ((kind, value),) = match.items()
    if kind != "value":
        of_text = isinstance(value[0], str)
        number = {("any", True): 5, ("any", False): 6, ("except", False): 7, ("except", True): 8}[kind, of_text]
        listed = (delimited(1, one.encode()) for one in value) if of_text else (_number(1, one) for one in value)
        return delimited(number, b"".join(listed))
    if isinstance(value, str):
        return delimited(1, value.encode())
    return _number(3 if isinstance(value, bool) else 2, value)


def _number(field: int, value: int) -> bytes:
    """A field of type int64, uint64 or bool."""
    return varint(field << 3 | VARINT) + varint(value % (1 << 64))
