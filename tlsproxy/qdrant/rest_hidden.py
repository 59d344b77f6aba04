"""Hidden parts of points, taken out of the results of REST requests.

Results have the documented forms of Qdrant's, or are no answers; members without a name here are removed too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

from tlsproxy.authz.query_policy import HiddenKeys, KeyTree, QueryPolicy, parse_key_path
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.query_policy import Treatment, treatment
from tlsproxy.qdrant.rest_answers import ChangedAnswer
from tlsproxy.wire.cooperative import Steps

STEP: Final = 200
"""Points or values per step, at some microseconds each."""

_POINT: Final = frozenset(("id", "version", "score", "payload", "vector", "shard_key", "order_value"))
_WITHOUT_VECTOR: Final = _POINT - {"vector"}

Form = Callable[[Any], Iterator[dict[str, Any] | None]]
"""The points in a result of this form, one by one, and None for each list: a batch may have many without points. Other
members of its objects are removed. Raises ValueError.
"""


@dataclass(frozen=True, slots=True)
class Stripping:
    """The change of one operation's result under a policy."""

    form: Form
    policy: QueryPolicy

    def __call__(self, result: Any) -> Steps[Any]:
        names, tree = _WITHOUT_VECTOR if self.policy.hides_vectors else _POINT, self.policy.hidden.tree
        payloads: list[tuple[Any, KeyTree]] = []
        for count, point in enumerate(self.form(result), start=1):
            if not count % STEP:
                yield None
            if point is None:
                continue
            _keep(point, names)
            payload = point.get("payload")
            if payload is not None and not _object(payload).keys().isdisjoint(tree):
                payloads.append((payload, tree))
        yield from strip_payloads(payloads)
        return result


@dataclass(frozen=True, slots=True)
class SchemaStripping:
    """The change of a collection's description: the indexes of hidden keys are left out."""

    hidden: HiddenKeys

    def __call__(self, result: Any) -> Steps[Any]:
        schema = _object(_object(result).get("payload_schema", {}))
        for count, key in enumerate(list(schema), start=1):
            if not count % STEP:
                yield None
            if self._is_hidden(key):
                del schema[key]
        return result

    def _is_hidden(self, key: str) -> bool:
        try:
            return self.hidden.cover(parse_key_path(key))
        except ValueError:
            return True


def stripping_of(operation: Operation, policy: QueryPolicy) -> ChangedAnswer | None:
    """The reduction of an operation's answer; None where nothing that it may have is hidden."""
    if treatment(operation, policy) is not Treatment.STRIPPED:
        return None
    if operation.name == "get_collection":
        return ChangedAnswer((SchemaStripping(policy.hidden),))
    return ChangedAnswer((Stripping(_FORMS[operation.path.replace(_SHARD, "")], policy),))


def strip_payloads(pending: list[tuple[Any, KeyTree]]) -> Steps[None]:
    """Takes the keys of its tree out of each payload, in all elements of its arrays too. The list is used up."""
    count = 0
    while pending:
        value, tree = pending.pop()
        count += 1
        if not count % STEP:
            yield None
        if isinstance(value, list):
            for begin in range(0, len(value), STEP):
                pending += ((one, tree) for one in value[begin : begin + STEP] if isinstance(one, list | dict))
                if begin:
                    yield None
        elif isinstance(value, dict):
            for key, below in tree.items():
                if below is None:
                    value.pop(key, None)
                elif key in value:
                    pending.append((value[key], below))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object of Qdrant's")  # noqa: TRY004 - the answer is wrong as a whole
    return value


def _keep(value: dict[str, Any], names: AbstractSet[str]) -> None:
    if not value.keys() <= names:  # Qdrant has written no others
        for name in value.keys() - names:
            del value[name]


def _point(value: Any) -> Iterator[dict[str, Any] | None]:
    yield _object(value)


def _scalar(value: Any) -> Iterator[dict[str, Any] | None]:
    if isinstance(value, dict | list):
        raise ValueError("not a value of Qdrant's")  # noqa: TRY004 - the answer is wrong as a whole
    yield from ()


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("not a list of Qdrant's")  # noqa: TRY004 - the answer is wrong as a whole
    return value


def _each(inner: Form) -> Form:
    def form(value: Any) -> Iterator[dict[str, Any] | None]:
        several = _list(value)
        yield None
        for one in several:
            yield from inner(one)

    return form


def _points(value: Any) -> Iterator[dict[str, Any] | None]:
    """As :func:`_each` of :func:`_point`, without an iterator for each: nearly all points are in such a list."""
    several = _list(value)
    yield None
    yield from map(_object, several)


def _members(**inner: Form) -> Form:
    def form(value: Any) -> Iterator[dict[str, Any] | None]:
        _keep(_object(value), inner.keys())
        for name in value:
            yield from inner[name](value[name])

    return form


def _optional(inner: Form) -> Form:
    return lambda value: iter(()) if value is None else inner(value)


_PAGE: Final = _members(points=_points, next_page_offset=_scalar)
_QUERIED: Final = _members(points=_points)
_GROUPED: Final = _members(groups=_each(_members(id=_scalar, hits=_points, lookup=_optional(_point))))
_POINTS: Final = "/collections/{collection_name}/points"
_SHARD: Final = "/shards/{shard}"
_FORMS: Final[Mapping[str, Form]] = {
    _POINTS: _points,
    f"{_POINTS}/{{id}}": _point,
    f"{_POINTS}/scroll": _PAGE,
    f"{_POINTS}/query": _QUERIED,
    f"{_POINTS}/query/batch": _each(_QUERIED),
    **dict.fromkeys((f"{_POINTS}/{name}" for name in ("search", "recommend", "discover")), _points),
    **dict.fromkeys((f"{_POINTS}/{name}/batch" for name in ("search", "recommend", "discover")), _each(_points)),
    **dict.fromkeys((f"{_POINTS}/{name}/groups" for name in ("query", "search", "recommend")), _GROUPED),
}
"""The form of each result with points, by path."""
