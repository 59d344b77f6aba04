"""Requests of :mod:`support.tenancy_requests` as messages of gRPC, and the upstream in memory that takes them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from qdrant_client import grpc as pb
from qdrant_client import models as m
from qdrant_client.conversions.conversion import RestToGrpc

from support.tenancy_requests import Request, Upstream
from tlsproxy.demo.engine import EngineError, refusals
from tlsproxy.demo.grpc_methods import POINTS

_OPERATIONS: TypeAdapter[Any] = TypeAdapter(m.UpdateOperations)
_CHANGES = {
    ("PUT", "points"): "upsert",
    ("POST", "points/delete"): "delete",
    ("POST", "points/payload"): "set_payload",
    ("PUT", "points/payload"): "overwrite_payload",
    ("POST", "points/payload/delete"): "delete_payload",
    ("POST", "points/payload/clear"): "clear_payload",
    ("POST", "points/vectors/delete"): "delete_vectors",
}
_MESSAGES = {
    "upsert": ("Upsert", pb.UpsertPoints),
    "delete_points": ("Delete", pb.DeletePoints),
    "set_payload": ("SetPayload", pb.SetPayloadPoints),
    "overwrite_payload": ("OverwritePayload", pb.SetPayloadPoints),
    "delete_payload": ("DeletePayload", pb.DeletePayloadPoints),
    "clear_payload": ("ClearPayload", pb.ClearPayloadPoints),
    "delete_vectors": ("DeleteVectors", pb.DeletePointVectors),
}
DOCS = {"collection_name": "docs"}
Called = tuple[str, Any]
"""A method and its message."""


def called(request: Request) -> Called | None:
    """The same over gRPC; None where the embedded upstream has no such method."""
    body, path = request.body or {}, request.path
    if request.method == "GET":
        body = {"ids": [int(path.rpartition("/")[2])], "with_payload": True, "with_vector": True}
        path = "points"
    change = _CHANGES.get((request.method, path))
    if change is not None and "ids" not in body:
        return _change({change: body})
    if path == "points/batch":
        return "UpdateBatch", pb.UpdateBatchPoints(**DOCS, operations=map(_operation, body["operations"]))
    read = _READS.get(path)
    return None if read is None else read(body)


def _operation(change: dict[str, Any]) -> Any:
    (operation,) = _OPERATIONS.validate_python({"operations": [change]}).operations
    return RestToGrpc.convert_update_operation(operation)


def _change(change: dict[str, Any]) -> Called:
    operation = _operation(change)
    chosen = operation.WhichOneof("operation")
    method, message = _MESSAGES[chosen]
    fields = {field.name: value for field, value in getattr(operation, chosen).ListFields()}
    return method, message(**DOCS, **fields)


def _ids(values: list[Any]) -> list[Any]:
    return [RestToGrpc.convert_extended_point_id(one) for one in values]


def _filter(body: dict[str, Any]) -> dict[str, Any]:
    own = body.get("filter")
    return {} if own is None else {"filter": RestToGrpc.convert_filter(m.Filter(**own))}


def _shown(body: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if body.get("with_payload") is not None:
        shown["with_payload"] = RestToGrpc.convert_with_payload_interface(body["with_payload"])
    if "with_vector" in body:
        shown["with_vectors"] = RestToGrpc.convert_with_vectors(body["with_vector"])
    return shown


def _query(body: dict[str, Any]) -> Any:
    return RestToGrpc.convert_query_request(m.QueryRequest(**body), "docs")


def _groups(body: dict[str, Any]) -> Called:
    query = _query({name: value for name, value in body.items() if name not in {"group_by", "group_size"}})
    known = pb.QueryPointGroups.DESCRIPTOR.fields_by_name
    fields = {field.name: value for field, value in query.ListFields() if field.name in known}
    return "QueryGroups", pb.QueryPointGroups(**fields, group_by=body["group_by"], group_size=body["group_size"])


def _examples(body: dict[str, Any], name: str) -> dict[str, Any]:
    given = body.get(name, [])
    vectors = [pb.Vector(data=one) for one in given if isinstance(one, list)]
    return {name: _ids([one for one in given if not isinstance(one, list)]), f"{name}_vectors": vectors}


def _recommend(body: dict[str, Any]) -> Any:
    each = _examples(body, "positive") | _examples(body, "negative")
    return pb.RecommendPoints(**DOCS, **each, **_filter(body), limit=body["limit"])


def _example(value: Any) -> Any:
    if isinstance(value, list):
        return pb.VectorExample(vector=pb.Vector(data=value))
    return pb.VectorExample(id=RestToGrpc.convert_extended_point_id(value))


def _discover(body: dict[str, Any]) -> Any:
    pairs = [
        pb.ContextExamplePair(positive=_example(one["positive"]), negative=_example(one["negative"]))
        for one in body["context"]
    ]
    target = pb.TargetVector(single=_example(body["target"]))
    return pb.DiscoverPoints(**DOCS, target=target, context=pairs, **_filter(body), limit=body["limit"])


_READS = {
    # The local mode, unlike Qdrant, answers with a point as often as it is asked for.
    "points": lambda body: ("Get", pb.GetPoints(**DOCS, ids=_ids(list(dict.fromkeys(body["ids"]))), **_shown(body))),
    "points/scroll": lambda body: (
        "Scroll",
        pb.ScrollPoints(**DOCS, **_filter(body), **_shown(body), limit=body.get("limit")),
    ),
    "points/count": lambda body: ("Count", pb.CountPoints(**DOCS, **_filter(body))),
    "facet": lambda body: ("Facet", pb.FacetCounts(**DOCS, key=body["key"], **_filter(body))),
    "points/query": lambda body: ("Query", _query(body)),
    "points/query/batch": lambda body: (
        "QueryBatch",
        pb.QueryBatchPoints(**DOCS, query_points=map(_query, body["searches"])),
    ),
    "points/query/groups": _groups,
    "points/recommend": lambda body: ("Recommend", _recommend(body)),
    "points/recommend/batch": lambda body: (
        "RecommendBatch",
        pb.RecommendBatchPoints(**DOCS, recommend_points=map(_recommend, body["searches"])),
    ),
    "points/discover": lambda body: ("Discover", _discover(body)),
    "points/discover/batch": lambda body: (
        "DiscoverBatch",
        pb.DiscoverBatchPoints(**DOCS, discover_points=map(_discover, body["searches"])),
    ),
    "points/search/matrix/pairs": lambda body: (
        "SearchMatrixPairs",
        pb.SearchMatrixPoints(**DOCS, sample=body["sample"], **_filter(body)),
    ),
}


class Refused(Exception):
    """``status`` is REST's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def call(upstream: Upstream, method: str, message: Any) -> Any:
    """The response. Raises :class:`Refused`."""
    row = POINTS[method]
    try:
        with refusals():
            return row.reply(getattr(upstream.local, row.call)(collection_name="docs", **row.arguments(message)))
    except EngineError as error:
        raise Refused(int(error.status), str(error)) from None
