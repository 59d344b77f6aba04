"""Confines the body of a request to the points that meet the caller's payload conditions, or refuses it.

A table of the operations that can be confined, and how; all others are refused to such a caller. With the condition
`tenant = "a"`, reads and changes by filter get it as a filter, at every level at which points are selected:
`{"filter": F}` becomes `{"filter": {"must": [tenant = "a", F]}}`. New points get it as payload, and Qdrant's
`update_filter` (since 1.16) stops an upsert over an existing point of another tenant. Requests are refused that select
points by ids without a filter, take a vector or payload from a point by its id, or change the conditions' own keys.
Where serde would read an array as a struct, only the documented type is accepted.

In Qdrant a point whose key has an array meets the condition of each value in it: it is shared, and each tenant may read
it. A change requires in addition that the key has one value, so that no tenant takes a shared point over.
Counts are exact, since estimates are made over all points (:mod:`tlsproxy.qdrant.answer_statistics`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from tlsproxy.authz.access import Confinements
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.rest_collections import expect_object, prefetches_of, requests_of, wrong_type
from tlsproxy.qdrant.scoring import Facts, Scored, check_matrix, is_rescored, needs_corpus
from tlsproxy.qdrant.tenant_filters import marked, marks_of, narrowed, roots_of

# Responses with names of collections and aliases only, which are decided on by grants.
_NO_POINTS: Final = frozenset({"collection_exists", "list_collections", "list_aliases", "list_collection_aliases"})
NOT_CONFINED: Final = "This operation cannot be confined to a tenant"
NOT_OF_A_BATCH: Final = "An operation of this batch cannot be confined to a tenant"
LOOKS_UP: Final = "{} would read points of others: it cannot be confined to a tenant"
BY_EXAMPLE: Final = "A query by a point's id, or by examples, cannot be confined to a tenant: send its vector"
BY_IDS: Final = "A change by ids cannot be confined to a tenant: use a filter with has_id"
BELOW_A_KEY: Final = "A payload that is set below a key cannot be confined to a tenant"
SET: Final = "The payload's {} is not yours to set"
_KEPT: Final = "The payload that marks a tenant's points cannot be deleted, nor a key of unusual form"

_PLAIN_PATH = re.compile(r"([A-Za-z0-9_-]+)(?:(?:\.[A-Za-z0-9_-]+)|\[[0-9]*\])*")
_QUERIES_OF_NO_POINT: Final = frozenset({"fusion", "rrf", "order_by", "sample", "formula", "defaults"})
_INFERENCE: Final = frozenset({"text", "image", "object", "model", "options"})


def touches_no_points(operation: Operation) -> bool:
    """Whether it is about no points, so that conditions do not apply."""
    return operation.name in _NO_POINTS


def is_confinable(operation: Operation) -> bool:
    """Whether :func:`confine` has a row for it."""
    return operation.path in _READS or (operation.method, operation.path) in _WRITES


def confine(operation: Operation, body: Any, confinements: Confinements, facts: Facts | None = None) -> Any:
    """Changes ``body`` and returns it.

    Raises :class:`Unconfined`, :class:`BadRequest`, and :class:`FactsNeeded` where it depends on the facts.
    """
    write = _WRITES.get((operation.method, operation.path))
    if write is not None:
        write(expect_object(body, "the body"), confinements)
        return body
    if operation.path not in _READS:
        raise Unconfined(NOT_CONFINED)
    pending = requests_of(operation, body)
    while pending:
        request = pending.pop()
        for name in ("lookup_from", "with_lookup"):
            if request.get(name) is not None:
                raise Unconfined(LOOKS_UP.format(name))
        using = _text(request.get("using"), "using")
        if operation.path in _SEARCHED:
            scored, using = _scored_of_search(request.get("vector"))
        else:
            scored = _scored(request.get("query"))
        if operation.path in _MATRICES:
            check_matrix(using, facts)
        corpus = needs_corpus(scored, using, facts)
        _params(request, confinements, exact=operation.path in _GROUPED, corpus=corpus, rescored=is_rescored(scored))
        if operation.path in _COUNTED:
            request["exact"] = True
        _filter(request, "filter", confinements)
        pending += prefetches_of(request)
    return body


def _filter(request: dict[str, Any], name: str, confinements: Confinements, *, alone: bool = False) -> None:
    """Adds the confinements; the caller's own filter becomes one more condition. ``alone``: for a change."""
    own = request.get(name)
    request[name] = narrowed(None if own is None else expect_object(own, name), confinements, alone=alone)


