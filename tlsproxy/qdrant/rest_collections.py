"""Names in the body of a request, at all places where Qdrant looks for them: collections, aliases, parts of a batch.

A query may take vectors from another collection (``lookup_from``, at its top and in every nested ``prefetch``),
groups may take payloads from one (``with_lookup``), a new collection its points (``init_from``, before Qdrant 1.16),
and a batch is a list of such requests (``searches``). All of these places are looked at in every request, whether or
not the operation has them: there is one rule.

serde also reads a struct from an array of its fields, `["x", "v"]` for `{"collection": "x", "vector": "v"}`. That would
bypass a search for keys, so only the documented types are accepted at these places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from tlsproxy.authz.access import NO_NAMES, BodyNames
from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.operations import Operation

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


def body_names(operation: Operation, body: Any) -> BodyNames:
    """All names that a decision may depend on; the body was parsed by :mod:`tlsproxy.wire.strict_json`.

    Raises :class:`BadRequest`.
    """
    if operation.names_changed:
        return BodyNames(change=_changed(body))
    if operation.carries:
        batch = expect_object(body, "the body").get("operations")
        kinds = (kind for kind, _ in _actions(batch, "operations", _BATCHED))
        return BodyNames(operations=tuple(dict.fromkeys(_BATCHED[kind] for kind in kinds)))
    return BodyNames(read=_read(operation, body)) if operation.names_others else NO_NAMES


def _changed(body: Any) -> tuple[str, ...]:
    names: dict[str, None] = {}
    if expect_object(body, "the body").keys() != {"actions"}:
        raise wrong_type("the body", "an object of actions")
    for kind, action in _actions(body["actions"], "actions", _ALIAS_ACTIONS):
        if action.keys() != _ALIAS_ACTIONS[kind] or not all(name and isinstance(name, str) for name in action.values()):
            raise wrong_type(f"actions.{kind}", f"an object of {' and '.join(sorted(_ALIAS_ACTIONS[kind]))}")
        names.update(dict.fromkeys(action.values()))
    return tuple(names)


def _actions(value: Any, where: str, known: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The members of an array of objects with one member each, its kind. Raises :class:`BadRequest`."""
    if not isinstance(value, list):
        raise wrong_type(where, "an array")
    for one in value:
        members = list(expect_object(one, where).items())
        if len(members) != 1 or members[0][0] not in known:
            raise BadRequest(f"Format error in JSON body: each of {where} must have one member of {', '.join(known)}")
        yield members[0][0], expect_object(members[0][1], f"{where}.{members[0][0]}")


def _read(operation: Operation, body: Any) -> tuple[str, ...]:
    """Each further collection once."""
    names: dict[str, None] = {}
    pending = requests_of(operation, body)
    while pending:
        request = pending.pop()
        names.update(dict.fromkeys(_lookups(request)))
        pending += prefetches_of(request)
    return tuple(names)


def requests_of(operation: Operation, body: Any) -> list[dict[str, Any]]:
    """The requests of a body: its ``searches``, or itself. Raises :class:`BadRequest`."""
    body = expect_object(body, "the body")
    if not operation.path.endswith("/batch"):
        return [body]
    searches = body.get("searches")
    if not isinstance(searches, list):
        raise wrong_type("searches", "an array")
    return [expect_object(request, "searches") for request in searches]


def prefetches_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The prefetches of a request or prefetch; a single one may come without an array. Raises :class:`BadRequest`."""
    prefetch = request.get("prefetch")
    if prefetch is None:
        return []
    return [expect_object(one, "prefetch") for one in (prefetch if isinstance(prefetch, list) else [prefetch])]


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


def are_numbers(value: Any) -> bool:
    return isinstance(value, list) and _NUMBERS.issuperset(map(type, value))  # in C: there may be millions


_NUMBERS: Final = frozenset((float, int))


def wrong_type(where: str, expected: str) -> BadRequest:
    return BadRequest(f"Format error in JSON body: {where} must be {expected}")
