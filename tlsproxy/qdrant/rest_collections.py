"""Further collections that the body of a request names, at all places where Qdrant looks for them.

A query may take vectors from another collection (``lookup_from``, at its top and in every nested ``prefetch``),
groups may take payloads from one (``with_lookup``), and a batch is a list of such requests (``searches``). All of
these places are looked at in every request, whether or not the operation has them: there is one rule.

serde also reads a struct from an array of its fields, `["x", "v"]` for `{"collection": "x", "vector": "v"}`. That would
bypass a search for keys, so only the documented types are accepted at these places.
"""

from __future__ import annotations

from typing import Any

from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.operations import Operation


def named_collections(operation: Operation, body: Any) -> tuple[str, ...]:
    """Each name once; the body was parsed by :mod:`tlsproxy.wire.strict_json`.

    Raises :class:`BadRequest`.
    """
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
    names = []
    lookup_from, with_lookup = request.get("lookup_from"), request.get("with_lookup")
    if lookup_from is not None:
        names.append(_collection(lookup_from, "lookup_from"))
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


def wrong_type(where: str, expected: str) -> BadRequest:
    return BadRequest(f"Format error in JSON body: {where} must be {expected}")
