"""The messages of Qdrant's gRPC API that are scanned: their fields, and which of them name collections.

A table of shapes by the message's name in Qdrant's .proto files, and one of the message of each method. A field number
without a row is refused to a caller whose rights depend on the message, since a newer Qdrant may name a collection by
it. A test compares all numbers with the descriptors of Qdrant's client library.
"""

from __future__ import annotations

from typing import Final

from tlsproxy.wire.protobuf import Shape

COLLECTION: Final = "collection"
"""The collection of the call, in field 1 of each method's message."""
OTHER: Final = "other"
"""A further collection, whose vectors or payloads are read."""
INNER: Final = "inner"
"""The collection of a request within a batch. Qdrant uses that of the batch only."""
CHANGED: Final = "changed"
"""A collection or alias of an action on aliases."""

_NAMED: Final = {1: COLLECTION}
_NAMED_OTHER: Final = {1: OTHER}
_NAMED_INNER: Final = {1: INNER}
_BATCHED: Final = {
    1: "upsert_points",
    2: "delete_points",
    3: "set_payload",
    4: "overwrite_payload",
    5: "delete_payload",
    6: "clear_payload",
    7: "update_vectors",
    8: "delete_vectors",
    9: "delete_points",
    10: "clear_payload",
}
"""Fields of an operation of a batch → the operation's name."""


def _about_collection(*more: int, repeated: tuple[int, ...] = ()) -> Shape:
    return Shape(names=_NAMED, skipped=frozenset(more), repeated=frozenset(repeated))


def _batch(of: str) -> Shape:
    return Shape(names=_NAMED, nested={2: of}, skipped=frozenset({3, 4}), repeated=frozenset({2}))


def _read(names: dict[int, str], nested: dict[int, str], *skipped: int, repeated: tuple[int, ...] = ()) -> Shape:
    return Shape(names=names, nested=nested, skipped=frozenset(skipped), repeated=frozenset(repeated))


def _search(names: dict[int, str]) -> Shape:
    return _read(names, {}, 2, 3, 4, *range(6, 16), repeated=(2,))


def _recommend(names: dict[int, str]) -> Shape:
    nested = {13: "LookupLocation"}
    return _read(names, nested, *range(2, 6), *range(7, 13), 14, *range(16, 21), repeated=(2, 3, 17, 18))


def _discover(names: dict[int, str]) -> Shape:
    return _read(names, {11: "LookupLocation"}, *range(2, 11), 12, 13, 14, repeated=(3,))


def _query(names: dict[int, str]) -> Shape:
    return _read(names, {2: "PrefetchQuery", 14: "LookupLocation"}, *range(3, 14), 15, repeated=(2,))


_FILE: Final = _about_collection(2, 3)
_RANGE_OF_FILE: Final = _about_collection(2, 3, 4, 5)