def _params(request: dict[str, Any], confinements: Confinements, *, exact: bool, corpus: bool, rescored: bool) -> None:
    """Removes the influence of other tenants' points: which segments are indexed and the codes of quantized vectors
    depend on all points, and words must be counted over the caller's own.
    """
    if request.get("params") is None:
        if not (exact or corpus or rescored):
            return
        request["params"] = {}
    params = expect_object(request["params"], "params")
    params.pop("indexed_only", None)
    if exact:
        params["exact"] = True
    if rescored or params.get("quantization") is not None:
        quantization = params.get("quantization")
        params["quantization"] = {} if quantization is None else expect_object(quantization, "params.quantization")
        params["quantization"]["rescore"] = True
    idf = params.get("idf")
    if corpus or idf is not None:
        params["idf"] = {} if idf is None or idf == "global" else expect_object(idf, "params.idf")
        _filter(params["idf"], "corpus", confinements)


def _scored(query: Any) -> Scored:
    """The kind of a query. Raises :class:`Unconfined` for a point's id: the search would tell of its vector."""
    if query is None:
        return Scored.NOTHING
    if isinstance(query, dict):
        if query and query.keys() <= _QUERIES_OF_NO_POINT:
            return Scored.NOTHING
        if query.keys() == {"text"} and isinstance(query["text"], str | dict):
            return Scored.TEXT
        if "nearest" in query and query.keys() <= {"nearest", "mmr"}:
            query = query["nearest"]
    return _scored_of_vector(query)


def _scored_of_vector(value: Any) -> Scored:
    """The kind of a vector: dense, multiple or sparse, or a document that a model makes one of, which may be sparse.

    `[[1, 2], [0.1, 0.2]]` are two dense vectors, or to serde a sparse one as (indices, values): it counts as both.
    """
    if isinstance(value, dict):
        if value.keys() == {"indices", "values"} and _are_numbers(value["indices"]) and _are_numbers(value["values"]):
            return Scored.SPARSE
        if "model" in value and value.keys() <= _INFERENCE:
            return Scored.INFERRED
    elif _are_numbers(value):
        return Scored.DENSE
    elif isinstance(value, list) and all(_are_numbers(row) for row in value):
        positional = len(value) == len(("indices", "values")) and all(type(one) is int for one in value[0])
        return Scored.INFERRED if positional else Scored.DENSE
    raise Unconfined(BY_EXAMPLE)


def _scored_of_search(vector: Any) -> tuple[Scored, str]:
    """Kind and name of the older search's vector: a dense one, or one with its name. Raises :class:`BadRequest`."""
    if vector is None:
        return Scored.NOTHING, ""
    if _are_numbers(vector):
        return Scored.DENSE, ""
    named = expect_object(vector, "vector")
    if isinstance(named.get("vector"), dict):
        return Scored.SPARSE, _text(named.get("name"), "vector.name")
    if not _are_numbers(named.get("vector")):
        raise BadRequest("Format error in JSON body: vector.vector must be numbers, or indices and values")
    return Scored.DENSE, _text(named.get("name"), "vector.name")


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and _NUMBERS.issuperset(map(type, value))  # in C: there may be millions


_NUMBERS: Final = frozenset((float, int))


# Changes. Each takes its body, or one operation of a batch.


