"""Table of Qdrant's gRPC methods and their calls of qdrant-client's local mode, as far as it has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdrant_client import grpc as pb
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from tlsproxy.demo import grpc_messages as messages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _nothing(_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Method:
    """``call`` gets the message's collection name, if it has one, and ``arguments``; ``reply`` makes the response."""

    call: str
    arguments: Callable[[Any], dict[str, Any]]
    reply: Callable[[Any], Any]


def _write(name: str) -> Method:
    return Method(
        "batch_update_points",
        lambda message: {"update_operations": [messages.operation(name, message)]},
        lambda results: messages.written(results[0]),
    )


def _queried(query: Callable[[Any], Any], response: Callable[..., Any]) -> Method:
    """``query``: the message as QueryPoints."""

    def arguments(message: Any) -> dict[str, Any]:
        asked = query(message)
        return {**messages.query(asked), **messages.given(asked, offset=("offset", messages.same))}

    return Method("query_points", arguments, lambda answer: response(result=messages.scored(answer)))


COLLECTIONS: Mapping[str, Method] = {
    "Get": Method(
        "get_collection",
        _nothing,
        lambda info: pb.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info)),
    ),
    "List": Method(
        "get_collections",
        _nothing,
        lambda found: pb.ListCollectionsResponse(
            collections=[pb.CollectionDescription(name=one.name) for one in found.collections]
        ),
    ),
    "CollectionExists": Method(
        "collection_exists",
        _nothing,
        lambda exists: pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists)),
    ),
    "Create": Method("create_collection", messages.create, messages.done),
    # Local mode answers false where it had nothing to change; Qdrant answers true.
    "Update": Method("update_collection", messages.update, lambda _: messages.done(result=True)),
    "Delete": Method("delete_collection", _nothing, messages.done),
    "UpdateAliases": Method(
        "update_collection_aliases",
        lambda message: {
            "change_aliases_operations": [GrpcToRest.convert_alias_operations(action) for action in message.actions]
        },
        messages.done,
    ),
    "ListCollectionAliases": Method("collection_aliases", _nothing, messages.aliases),
    "ListAliases": Method("get_aliases", _nothing, messages.aliases),
}

POINTS: Mapping[str, Method] = {
    "Upsert": _write("upsert"),
    "Delete": _write("delete_points"),
    "UpdateVectors": _write("update_vectors"),
    "DeleteVectors": _write("delete_vectors"),
    "SetPayload": _write("set_payload"),
    "OverwritePayload": _write("overwrite_payload"),
    "DeletePayload": _write("delete_payload"),
    "ClearPayload": _write("clear_payload"),
    "UpdateBatch": Method(
        "batch_update_points",
        lambda message: {
            "update_operations": [GrpcToRest.convert_points_update_operation(one) for one in message.operations]
        },
        lambda results: pb.UpdateBatchResponse(result=[RestToGrpc.convert_update_result(one) for one in results]),
    ),
    "CreateFieldIndex": Method("create_payload_index", messages.index, messages.written),
    "DeleteFieldIndex": Method("delete_payload_index", messages.index_name, messages.written),
    "Get": Method(
        "retrieve",
        lambda message: {
            "ids": [GrpcToRest.convert_point_id(one) for one in message.ids],
            **messages.selection(message),
        },
        lambda records: pb.GetResponse(result=[messages.retrieved(record) for record in records]),
    ),
    "Scroll": Method("scroll", messages.scroll, messages.scrolled),
    "Count": Method(
        "count",
        lambda message: messages.given(message, count_filter=("filter", GrpcToRest.convert_filter)),
        lambda counted: pb.CountResponse(result=pb.CountResult(count=counted.count)),
    ),
    "Query": _queried(messages.same, pb.QueryResponse),
    "QueryBatch": Method(
        "query_batch_points",
        messages.query_batch,
        lambda answers: pb.QueryBatchResponse(result=messages.batch(answers)),
    ),
    "Recommend": _queried(messages.recommended, pb.RecommendResponse),
    "RecommendBatch": Method(
        "query_batch_points",
        lambda message: messages.query_batch(
            messages.batch_of(message, message.recommend_points, messages.recommended)
        ),
        lambda answers: pb.RecommendBatchResponse(result=messages.batch(answers)),
    ),
    "RecommendGroups": Method(
        "query_points_groups",
        lambda message: messages.query_groups(messages.recommended(message)),
        lambda groups: pb.RecommendGroupsResponse(result=RestToGrpc.convert_groups_result(groups)),
    ),
    "Discover": _queried(messages.discovered, pb.DiscoverResponse),
    "DiscoverBatch": Method(
        "query_batch_points",
        lambda message: messages.query_batch(messages.batch_of(message, message.discover_points, messages.discovered)),
        lambda answers: pb.DiscoverBatchResponse(result=messages.batch(answers)),
    ),
    "QueryGroups": Method(
        "query_points_groups",
        messages.query_groups,
        lambda groups: pb.QueryGroupsResponse(result=RestToGrpc.convert_groups_result(groups)),
    ),
    "Facet": Method(
        "facet",
        messages.facet,
        lambda answer: pb.FacetResponse(hits=[RestToGrpc.convert_facet_value_hit(hit) for hit in answer.hits]),
    ),
    "SearchMatrixPairs": Method(
        "search_matrix_pairs",
        messages.matrix,
        lambda pairs: pb.SearchMatrixPairsResponse(result=RestToGrpc.convert_search_matrix_pairs(pairs)),
    ),
    "SearchMatrixOffsets": Method(
        "search_matrix_offsets",
        messages.matrix,
        lambda offsets: pb.SearchMatrixOffsetsResponse(result=RestToGrpc.convert_search_matrix_offsets(offsets)),
    ),
}
