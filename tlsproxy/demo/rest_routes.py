"""Table of Qdrant's REST routes and their calls of qdrant-client's local mode, and of those without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdrant_client.http import models as m

if TYPE_CHECKING:
    from collections.abc import Callable


def _nothing(_: Any) -> dict[str, Any]:
    return {}


def _same(result: Any) -> Any:
    return result


@dataclass(frozen=True, slots=True)
class Route:
    """``call`` takes the path's named segments, and the ``arguments`` made of the parsed ``body``."""

    method: str
    path: str
    call: str
    body: Any = None
    arguments: Callable[[Any], dict[str, Any]] = _nothing
    result: Callable[[Any], Any] = _same


_COLLECTION = "/collections/{collection_name}"
_POINTS = _COLLECTION + "/points"


def _create(body: m.CreateCollection) -> dict[str, Any]:
    config = {field: getattr(body, field) for field in body.model_fields_set - {"vectors", "sparse_vectors"}}
    return {"vectors_config": body.vectors, "sparse_vectors_config": body.sparse_vectors, **config}


def _update(body: m.UpdateCollection) -> dict[str, Any]:
    return {
        "vectors_config": body.vectors,
        "sparse_vectors_config": body.sparse_vectors,
        "metadata": body.metadata,
    }


def _given(**arguments: Any) -> dict[str, Any]:
    """Arguments without the unset ones: local mode has Qdrant's defaults for them."""
    return {name: value for name, value in arguments.items() if value is not None}


def _query(body: m.QueryRequest | m.QueryGroupsRequest) -> dict[str, Any]:
    return {
        **_given(
            query=body.query,
            using=body.using,
            prefetch=body.prefetch,
            query_filter=body.filter,
            search_params=body.params,
            limit=body.limit,
            score_threshold=body.score_threshold,
            lookup_from=body.lookup_from,
        ),
        # Qdrant's default here is false, the local client's is true.
        "with_payload": body.with_payload or False,
        "with_vectors": body.with_vector or False,
    }


def _query_batch(body: m.QueryRequestBatch) -> dict[str, Any]:
    return {
        "requests": [
            one.model_copy(update={"with_payload": one.with_payload or False, "with_vector": one.with_vector or False})
            for one in body.searches
        ]
    }


def _query_groups(body: m.QueryGroupsRequest) -> dict[str, Any]:
    return {**_query(body), **_given(group_by=body.group_by, group_size=body.group_size, with_lookup=body.with_lookup)}


def _retrieval(body: m.PointRequest) -> dict[str, Any]:
    # Qdrant's default here is false, whatever its documentation says; the local client's is true.
    return {"ids": body.ids, "with_payload": body.with_payload or False, "with_vectors": body.with_vector or False}


def _scroll(body: m.ScrollRequest) -> dict[str, Any]:
    return {
        "with_payload": True if body.with_payload is None else body.with_payload,
        "with_vectors": body.with_vector or False,
        **_given(scroll_filter=body.filter, limit=body.limit, offset=body.offset, order_by=body.order_by),
    }


def _matrix(body: m.SearchMatrixRequest) -> dict[str, Any]:
    # Qdrant's defaults: 10 sampled points, the 3 nearest of each.
    defaults = {"sample": 10, "limit": 3}
    return defaults | _given(query_filter=body.filter, sample=body.sample, limit=body.limit, using=body.using)


def _search(body: dict[str, Any]) -> m.QueryRequest:
    """The search of Qdrant before 1.10 as a query, since the local client has dropped it."""
    if "vector" not in body:
        raise ValueError("missing field `vector`")
    named = body["vector"]
    if isinstance(named, dict) and {"name", "vector"} <= named.keys():
        return m.QueryRequest(**_without(body, "vector"), query=named["vector"], using=named["name"])
    return m.QueryRequest(**_without(body, "vector"), query=named)