def _upsert(body: dict[str, Any], confinements: Confinements) -> None:
    if ("points" in body) == ("batch" in body):
        raise BadRequest("Format error in JSON body: either points or batch is expected")
    if "points" in body:
        for one in _array(body["points"], "points"):
            point = expect_object(one, "points")
            point["payload"] = _marked(point.get("payload"), confinements)
    else:
        batch = expect_object(body["batch"], "batch")
        ids, payloads = _array(batch.get("ids"), "ids"), batch.get("payloads")
        if payloads is None:
            payloads = [None] * len(ids)
        batch["payloads"] = [_marked(payload, confinements) for payload in _array(payloads, "payloads")]
    _filter(body, "update_filter", confinements, alone=True)


def _update_vectors(body: dict[str, Any], confinements: Confinements) -> None:
    _filter(body, "update_filter", confinements, alone=True)


def _by_filter(body: dict[str, Any], confinements: Confinements) -> None:
    if body.get("points") is not None:
        raise Unconfined(BY_IDS)
    expect_object(
        body.get("filter"), "filter"
    )  # Qdrant requires one; the conditions alone would select all points of the tenant
    _filter(body, "filter", confinements, alone=True)


def _set_payload(body: dict[str, Any], confinements: Confinements) -> None:
    if body.get("key") is not None:
        raise Unconfined(BELOW_A_KEY)
    payload = expect_object(body.get("payload"), "payload")
    for root in sorted(roots_of(confinements)):
        if root in payload:
            raise Unconfined(SET.format(root))
    marks_of(confinements)  # raises for conditions that exclude each other
    _by_filter(body, confinements)


def _overwrite_payload(body: dict[str, Any], confinements: Confinements) -> None:
    _set_payload(body, confinements)
    body["payload"] = _marked(body["payload"], confinements)


def _delete_payload(body: dict[str, Any], confinements: Confinements) -> None:
    for path in _array(body.get("keys"), "keys"):
        check_deleted(path, confinements)
    _by_filter(body, confinements)


def check_deleted(path: Any, confinements: Confinements) -> None:
    """Checks a payload path to delete. Raises :class:`Unconfined` for a condition's key."""
    match = _PLAIN_PATH.fullmatch(path) if isinstance(path, str) else None
    if match is None or match.group(1) in roots_of(confinements):
        raise Unconfined(_KEPT)


def _batch(body: dict[str, Any], confinements: Confinements) -> None:
    for operation in _array(body.get("operations"), "operations"):
        pairs = list(expect_object(operation, "operations").items())
        change = _CHANGES.get(pairs[0][0]) if len(pairs) == 1 else None
        if change is None:
            raise Unconfined(NOT_OF_A_BATCH)
        change(expect_object(pairs[0][1], pairs[0][0]), confinements)


def _marked(payload: Any, confinements: Confinements) -> dict[str, Any]:
    """The payload of a new point with the marks. Raises :class:`Unconfined` where it has another value for one."""
    return marked({} if payload is None else expect_object(payload, "payload"), confinements)


def _text(value: Any, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise wrong_type(where, "a string")
    return value or ""


def _array(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong_type(where, "an array")
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
_COUNTED: Final = frozenset({f"{_COLLECTION}/facet", f"{_COLLECTION}/points/count"})
"""Routes that answer with counts, or estimates."""
_GROUPED: Final = frozenset({f"{_COLLECTION}/points/query/groups", f"{_COLLECTION}/points/search/groups"})
_SEARCHED: Final = frozenset(f"{_COLLECTION}/points/search{path}" for path in ("", "/batch", "/groups"))
"""Older routes that have ``vector`` instead of ``query`` and ``using``."""
_MATRICES: Final = frozenset(f"{_COLLECTION}/points/search/matrix/{path}" for path in ("offsets", "pairs"))
_Change = Callable[[dict[str, Any], Confinements], None]
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