SHAPES: Final[dict[str, Shape]] = {
    # Where further collections are named
    "LookupLocation": Shape(names=_NAMED_OTHER, skipped=frozenset({2, 3})),
    "WithLookup": Shape(names=_NAMED_OTHER, skipped=frozenset({2, 3})),
    "PrefetchQuery": _read({}, {1: "PrefetchQuery", 8: "LookupLocation"}, *range(2, 8), repeated=(1,)),
    # Collections
    "GetCollectionInfoRequest": _about_collection(),
    "ListCollectionAliasesRequest": _about_collection(),
    "CollectionClusterInfoRequest": _about_collection(),
    "CollectionExistsRequest": _about_collection(),
    "CreateCollection": _about_collection(*range(4, 13), *range(14, 21), repeated=(18,)),
    "UpdateCollection": _about_collection(*range(2, 11), repeated=(10,)),
    "DeleteCollection": _about_collection(2),
    "ChangeAliases": _read({}, {1: "AliasOperations"}, 2, repeated=(1,)),
    "AliasOperations": _read({}, {1: "CreateAlias", 2: "RenameAlias", 3: "DeleteAlias"}),
    "CreateAlias": Shape(names={1: CHANGED, 2: CHANGED}),
    "RenameAlias": Shape(names={1: CHANGED, 2: CHANGED}),
    "DeleteAlias": Shape(names={1: CHANGED}),
    "UpdateCollectionClusterSetupRequest": _about_collection(*range(2, 11)),
    "CreateShardKeyRequest": _about_collection(2, 3),
    "DeleteShardKeyRequest": _about_collection(2, 3),
    "ListShardKeysRequest": _about_collection(),
    # Changes of points
    "UpsertPoints": _about_collection(*range(2, 9), repeated=(3,)),
    "DeletePoints": _about_collection(*range(2, 7)),
    "UpdatePointVectors": _about_collection(*range(2, 8), repeated=(3,)),
    "DeletePointVectors": _about_collection(*range(2, 8)),
    "SetPayloadPoints": _about_collection(2, 3, *range(5, 10), repeated=(3,)),
    "DeletePayloadPoints": _about_collection(2, 3, *range(5, 9), repeated=(3,)),
    "ClearPayloadPoints": _about_collection(*range(2, 7)),
    "UpdateBatchPoints": _read(_NAMED, {3: "PointsUpdateOperation"}, 2, 4, 5, repeated=(3,)),
    "PointsUpdateOperation": Shape(present=_BATCHED),
    "CreateFieldIndexCollection": _about_collection(*range(2, 8)),
    "DeleteFieldIndexCollection": _about_collection(*range(2, 6)),
    "CreateVectorNameRequest": _about_collection(*range(2, 8)),
    "DeleteVectorNameRequest": _about_collection(*range(2, 6)),
    # Reads of points
    "GetPoints": _about_collection(2, *range(4, 9), repeated=(2,)),
    "ScrollPoints": _about_collection(2, 3, 4, *range(6, 12)),
    "CountPoints": _about_collection(*range(2, 7)),
    "FacetCounts": _about_collection(*range(2, 9)),
    "SearchMatrixPoints": _about_collection(*range(2, 9)),
    "SearchPoints": _search(_NAMED),
    "SearchBatchPoints": _batch("SearchPoints of a batch"),
    "SearchPoints of a batch": _search(_NAMED_INNER),
    "SearchPointGroups": _read(_NAMED, {13: "WithLookup"}, *range(2, 13), 14, 15, 16, repeated=(2,)),
    "RecommendPoints": _recommend(_NAMED),
    "RecommendBatchPoints": _batch("RecommendPoints of a batch"),
    "RecommendPoints of a batch": _recommend(_NAMED_INNER),
    "RecommendPointGroups": _read(
        _NAMED,
        {11: "LookupLocation", 15: "WithLookup"},
        *range(2, 11), 12, 13, 14, *range(17, 22),
        repeated=(2, 3, 18, 19),
    ),
    "DiscoverPoints": _discover(_NAMED),
    "DiscoverBatchPoints": _batch("DiscoverPoints of a batch"),
    "DiscoverPoints of a batch": _discover(_NAMED_INNER),
    "QueryPoints": _query(_NAMED),
    "QueryBatchPoints": _batch("QueryPoints of a batch"),
    "QueryPoints of a batch": _query(_NAMED_INNER),
    "QueryPointGroups": _read(
        _NAMED,
        {2: "PrefetchQuery", 10: "LookupLocation", 15: "WithLookup"},
        *range(3, 10), *range(11, 15), 16, 17,
        repeated=(2,),
    ),
    # Snapshots
    "CreateSnapshotRequest": _about_collection(),
    "ListSnapshotsRequest": _about_collection(),
    "DeleteSnapshotRequest": _about_collection(2),
    # Files of shards. The client library has no descriptors of these: the numbers are those of Qdrant 1.19.
    "ListFilesRequest": _FILE,
    "FileExistsRequest": _FILE,
    "FileLengthRequest": _FILE,
    "ReadWholeRequest": _FILE,
    "ReadBytesRequest": _RANGE_OF_FILE,
    "ReadBytesStreamRequest": _RANGE_OF_FILE,
    "ReadBatchRequest": Shape(names=_NAMED, skipped=frozenset({2, 3, 4}), repeated=frozenset({4})),
    # Gone in 1.19, and not described anywhere here: nothing but the collection is taken from it.
    "ReadMultiRequest": _about_collection(),
}  # fmt: skip


def _part(*numbers: int, repeated: tuple[int, ...] = ()) -> Shape:
    return Shape(skipped=frozenset(numbers), repeated=frozenset(repeated))


