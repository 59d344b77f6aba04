"""Which further collections a request's body names, where Qdrant looks for them: the names, or a refusal.

A query may take vectors from another collection (``lookup_from``, at its top and in every nested ``prefetch``),
groups may take payloads from one (``with_lookup``), and a batch is a list of such requests (``searches``). Each of
these places is looked at in every such request, whether or not the operation has it, so that there is one rule.

serde reads an object also from an array of its fields in order. That is a way past a reader of names, so that at each
of these places only the documented types are accepted.
"""

from __future__ import annotations

from typing import Any

from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.operations import Operation


def named_collections(operation: Operation, body: Any) -> tuple[str, ...]:
    """Each name once, in the order of the body, which :mod:`tlsproxy.wire.strict_json` has read.

    Raises :class:`BadRequest`.
    """
    names: dict[str, None] = {}
    left = requests_of(operation, body)
    while left:
        request = left.pop()
        names.update(dict.fromkeys(_looked_up(request)))
        left += prefetches_of(request)
    return tuple(names)


def requests_of(operation: Operation, body: Any) -> list[dict[str, Any]]:
    """The single requests of a body: its ``searches``, or itself. Raises :class:`BadRequest`."""
    body = _object(body, "the body")
    if not operation.path.endswith("/batch"):
        return [body]
    searches = body.get("searches")
    if not isinstance(searches, list):
        raise _wrong("searches", "an array")
    return [_object(request, "searches") for request in searches]


def prefetches_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Those right below a request or a prefetch; one alone may stand without an array. Raises :class:`BadRequest`."""
    prefetch = request.get("prefetch")
    if prefetch is None:
        return []
    return [_object(one, "prefetch") for one in (prefetch if isinstance(prefetch, list) else [prefetch])]


def _looked_up(request: dict[str, Any]) -> list[str]:
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
    name = _object(value, where).get("collection")
    if not isinstance(name, str):
        raise _wrong(f"{where}.collection", "a string")
    return name


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "an object")
    return value


def _wrong(where: str, expected: str) -> BadRequest:
    return BadRequest(f"Format error in JSON body: {where} must be {expected}")
