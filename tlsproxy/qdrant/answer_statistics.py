"""Side channels of responses to a tenant: for each field, the points that it is computed from.

A table by the names of Qdrant's models (REST) and messages (gRPC), of all fields in responses of confinable operations;
a `count` over all points would tell of other tenants'. A test compares it with Qdrant's client library: a field of a
newer release needs a row. A field of a gRPC response without a row is removed. Operations that cannot be confined never
reach the upstream.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from tlsproxy.qdrant.operations import Operation
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import fields


class Population(Enum):
    """The points, or other facts, that a field of a response is computed from."""

    WITHIN = "see its own fields"
    OWN = "the caller's points: the conditions are in every filter that chooses them"
    COUNTED = "the caller's points, counted: the request says that this is to be exact"
    SCORED = "the caller's points, and where words are counted, those of its corpus"
    CHANGES = "all changes of the shard: shown, since clients wait for updates and compare them by it"
    TIME = "the time it took, which depends on all points: shown"
    OUTCOME = "the request: whether it was done"
    REMOVED = "whatever was read to answer, of all points: removed"


_POINT: Final = {
    "id": Population.OWN,
    "payload": Population.OWN,
    "vector": Population.OWN,
    "vectors": Population.OWN,
    "shard_key": Population.OWN,
    "order_value": Population.OWN,
}
_SCORED: Final = {**_POINT, "score": Population.SCORED, "version": Population.CHANGES}
_GROUP: Final = {"id": Population.OWN, "hits": Population.WITHIN, "lookup": Population.OWN}
_HIT: Final = {"value": Population.OWN, "count": Population.COUNTED}
_OFFSETS: Final = {
    "offsets_row": Population.OWN,
    "offsets_col": Population.OWN,
    "ids": Population.OWN,
    "scores": Population.SCORED,
}

FIELDS: Final[Mapping[str, Mapping[str, Population]]] = {
    "CountResult": {"count": Population.COUNTED},
    "FacetResponse": {"hits": Population.WITHIN},
    "FacetValueHit": _HIT,
    "FacetHit": _HIT,
    "QueryResponse": {"points": Population.WITHIN},
    "BatchResult": {"result": Population.WITHIN},
    "GroupsResult": {"groups": Population.WITHIN},
    "PointGroup": _GROUP,
    "ScrollResult": {"points": Population.WITHIN, "next_page_offset": Population.OWN},
    "ScoredPoint": _SCORED,
    "Record": _POINT,
    "RetrievedPoint": _POINT,
    "SearchMatrixPairs": {"pairs": Population.WITHIN},
    "SearchMatrixPairsResponse": {"pairs": Population.WITHIN},
    "SearchMatrixPair": {"a": Population.OWN, "b": Population.OWN, "score": Population.SCORED},
    "SearchMatrixOffsets": _OFFSETS,
    "SearchMatrixOffsetsResponse": _OFFSETS,
    "UpdateResult": {"operation_id": Population.CHANGES, "status": Population.OUTCOME},
}
"""Models and messages within the envelopes below."""

ENVELOPE: Final = {
    "result": Population.WITHIN,
    "status": Population.OUTCOME,
    "time": Population.TIME,
    "usage": Population.REMOVED,
}
"""The members of each answer over REST; an error has no ``result``."""

_ANSWER: Final = {1: Population.WITHIN, 2: Population.TIME, 3: Population.REMOVED}
MESSAGES: Final[Mapping[str, Mapping[int, Population]]] = {
    f"/qdrant.Points/{method}": _ANSWER
    for method in (
        *("Search", "SearchBatch", "SearchGroups", "SearchMatrixPairs", "SearchMatrixOffsets"),
        *("Query", "QueryBatch", "QueryGroups", "Count", "Facet", "Get"),
        *("Recommend", "RecommendBatch", "RecommendGroups", "Discover", "DiscoverBatch"),
        *("Upsert", "Delete", "UpdateVectors", "DeleteVectors"),
        *("SetPayload", "OverwritePayload", "DeletePayload", "ClearPayload", "UpdateBatch"),
    )
} | {"/qdrant.Points/Scroll": {1: Population.OWN, 2: Population.WITHIN, 3: Population.TIME, 4: Population.REMOVED}}
"""The fields of each confinable method's answer, by their numbers."""

STEP: Final = 1000
"""Fields per step, at some microseconds each."""


class AnswerReducer:
    """Removes fields without a row above, and those marked as removed, from one method's response. Errors pass."""

    __slots__ = ("_numbers",)

    hides_errors = False

    def __init__(self, operation: Operation) -> None:
        table = MESSAGES[operation.path]
        self._numbers = frozenset(number for number, over in table.items() if over is not Population.REMOVED)

    def reducing(self, body: Content) -> Steps[bytes]:
        """``body`` is one message. Raises ValueError if it is malformed."""
        reduced = []
        for count, one in enumerate(fields(bytes(body)), start=1):
            if not count % STEP:
                yield None
            if one.number in self._numbers:
                reduced.append(one.raw)
        return b"".join(reduced)
