"""An operation's body, confined to the points that carry a caller's payload conditions: a new body, or a refusal.

A table of the operations that can be confined, and how; what has no row is refused to such a caller. Reads and changes
by filter get the conditions as a filter, at every level at which points are chosen. New points get them as payload, and
Qdrant's `update_filter` (since 1.16) keeps an upsert from a point that exists and carries others. What chooses points
by ids without a filter, takes a vector or a payload from a point by its id, or touches the conditions' own keys is
refused. Where serde would read an array as a struct, only the documented type is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from tlsproxy.authz.access import Condition
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant.bodies import prefetches_of, requests_of
from tlsproxy.qdrant.operations import Operation

Conditions = tuple[Condition, ...]

# Names of collections and aliases are told to whoever may know them; they say nothing of points.
_NO_POINTS: Final = frozenset({"collection_exists", "list_collections", "list_aliases", "list_collection_aliases"})
NOT_CONFINED: Final = "This operation cannot be confined to a tenant"
NOT_OF_A_BATCH: Final = "An operation of this batch cannot be confined to a tenant"
LOOKS_UP: Final = "{} would read points of others: it cannot be confined to a tenant"
BY_EXAMPLE: Final = "A query by a point's id, or by examples, cannot be confined to a tenant: send its vector"
BY_IDS: Final = "A change by ids cannot be confined to a tenant: use a filter with has_id"
BELOW_A_KEY: Final = "A payload that is set below a key cannot be confined to a tenant"
MARKED: Final = "The payload's {} is not yours to choose"
_KEPT: Final = "The payload that marks a tenant's points cannot be deleted, nor a key of unusual form"

_PLAIN_PATH = re.compile(r"([A-Za-z0-9_-]+)(?:(?:\.[A-Za-z0-9_-]+)|\[[0-9]*\])*")
_QUERIES_OF_NO_POINT: Final = frozenset({"fusion", "rrf", "order_by", "sample", "formula", "defaults"})
_INFERENCE: Final = frozenset({"text", "image", "object", "model", "options"})


def tells_no_points(operation: Operation) -> bool:
    return operation.name in _NO_POINTS


def is_confinable(operation: Operation) -> bool:
    """Whether :func:`confine` has a way for it."""
    return operation.path in _READS or (operation.method, operation.path) in _WRITES


def confine(operation: Operation, body: Any, conditions: Conditions) -> Any:
    """``body`` is changed and returned. Raises :class:`Unconfined`, :class:`BadRequest`."""
    write = _WRITES.get((operation.method, operation.path))
    if write is not None:
        write(_object(body, "the body"), conditions)
        return body
    if operation.path not in _READS:
        raise Unconfined(NOT_CONFINED)
    left = requests_of(operation, body)
    while left:
        request = left.pop()
        for name in ("lookup_from", "with_lookup"):
            if request.get(name) is not None:
                raise Unconfined(LOOKS_UP.format(name))
        _check_query(request.get("query"))
        _narrow_statistics(request.get("params"), conditions)
        _filter(request, "filter", conditions)
        left += prefetches_of(request)
    return body


def _filter(request: dict[str, Any], name: str, conditions: Conditions) -> None:
    """The caller's own filter becomes one more condition of ours, as a whole."""
    own = request.get(name)
    must: list[dict[str, Any]] = [{"key": one.key, "match": {"value": one.value}} for one in conditions]
    if own is not None and _object(own, name):
        must.append(own)
    request[name] = {"must": must}


def _narrow_statistics(params: Any, conditions: Conditions) -> None:
    """A search may choose the points over which words are counted: scores would tell of the words of others."""
    idf = None if params is None else _object(params, "params").get("idf")
    if idf is not None and idf != "global":
        _filter(_object(idf, "params.idf"), "corpus", conditions)


def _check_query(query: Any) -> None:
    """A number or a string is a point's id, whose vector the search would tell of."""
    if query is None:
        return
    if isinstance(query, dict):
        if query and query.keys() <= _QUERIES_OF_NO_POINT:
            return
        if "nearest" in query and query.keys() <= {"nearest", "mmr"}:
            query = query["nearest"]
    if not _is_vector(query):
        raise Unconfined(BY_EXAMPLE)


def _is_vector(value: Any) -> bool:
    """Dense, multiple or sparse, or what an inference service makes one of."""
    if isinstance(value, dict):
        if value.keys() == {"indices", "values"}:
            return _are_numbers(value["indices"]) and _are_numbers(value["values"])
        return "model" in value and value.keys() <= _INFERENCE
    return _are_numbers(value) or (isinstance(value, list) and all(_are_numbers(row) for row in value))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) in (float, int) for one in value)