PARTS: Final[dict[str, Shape]] = {
    "Query": _part(*range(1, 13)),
    "VectorInput": _part(*range(1, 8)),
    "NearestInputWithMmr": _part(1, 2),
    "RecommendInput": _part(1, 2, 3, repeated=(1, 2)),
    "DiscoverInput": _part(1, 2),
    "ContextInput": _part(1, repeated=(1,)),
    "ContextInputPair": _part(1, 2),
    "RelevanceFeedbackInput": _part(1, 2, 3, repeated=(2,)),
    "FeedbackItem": _part(1, 2),
    "TargetVector": _part(1),
    "ContextExamplePair": _part(1, 2),
    "VectorExample": _part(1, 2),
    "ShardKeySelector": _part(1, 2, repeated=(1,)),
    "ShardKey": _part(1, 2),
    "Vector": _part(1, 2, 3, *range(101, 107), repeated=(1,)),
    "SearchParams": _part(*range(1, 7)),
    "QuantizationSearchParams": _part(1, 2, 3),
    "IdfParams": _part(1),
    "PointsSelector": _part(1, 2),
    "PointsIdsList": _part(1, repeated=(1,)),
    "PointStruct": _part(1, 3, 4, repeated=(3,)),
    "Value": _part(*range(1, 8)),
    "Struct": _part(1, repeated=(1,)),
    "Struct.FieldsEntry": _part(1, 2),
    "ListValue": _part(1, repeated=(1,)),
    "PointsUpdateOperation.PointStructList": _part(*range(1, 5), repeated=(1,)),
    "PointsUpdateOperation.SetPayload": _part(*range(1, 5), repeated=(1,)),
    "PointsUpdateOperation.OverwritePayload": _part(*range(1, 5), repeated=(1,)),
    "PointsUpdateOperation.DeletePayload": _part(*range(1, 4), repeated=(1,)),
    "PointsUpdateOperation.UpdateVectors": _part(*range(1, 4), repeated=(1,)),
    "PointsUpdateOperation.DeleteVectors": _part(*range(1, 4)),
    "PointsUpdateOperation.DeletePoints": _part(1, 2),
    "PointsUpdateOperation.ClearPayload": _part(1, 2),
    # What names payload keys
    "Filter": _part(1, 2, 3, 4, repeated=(1, 2, 3)),
    "MinShould": _part(1, 2, repeated=(1,)),
    "Condition": _part(*range(1, 9)),
    "FieldCondition": _part(*range(1, 11)),
    "IsEmptyCondition": _part(1),
    "IsNullCondition": _part(1),
    "NestedCondition": _part(1, 2),
    "OrderBy": _part(1, 2, 3),
    "Formula": _part(1, 2, repeated=(2,)),
    "Formula.DefaultsEntry": _part(1, 2),
    "Expression": _part(*range(1, 23)),
    "GeoDistance": _part(1, 2),
    "MultExpression": _part(1, repeated=(1,)),
    "SumExpression": _part(1, repeated=(1,)),
    "DivExpression": _part(1, 2, 3),
    "PowExpression": _part(1, 2),
    "DecayParamsExpression": _part(*range(1, 5)),
    "MaxExpression": _part(1, repeated=(1,)),
    "MinExpression": _part(1, repeated=(1,)),
    "WithPayloadSelector": _part(1, 2, 3),
    "WithVectorsSelector": _part(1, 2),
    "PayloadIncludeSelector": _part(1, repeated=(1,)),
    "PayloadExcludeSelector": _part(1, repeated=(1,)),
    "Mmr": _part(2, 3),
}
"""Messages within those above that are read to rewrite a message: to confine its caller to its points, or under a query
policy.
"""

_METHODS: Final = {
    "qdrant.Collections": {
        "Get": "GetCollectionInfoRequest",
        "Create": "CreateCollection",
        "Update": "UpdateCollection",
        "Delete": "DeleteCollection",
        "UpdateAliases": "ChangeAliases",
        "ListCollectionAliases": "ListCollectionAliasesRequest",
        "CollectionClusterInfo": "CollectionClusterInfoRequest",
        "CollectionExists": "CollectionExistsRequest",
        "UpdateCollectionClusterSetup": "UpdateCollectionClusterSetupRequest",
        "CreateShardKey": "CreateShardKeyRequest",
        "DeleteShardKey": "DeleteShardKeyRequest",
        "ListShardKeys": "ListShardKeysRequest",
    },
    "qdrant.Points": {
        "Upsert": "UpsertPoints",
        "Delete": "DeletePoints",
        "Get": "GetPoints",
        "UpdateVectors": "UpdatePointVectors",
        "DeleteVectors": "DeletePointVectors",
        "SetPayload": "SetPayloadPoints",
        "OverwritePayload": "SetPayloadPoints",
        "DeletePayload": "DeletePayloadPoints",
        "ClearPayload": "ClearPayloadPoints",
        "CreateFieldIndex": "CreateFieldIndexCollection",
        "DeleteFieldIndex": "DeleteFieldIndexCollection",
        "CreateVectorName": "CreateVectorNameRequest",
        "DeleteVectorName": "DeleteVectorNameRequest",
        "Search": "SearchPoints",
        "SearchBatch": "SearchBatchPoints",
        "SearchGroups": "SearchPointGroups",
        "Scroll": "ScrollPoints",
        "Recommend": "RecommendPoints",
        "RecommendBatch": "RecommendBatchPoints",
        "RecommendGroups": "RecommendPointGroups",
        "Discover": "DiscoverPoints",
        "DiscoverBatch": "DiscoverBatchPoints",
        "Count": "CountPoints",
        "UpdateBatch": "UpdateBatchPoints",
        "Query": "QueryPoints",
        "QueryBatch": "QueryBatchPoints",
        "QueryGroups": "QueryPointGroups",
        "Facet": "FacetCounts",
        "SearchMatrixPairs": "SearchMatrixPoints",
        "SearchMatrixOffsets": "SearchMatrixPoints",
    },
    "qdrant.Snapshots": {
        "Create": "CreateSnapshotRequest",
        "List": "ListSnapshotsRequest",
        "Delete": "DeleteSnapshotRequest",
    },
    "qdrant.StorageRead": {
        name: f"{name}Request"
        for name in (
            "ListFiles",
            "FileExists",
            "FileLength",
            "ReadBytes",
            "ReadBytesStream",
            "ReadWhole",
            "ReadBatch",
            "ReadMulti",
        )
    },
}
REQUESTS: Final = {
    f"/{service}/{method}": message for service, methods in _METHODS.items() for method, message in methods.items()
}
"""The message of each method on a collection, or on aliases."""
