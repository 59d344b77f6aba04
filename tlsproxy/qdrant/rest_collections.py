"""Names in the body of a request, at all places where Qdrant looks for them: collections, aliases, parts of a batch.

A query may take vectors from another collection (``lookup_from``, at its top and in every nested ``prefetch``),
groups may take payloads from one (``with_lookup``), a new collection its points (``init_from``, before Qdrant 1.16),
and a batch is a list of such requests (``searches``). All of these places are looked at in every request, whether or
not the operation has them: there is one rule.

serde also reads a struct from an array of its fields, `["x", "v"]` for `{"collection": "x", "vector": "v"}`. That would
bypass a search for keys, so only the documented types are accepted at these places.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from tlsproxy.authz.access import NO_NAMES, BodyNames
from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.operations import Operation
from tlsproxy.wire.cooperative import Pace, Steps

MOST_NAMES: Final = 1000
"""Different names in one body, as in one gRPC message: all are held against the caller's rights in one step."""
_ALIAS_ACTIONS: Final = {
    "create_alias": frozenset({"collection_name", "alias_name"}),
    "rename_alias": frozenset({"old_alias_name", "new_alias_name"}),
    "delete_alias": frozenset({"alias_name"}),
}
"""Actions on aliases → the names in each."""
_BATCHED: Final = {
    "upsert": "upsert_points",
    "delete": "delete_points",
    "set_payload": "set_payload",
    "overwrite_payload": "overwrite_payload",
    "delete_payload": "delete_payload",
    "clear_payload": "clear_payload",
    "update_vectors": "update_vectors",
    "delete_vectors": "delete_vectors",
}
"""Members of an operation of a batch → the operation's name."""
NUMBERS: Final = frozenset((float, int))
INTEGERS: Final = frozenset((int,))
_NUMBERS_AT_ONCE: Final = 1 << 16
_NUMBERS_PER_UNIT: Final = 40
"""Numbers whose types are found in a unit of work."""


def body_names(operation: Operation, body: Any) -> Steps[BodyNames]:
    """All names that a decision may depend on; the body was parsed by :mod:`tlsproxy.wire.strict_json`.

    Raises :class:`BadRequest`.
    """
    pace = Pace()
    if operation.names_changed:
        return BodyNames(change=(yield from _changed(body, pace)))
    if operation.carries:
        kinds: dict[str, None] = {}
        for one in _array(expect_object(body, "the body").get("operations"), "operations"):
            if pace.is_step():
                yield None
            kinds[_action(one, "operations", _BATCHED)[0]] = None
        return BodyNames(operations=tuple(_BATCHED[kind] for kind in kinds))
    return BodyNames(read=(yield from _read(operation, body, pace))) if operation.names_others else NO_NAMES


def _changed(body: Any, pace: Pace) -> Steps[tuple[str, ...]]:
    names: dict[str, None] = {}
    if expect_object(body, "the body").keys() != {"actions"}:
        raise wrong_type("the body", "an object of actions")
    for one in _array(body["actions"], "actions"):
        if pace.is_step(3):
            yield None
        kind, action = _action(one, "actions", _ALIAS_ACTIONS)
        if action.keys() != _ALIAS_ACTIONS[kind] or not all(name and isinstance(name, str) for name in action.values()):
            raise wrong_type(f"actions.{kind}", f"an object of {' and '.join(sorted(_ALIAS_ACTIONS[kind]))}")
        names.update(dict.fromkeys(action.values()))
        _check_count(names)
    return tuple(names)


def _check_count(names: dict[str, None]) -> None:
    if len(names) > MOST_NAMES:
        raise BadRequest(f"Format error in JSON body: more than {MOST_NAMES} names of collections")


def _array(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong_type(where, "an array")
    return value


def _action(value: Any, where: str, known: Collection[str]) -> tuple[str, dict[str, Any]]:
    """The only member of an object, by its kind. Raises :class:`BadRequest`."""
    members = list(expect_object(value, where).items())
    if len(members) != 1 or members[0][0] not in known:
        raise BadRequest(f"Format error in JSON body: each of {where} must have one member of {', '.join(known)}")
    return members[0][0], expect_object(members[0][1], f"{where}.{members[0][0]}")


def _read(operation: Operation, body: Any, pace: Pace) -> Steps[tuple[str, ...]]:
    """Each further collection once."""
    names: dict[str, None] = {}
    pending = yield from requests_of(operation, body, pace)
    while pending:
        if pace.is_step(2):
            yield None
        request = pending.pop()
        names.update(dict.fromkeys(_lookups(request)))
        _check_count(names)
        pending += yield from prefetches_of(request, pace)
    return tuple(names)


def requests_of(operation: Operation, body: Any, pace: Pace) -> Steps[list[dict[str, Any]]]:
    """A list of the requests of a body: its ``searches``, or itself. Raises :class:`BadRequest`."""
    body = expect_object(body, "the body")
    if not operation.path.endswith("/batch"):
        return [body]
    searches = body.get("searches")
    if not isinstance(searches, list):
        raise wrong_type("searches", "an array")
    return (yield from _objects(searches, "searches", pace))


def prefetches_of(request: dict[str, Any], pace: Pace) -> Steps[list[dict[str, Any]]]:
    """A list of the prefetches of a request or prefetch; a single one may come without an array.

    Raises :class:`BadRequest`.
    """
    prefetch = request.get("prefetch")
    if prefetch is None:
        return []
    return (yield from _objects(prefetch if isinstance(prefetch, list) else [prefetch], "prefetch", pace))


def _objects(values: list[Any], where: str, pace: Pace) -> Steps[list[dict[str, Any]]]:
    for value in values:
        if pace.is_step():
            yield None
        expect_object(value, where)
    return values.copy()


def _lookups(request: dict[str, Any]) -> list[str]:
    names: list[str] = []
    with_lookup = request.get("with_lookup")
    sources = [(request.get(where), where) for where in ("lookup_from", "init_from")]
    names += [_collection(value, where) for value, where in sources if value is not None]
    if isinstance(with_lookup, str):
        names.append(with_lookup)
    elif with_lookup is not None:
        names.append(_collection(with_lookup, "with_lookup"))
    return names


def _collection(value: Any, where: str) -> str:
    name = expect_object(value, where).get("collection")
    if not isinstance(name, str):
        raise wrong_type(f"{where}.collection", "a string")
    return name


def expect_object(value: Any, where: str) -> dict[str, Any]:
    """Raises :class:`BadRequest` for a value of another type."""
    if not isinstance(value, dict):
        raise wrong_type(where, "an object")
    return value


def are_vectors(values: list[Any], pace: Pace) -> Steps[bool]:
    """Whether each is a list of numbers."""
    for value in values:
        if not (yield from are_numbers(value, pace)):
            return False
    return True


def are_numbers(value: Any, pace: Pace, types: frozenset[type] = NUMBERS) -> Steps[bool]:
    """Whether it is a list of values of these types, compared in C: there may be millions."""
    if not isinstance(value, list):
        return False
    if pace.is_step():
        yield None
    for begin in range(0, len(value), _NUMBERS_AT_ONCE):
        some = value if len(value) <= _NUMBERS_AT_ONCE else value[begin : begin + _NUMBERS_AT_ONCE]
        if pace.is_step(len(some) // _NUMBERS_PER_UNIT):
            yield None
        if not types.issuperset(map(type, some)):
            return False
    return True


def wrong_type(where: str, expected: str) -> BadRequest:
    return BadRequest(f"Format error in JSON body: {where} must be {expected}")