# Changes. Each takes its body, or one operation of a batch.


def _upsert(body: dict[str, Any], conditions: Conditions) -> None:
    if ("points" in body) == ("batch" in body):
        raise BadRequest("Format error in JSON body: either points or batch is expected")
    if "points" in body:
        for one in _array(body["points"], "points"):
            point = _object(one, "points")
            point["payload"] = _marked(point.get("payload"), conditions)
    else:
        batch = _object(body["batch"], "batch")
        ids, payloads = _array(batch.get("ids"), "ids"), batch.get("payloads")
        if payloads is None:
            payloads = [None] * len(ids)
        batch["payloads"] = [_marked(payload, conditions) for payload in _array(payloads, "payloads")]
    _filter(body, "update_filter", conditions)


def _update_vectors(body: dict[str, Any], conditions: Conditions) -> None:
    _filter(body, "update_filter", conditions)


def _by_filter(body: dict[str, Any], conditions: Conditions) -> None:
    if body.get("points") is not None:
        raise Unconfined(BY_IDS)
    _object(body.get("filter"), "filter")  # without one Qdrant refuses; ours alone would mean all points of the tenant
    _filter(body, "filter", conditions)


def _set_payload(body: dict[str, Any], conditions: Conditions) -> None:
    if body.get("key") is not None:
        raise Unconfined(BELOW_A_KEY)
    _object(body.get("payload"), "payload")
    _marked(dict(body["payload"]), conditions)
    _by_filter(body, conditions)


def _overwrite_payload(body: dict[str, Any], conditions: Conditions) -> None:
    _set_payload(body, conditions)
    body["payload"] = _marked(body["payload"], conditions)


def _delete_payload(body: dict[str, Any], conditions: Conditions) -> None:
    for path in _array(body.get("keys"), "keys"):
        check_deleted(path, conditions)
    _by_filter(body, conditions)


def check_deleted(path: Any, conditions: Conditions) -> None:
    """Of a path into the payload. Raises :class:`Unconfined`."""
    match = _PLAIN_PATH.fullmatch(path) if isinstance(path, str) else None
    if match is None or any(match.group(1) == one.key for one in conditions):
        raise Unconfined(_KEPT)


def _batch(body: dict[str, Any], conditions: Conditions) -> None:
    for operation in _array(body.get("operations"), "operations"):
        pairs = list(_object(operation, "operations").items())
        change = _CHANGES.get(pairs[0][0]) if len(pairs) == 1 else None
        if change is None:
            raise Unconfined(NOT_OF_A_BATCH)
        change(_object(pairs[0][1], pairs[0][0]), conditions)


def _marked(payload: Any, conditions: Conditions) -> dict[str, Any]:
    """The payload with the conditions in it. Raises :class:`Unconfined` where it says otherwise."""
    marked = {} if payload is None else _object(payload, "payload")
    for one in conditions:
        if marked.setdefault(one.key, one.value) != one.value:
            raise Unconfined(MARKED.format(one.key))
    return marked


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"Format error in JSON body: {where} must be an object")
    return value


def _array(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRequest(f"Format error in JSON body: {where} must be an array")
    return value


_COLLECTION: Final = "/collections/{collection_name}"
_READS: Final = frozenset(
    f"{_COLLECTION}/{path}"
    for path in (
        "facet",
        "points/count",
        "points/query",
        "points/query/batch",
        "points/query/groups",
        "points/scroll",
        "points/search",
        "points/search/batch",
        "points/search/groups",
        "points/search/matrix/offsets",
        "points/search/matrix/pairs",
    )
)
_Change = Callable[[dict[str, Any], Conditions], None]
_CHANGES: Final[dict[str, _Change]] = {
    "upsert": _upsert,
    "delete": _by_filter,
    "update_vectors": _update_vectors,
    "delete_vectors": _by_filter,
    "set_payload": _set_payload,
    "overwrite_payload": _overwrite_payload,
    "delete_payload": _delete_payload,
}
_WRITES: Final[dict[tuple[str, str], _Change]] = {
    ("PUT", f"{_COLLECTION}/points"): _upsert,
    ("POST", f"{_COLLECTION}/points/delete"): _by_filter,
    ("PUT", f"{_COLLECTION}/points/vectors"): _update_vectors,
    ("POST", f"{_COLLECTION}/points/vectors/delete"): _by_filter,
    ("POST", f"{_COLLECTION}/points/payload"): _set_payload,
    ("PUT", f"{_COLLECTION}/points/payload"): _overwrite_payload,
    ("POST", f"{_COLLECTION}/points/payload/delete"): _delete_payload,
    ("POST", f"{_COLLECTION}/points/batch"): _batch,
}