def _recommend(body: dict[str, Any]) -> m.QueryRequest:
    """The recommendation of the same age."""
    members = ("positive", "negative", "strategy")
    examples = m.RecommendInput(**{name: body[name] for name in members if body.get(name) is not None})
    return m.QueryRequest(**_without(body, *members), query=m.RecommendQuery(recommend=examples))


def _discover(body: dict[str, Any]) -> m.QueryRequest:
    """The discovery of the same age, which without a target is a query by context."""
    context = body.get("context") or []
    query: m.Query = m.ContextQuery(context=context)
    if body.get("target") is not None:
        query = m.DiscoverQuery(discover=m.DiscoverInput(target=body["target"], context=context))
    return m.QueryRequest(**_without(body, "target", "context"), query=query)


def _without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def _older(path: str, query: Callable[[dict[str, Any]], m.QueryRequest]) -> tuple[Route, Route]:
    """A route of that age, and that of its batches."""

    def one(body: dict[str, Any]) -> dict[str, Any]:
        request = query(body)
        return {**_query(request), **_given(offset=request.offset)}

    def batch(body: dict[str, Any]) -> dict[str, Any]:
        return _query_batch(m.QueryRequestBatch(searches=[query(each) for each in body["searches"]]))

    def listed(answers: list[m.QueryResponse]) -> list[Any]:
        return [answer.points for answer in answers]

    return (
        Route("POST", f"{_POINTS}/{path}", "query_points", dict[str, Any], one, lambda answer: answer.points),
        Route("POST", f"{_POINTS}/{path}/batch", "query_batch_points", dict[str, Any], batch, listed),
    )


