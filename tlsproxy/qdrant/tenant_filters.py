"""A tenant's confinements as Qdrant's filters, in the form of REST, and the marks of the points that it makes.

In Qdrant a point whose key has several values meets the condition of each of them, under `a[].b` too: it is shared, and
each tenant may read it. A change requires in addition that the key has no other value, so that no tenant takes a shared
point over: `match.except` is met by a point with any value but those, of any type. It has no form for booleans, of
which there is one other. Qdrant's lists of values are of one type, so values of several types are one filter each; a
point with values of two types is read, and not changed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from tlsproxy.authz.access import Condition, Confinements, Value
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant import tenant_texts
from tlsproxy.wire.cooperative import Pace, Steps

Json = dict[str, Any]

Marks = tuple[Condition, ...]
"""The conditions that a new point must meet: one for each key."""

_MARK: Final = 2
"""Units of work of one object of a payload that is marked."""
MOST_WRITTEN: Final = 200_000
"""Values in all filters of one request: a batch may have many queries, and a list claim many values."""


def check_count(filters: int, confinements: Confinements) -> None:
    """Checks the number of filters that are written into one request. Raises :class:`BadRequest`."""
    each = sum(len(condition.values) for one in confinements for condition in (*one.conditions, *one.public))
    if filters * each > MOST_WRITTEN:
        raise BadRequest(tenant_texts.TOO_MANY.format(each, filters))


def narrowed(own: Json | None, confinements: Confinements, *, alone: bool = False) -> Json:
    """The filter ``own`` of a caller, within its confinements. ``alone``: for a change, without public and shared
    points.
    """
    clauses = clauses_of(confinements, alone=alone)
    return clauses if not own else clauses | {"must": [*clauses.get("must", ()), own]}


@lru_cache(maxsize=64)
def clauses_of(confinements: Confinements, *, alone: bool) -> Json:
    """The same without an own filter. It is shared, and not to be changed: of 1,000 values one takes 0.2 ms."""
    result: dict[str, list[Json]] = {"must": [], "must_not": []}
    for one in confinements:
        if one.public and not alone:
            either = ({"must": [_match(each) for each in conditions]} for conditions in (one.conditions, one.public))
            result["must"].append({"should": list(either)})
            continue
        for condition in one.conditions:
            for clause, found in (_only(condition) if alone else {"must": [_match(condition)]}).items():
                result[clause] += found
    return {clause: found for clause, found in result.items() if found}


def _match(condition: Condition) -> Json:
    """Met by a point with one of the values, whatever it has besides."""
    each = [clause for values in _by_type(condition) for clause in _matches(condition.key, values)]
    return each[0] if len(each) == 1 else {"should": each}


def _only(condition: Condition) -> dict[str, list[Json]]:
    """Clauses met by a point with one of the values, and no other."""
    each = [_only_of_type(condition.key, values) for values in _by_type(condition)]
    return each[0] if len(each) == 1 else {"must": [{"should": each}]}


def _only_of_type(key: str, values: list[Value]) -> dict[str, list[Json]]:
    matches = _matches(key, values)
    must = matches if len(matches) == 1 else [{"should": matches}]
    return {"must": must, "must_not": [_has_other(key, values)]}


def _has_other(key: str, values: list[Value]) -> Json:
    """Met by a point with one of the values and another one; if they are booleans, with several of any kind."""
    if not isinstance(values[0], bool):
        return {"key": key, "match": {"except": values}}
    parent, _, leaf = key.rpartition("[].")
    several = {"key": leaf, "values_count": {"gt": 1}}
    if not parent:
        return several
    other = {"must_not": [*_matches(leaf, values), {"is_empty": {"key": leaf}}]}
    return {"nested": {"key": parent, "filter": {"should": [several, other]}}}


def _matches(key: str, values: list[Value]) -> list[Json]:
    """Conditions of which one must hold; ``values`` are of one type."""
    if len(values) == 1 or isinstance(values[0], bool):
        return [{"key": key, "match": {"value": value}} for value in values]
    return [{"key": key, "match": {"any": values}}]


def _by_type(condition: Condition) -> list[list[Value]]:
    found: dict[type, list[Value]] = {}
    for value in condition.values:
        found.setdefault(type(value), []).append(value)
    return list(found.values())


@lru_cache(maxsize=64)
def marks_of(confinements: Confinements) -> Marks:
    """The marks, with the values that all confinements allow.

    Raises :class:`Unconfined` where no point can meet them all.
    """
    marks: dict[str, Condition] = {}
    for condition in (each for one in confinements for each in one.conditions):
        key = condition.key
        common = tuple(filter(condition.allows, marks[key].values)) if key in marks else condition.values
        if not common:
            raise Unconfined(tenant_texts.MARKS_EXCLUDE.format(key))
        marks[key] = Condition(key, common)
    return tuple(marks.values())


def roots_of(confinements: Confinements) -> frozenset[str]:
    """The payload's own keys that hold marks."""
    return frozenset(condition.root for one in confinements for condition in one.conditions)


def chosen_roots(confinements: Confinements) -> frozenset[str]:
    """Those of them under which the caller chooses one of several possible values."""
    return frozenset(mark.root for mark in marks_of(confinements) if len(mark.values) > 1)


def marking(payload: Json, marks: Marks, pace: Pace) -> Steps[Json]:
    """Marks the payload of a new point, and returns it: each missing mark that has one possible value is written.

    A mark that is there must be one of the possible values, and no list. Below `a[]` each object of the list has its
    mark. Null above a mark is missing: LangChain writes `metadata: null`. Raises :class:`Unconfined`.
    """
    for mark in marks:
        yield from _mark(payload, mark.key.split("."), mark, pace)
    return payload


def _mark(payload: Json, path: list[str], mark: Condition, pace: Pace) -> Steps[None]:
    if pace.is_step(_MARK):
        yield None
    step, *rest = path
    key = step.removesuffix("[]")
    if not rest:
        if key not in payload and len(mark.values) == 1:
            payload[key] = mark.values[0]
        if not mark.allows(payload.get(key)):
            raise Unconfined(tenant_texts.MARKED.format(mark.key))
        return
    if payload.get(key) is None:
        payload[key] = {} if step == key else []
    inner = payload[key]
    if step != key and inner == []:
        inner.append({})
    each = inner if step != key else [inner]
    if not isinstance(each, list):
        raise Unconfined(tenant_texts.MARKED.format(mark.key))
    for one in each:
        if not isinstance(one, dict):
            raise Unconfined(tenant_texts.MARKED.format(mark.key))
        yield from _mark(one, rest, mark, pace)
