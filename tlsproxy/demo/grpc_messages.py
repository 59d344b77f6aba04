"""Conversion of Qdrant's gRPC messages to arguments of qdrant-client's local mode, and of its results to messages.

It uses qdrant-client's own conversions, and raises ValueError for what they cannot convert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdrant_client import grpc as pb
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.http import models

if TYPE_CHECKING:
    from collections.abc import Callable


def given(message: Any, **conversions: tuple[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """The fields of ``message`` that are set, as ``argument=(field, conversion)``."""
    return {
        argument: convert(getattr(message, field))
        for argument, (field, convert) in conversions.items()
        if message.HasField(field)
    }


def same(value: Any) -> Any:
    return value


def done(result: Any) -> Any:
    return pb.CollectionOperationResponse(result=result)


def aliases(found: models.CollectionsAliasesResponse) -> Any:
    return pb.ListAliasesResponse(aliases=[RestToGrpc.convert_alias_description(alias) for alias in found.aliases])


def create(message: Any) -> dict[str, Any]:
    return {
        "metadata": GrpcToRest.convert_payload(message.metadata) or None,
        **given(
            message,
            vectors_config=("vectors_config", GrpcToRest.convert_vectors_config),
            sparse_vectors_config=("sparse_vectors_config", GrpcToRest.convert_sparse_vector_config),
        ),
    }


def update(message: Any) -> dict[str, Any]:
    return {
        "metadata": GrpcToRest.convert_payload(message.metadata) or None,
        **given(
            message,
            vectors_config=("vectors_config", GrpcToRest.convert_vectors_config_diff),
            sparse_vectors_config=("sparse_vectors_config", GrpcToRest.convert_sparse_vector_config),
        ),
    }


def selection(message: Any) -> dict[str, Any]:
    """Payload and vectors to return. In gRPC an unset selector means none, for every method."""
    return {"with_payload": False, "with_vectors": False} | given(
        message,
        with_payload=("with_payload", GrpcToRest.convert_with_payload_selector),
        with_vectors=("with_vectors", GrpcToRest.convert_with_vectors_selector),
    )


def query(message: Any) -> dict[str, Any]:
    return {
        "prefetch": [GrpcToRest.convert_prefetch_query(one) for one in message.prefetch] or None,
        **selection(message),
        **given(
            message,
            query=("query", GrpcToRest.convert_query),
            using=("using", same),
            query_filter=("filter", GrpcToRest.convert_filter),
            search_params=("params", GrpcToRest.convert_search_params),
            limit=("limit", same),
            score_threshold=("score_threshold", same),
            lookup_from=("lookup_from", GrpcToRest.convert_lookup_location),
        ),
    }


def recommended(message: Any) -> Any:
    """RecommendPoints or RecommendPointGroups as the query that it is."""
    made = pb.RecommendInput(strategy=message.strategy if message.HasField("strategy") else None)
    for name in ("positive", "negative"):
        getattr(made, name).extend(pb.VectorInput(id=one) for one in getattr(message, name))
        getattr(made, name).extend(map(_vector_input, getattr(message, f"{name}_vectors")))
    return _as_query(message, pb.Query(recommend=made))


def discovered(message: Any) -> Any:
    """DiscoverPoints as the query that it is: with a target, or of contexts alone."""
    pairs = [
        pb.ContextInputPair(positive=_example_input(one.positive), negative=_example_input(one.negative))
        for one in message.context
    ]
    context = pb.ContextInput(pairs=pairs)
    if not message.HasField("target"):
        return _as_query(message, pb.Query(context=context))
    target = _example_input(message.target.single)
    return _as_query(message, pb.Query(discover=pb.DiscoverInput(target=target, context=context)))


def _as_query(message: Any, query_: Any) -> Any:
    kind = pb.QueryPointGroups if "group_by" in message.DESCRIPTOR.fields_by_name else pb.QueryPoints
    known = kind.DESCRIPTOR.fields_by_name
    return kind(query=query_, **{field.name: value for field, value in message.ListFields() if field.name in known})


def _example_input(example: Any) -> Any:
    return pb.VectorInput(id=example.id) if example.HasField("id") else _vector_input(example.vector)


def _vector_input(vector: Any) -> Any:
    if vector.HasField("sparse"):
        return pb.VectorInput(sparse=vector.sparse)
    return pb.VectorInput(dense=vector.dense if vector.HasField("dense") else pb.DenseVector(data=vector.data))


def batch_of(message: Any, requests: Any, query_of: Callable[[Any], Any]) -> Any:
    """A batch of another kind of requests as one of queries."""
    return pb.QueryBatchPoints(collection_name=message.collection_name, query_points=map(query_of, requests))


def query_batch(message: Any) -> dict[str, Any]:
    """Queries of a batch. As in Qdrant, inner collection names are ignored."""
    renamed = {"query_filter": "filter", "search_params": "params", "with_vectors": "with_vector"}
    return {
        "requests": [
            models.QueryRequest(
                **{renamed.get(key, key): value for key, value in query(one).items()},
                **given(one, offset=("offset", same)),
            )
            for one in message.query_points
        ]
    }


def query_groups(message: Any) -> dict[str, Any]:
    return {
        "group_by": message.group_by,
        **query(message),
        **given(message, group_size=("group_size", same), with_lookup=("with_lookup", GrpcToRest.convert_with_lookup)),
    }


def scroll(message: Any) -> dict[str, Any]:
    return {
        **selection(message),
        **given(
            message,
            scroll_filter=("filter", GrpcToRest.convert_filter),
            offset=("offset", GrpcToRest.convert_point_id),
            limit=("limit", same),
            order_by=("order_by", GrpcToRest.convert_order_by),
        ),
    }


def retrieved(record: models.Record) -> Any:
    """Without a payload it has an empty one: a map is never absent."""
    return RestToGrpc.convert_record(record.model_copy(update={"payload": record.payload or {}}))


def scrolled(page: tuple[list[models.Record], models.ExtendedPointId | None]) -> Any:
    records, offset = page
    return pb.ScrollResponse(
        result=[retrieved(record) for record in records],
        next_page_offset=None if offset is None else RestToGrpc.convert_extended_point_id(offset),
    )


def scored(answer: models.QueryResponse) -> list[Any]:
    return [RestToGrpc.convert_scored_point(point) for point in answer.points]


def batch(answers: list[models.QueryResponse]) -> list[Any]:
    return [pb.BatchResult(result=scored(answer)) for answer in answers]


def matrix(message: Any) -> dict[str, Any]:
    # Qdrant's defaults: 10 sampled points, the 3 nearest of each.
    return {"sample": 10, "limit": 3} | given(
        message,
        query_filter=("filter", GrpcToRest.convert_filter),
        sample=("sample", same),
        limit=("limit", same),
        using=("using", same),
    )


def facet(message: Any) -> dict[str, Any]:
    return {
        "key": message.key,
        **given(message, facet_filter=("filter", GrpcToRest.convert_filter), limit=("limit", same)),
    }


def index(message: Any) -> dict[str, Any]:
    if message.HasField("field_index_params"):
        params = GrpcToRest.convert_payload_schema_params(message.field_index_params)
        return {"field_name": message.field_name, "field_schema": params}
    name = pb.FieldType.Name(message.field_type).removeprefix("FieldType").lower()
    return {"field_name": message.field_name, "field_schema": models.PayloadSchemaType(name)}


def written(result: models.UpdateResult) -> Any:
    return pb.PointsOperationResponse(result=RestToGrpc.convert_update_result(result))


def operation(name: str, message: Any) -> models.UpdateOperation:
    """A write as the batch operation ``name``, which has the same fields as the method of its own."""
    kind = pb.PointsUpdateOperation.DESCRIPTOR.fields_by_name[name].message_type
    fields = {field.name: value for field, value in message.ListFields() if field.name in kind.fields_by_name}
    write = getattr(pb.PointsUpdateOperation, kind.name)(**fields)
    return GrpcToRest.convert_points_update_operation(pb.PointsUpdateOperation(**{name: write}))


def retrieve(message: Any) -> dict[str, Any]:
    return {"ids": [GrpcToRest.convert_point_id(one) for one in message.ids], **selection(message)}


def index_name(message: Any) -> dict[str, Any]:
    return {"field_name": message.field_name}