def _recommend_groups(body: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {name: body[name] for name in ("group_by", "group_size") if name in body}
    return {**_query(_recommend(_without(body, *own, "with_lookup"))), **own}


def _write(method: str, path: str, body: Any, operation: Callable[[Any], Any]) -> Route:
    """A write to points as an update operation, which local mode validates as a whole before it applies any part."""
    return Route(
        method,
        _POINTS + path,
        "batch_update_points",
        body,
        lambda parsed: {"update_operations": [operation(parsed)]},
        lambda results: results[0],
    )


ROUTES: tuple[Route, ...] = (
    Route("GET", "/collections", "get_collections"),
    Route("GET", "/aliases", "get_aliases"),
    Route(
        "POST",
        "/collections/aliases",
        "update_collection_aliases",
        m.ChangeAliasesOperation,
        lambda body: {"change_aliases_operations": body.actions},
    ),
    Route("GET", _COLLECTION, "get_collection"),
    Route("PUT", _COLLECTION, "create_collection", m.CreateCollection, _create),
    # Local mode answers false where it had nothing to change; Qdrant answers true.
    Route("PATCH", _COLLECTION, "update_collection", m.UpdateCollection, _update, lambda _: True),
    Route("DELETE", _COLLECTION, "delete_collection"),
    Route("GET", _COLLECTION + "/exists", "collection_exists", result=lambda exists: {"exists": exists}),
    Route("GET", _COLLECTION + "/aliases", "collection_aliases"),
    Route(
        "PUT",
        _COLLECTION + "/index",
        "create_payload_index",
        m.CreateFieldIndex,
        lambda body: {"field_name": body.field_name, "field_schema": body.field_schema},
    ),
    Route("DELETE", _COLLECTION + "/index/{field_name}", "delete_payload_index"),
    Route(
        "PUT",
        _COLLECTION + "/vectors/{vector_name}",
        "create_vector_name",
        m.VectorNameConfig,
        lambda body: {"vector_name_config": body},
    ),
    Route("DELETE", _COLLECTION + "/vectors/{vector_name}", "delete_vector_name"),
    _write("PUT", "", m.PointInsertOperations, lambda body: m.UpsertOperation(upsert=body)),
    _write("POST", "/delete", m.PointsSelector, lambda body: m.DeleteOperation(delete=body)),
    _write("PUT", "/vectors", m.UpdateVectors, lambda body: m.UpdateVectorsOperation(update_vectors=body)),
    _write("POST", "/vectors/delete", m.DeleteVectors, lambda body: m.DeleteVectorsOperation(delete_vectors=body)),
    _write("POST", "/payload", m.SetPayload, lambda body: m.SetPayloadOperation(set_payload=body)),
    _write("PUT", "/payload", m.SetPayload, lambda body: m.OverwritePayloadOperation(overwrite_payload=body)),
    _write("POST", "/payload/delete", m.DeletePayload, lambda body: m.DeletePayloadOperation(delete_payload=body)),
    _write("POST", "/payload/clear", m.PointsSelector, lambda body: m.ClearPayloadOperation(clear_payload=body)),
    Route(
        "POST",
        _POINTS + "/batch",
        "batch_update_points",
        m.UpdateOperations,
        lambda body: {"update_operations": body.operations},
    ),
    Route("GET", _POINTS + "/{point_id}", "point"),
    Route("POST", _POINTS, "retrieve", m.PointRequest, _retrieval),
    Route(
        "POST",
        _POINTS + "/scroll",
        "scroll",
        m.ScrollRequest,
        _scroll,
        lambda page: {"points": page[0], "next_page_offset": page[1]},
    ),
    Route("POST", _POINTS + "/count", "count", m.CountRequest, lambda body: _given(count_filter=body.filter)),
    Route(
        "POST",
        _POINTS + "/query",
        "query_points",
        m.QueryRequest,
        lambda body: {**_query(body), **_given(offset=body.offset)},
    ),
    Route("POST", _POINTS + "/query/batch", "query_batch_points", m.QueryRequestBatch, _query_batch),
    Route("POST", _POINTS + "/query/groups", "query_points_groups", m.QueryGroupsRequest, _query_groups),
    *_older("search", _search),
    *_older("recommend", _recommend),
    *_older("discover", _discover),
    Route("POST", _POINTS + "/recommend/groups", "query_points_groups", dict[str, Any], _recommend_groups),
    Route("POST", _POINTS + "/search/matrix/pairs", "search_matrix_pairs", m.SearchMatrixRequest, _matrix),
    Route("POST", _POINTS + "/search/matrix/offsets", "search_matrix_offsets", m.SearchMatrixRequest, _matrix),
    Route(
        "POST",
        _COLLECTION + "/facet",
        "facet",
        m.FacetRequest,
        lambda body: {"key": body.key, **_given(facet_filter=body.filter, limit=body.limit)},
    ),
    Route("GET", _COLLECTION + "/snapshots", "list_snapshots"),
    Route("GET", "/snapshots", "list_full_snapshots"),
)

# Routes of Qdrant without a call of local mode: 501, not 404 as an unknown route.
UNSUPPORTED: tuple[tuple[str, str], ...] = (
    ("GET", "/cluster"),
    ("POST", "/cluster/recover"),
    ("DELETE", "/cluster/peer/{peer_id}"),
    ("GET", "/cluster/telemetry"),
    ("GET", "/issues"),
    ("DELETE", "/issues"),
    ("GET", "/telemetry"),
    ("POST", "/snapshots"),
    ("GET", "/snapshots/{snapshot_name}"),
    ("DELETE", "/snapshots/{snapshot_name}"),
    ("GET", _COLLECTION + "/cluster"),
    ("POST", _COLLECTION + "/cluster"),
    ("GET", _COLLECTION + "/optimizations"),
    ("GET", _COLLECTION + "/memory"),
    ("GET", _COLLECTION + "/shards"),
    ("PUT", _COLLECTION + "/shards"),
    ("POST", _COLLECTION + "/shards/delete"),
    ("POST", _COLLECTION + "/snapshots"),
    ("POST", _COLLECTION + "/snapshots/upload"),
    ("PUT", _COLLECTION + "/snapshots/recover"),
    ("GET", _COLLECTION + "/snapshots/{snapshot_name}"),
    ("DELETE", _COLLECTION + "/snapshots/{snapshot_name}"),
    ("POST", _POINTS + "/search/groups"),
)
