"""What each field of an answer to a tenant is taken over: its own points, or more than these, and what is done then.

A table by the names of Qdrant's models (REST) and messages (gRPC), over all that a confinable operation may answer. A
test holds it against those of Qdrant's client library: a field that a newer one has needs a row. Of gRPC's answers, a
field that has no row here is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from tlsproxy.qdrant.operations import Operation
from tlsproxy.wire.protobuf import fields
from tlsproxy.wire.steps import Steps


class Over(Enum):
    """What a field is taken over."""

    WITHIN = "see its own fields"
    OWN = "the caller's points: the conditions are in every filter that chooses them"
    COUNTED = "the caller's points, counted: the request says that this is to be exact"
    SCORED = "the caller's points, and where words are counted, those of its corpus"
    CHANGES = "all changes of the shard: told, since updates are waited for and compared by it"
    TIME = "the time it took, which depends on all points: told"
    OUTCOME = "the request: whether it was done"
    REMOVED = "whatever was read to answer, of all points: removed"


_POINT: Final = {
    "id": Over.OWN,
    "payload": Over.OWN,
    "vector": Over.OWN,
    "vectors": Over.OWN,
    "shard_key": Over.OWN,
    "order_value": Over.OWN,
}
_SCORED: Final = {**_POINT, "score": Over.SCORED, "version": Over.CHANGES}
_GROUP: Final = {"id": Over.OWN, "hits": Over.WITHIN, "lookup": Over.OWN}
_HIT: Final = {"value": Over.OWN, "count": Over.COUNTED}

FIELDS: Final[Mapping[str, Mapping[str, Over]]] = {
    "CountResult": {"count": Over.COUNTED},
    "FacetResponse": {"hits": Over.WITHIN},
    "FacetValueHit": _HIT,
    "FacetHit": _HIT,
    "QueryResponse": {"points": Over.WITHIN},
    "BatchResult": {"result": Over.WITHIN},
    "GroupsResult": {"groups": Over.WITHIN},
    "PointGroup": _GROUP,
    "ScrollResult": {"points": Over.WITHIN, "next_page_offset": Over.OWN},
    "ScoredPoint": _SCORED,
    "Record": _POINT,
    "RetrievedPoint": _POINT,
    "SearchMatrixPairs": {"pairs": Over.WITHIN},
    "SearchMatrixPairsResponse": {"pairs": Over.WITHIN},
    "SearchMatrixPair": {"a": Over.OWN, "b": Over.OWN, "score": Over.SCORED},
    "SearchMatrixOffsets": dict.fromkeys(("offsets_row", "offsets_col", "ids"), Over.OWN) | {"scores": Over.SCORED},
    "SearchMatrixOffsetsResponse": dict.fromkeys(("offsets_row", "offsets_col", "ids"), Over.OWN)
    | {"scores": Over.SCORED},
    "UpdateResult": {"operation_id": Over.CHANGES, "status": Over.OUTCOME},
}
"""But for the envelopes: REST's and gRPC's."""

ENVELOPE: Final = {"result": Over.WITHIN, "status": Over.OUTCOME, "time": Over.TIME, "usage": Over.REMOVED}
"""Of each answer over REST; one that is an error has no ``result``."""

_ANSWER: Final = {1: Over.WITHIN, 2: Over.TIME, 3: Over.REMOVED}
MESSAGES: Final[Mapping[str, Mapping[int, Over]]] = {
    f"/qdrant.Points/{method}": _ANSWER
    for method in (
        *("Search", "SearchBatch", "SearchGroups", "SearchMatrixPairs", "SearchMatrixOffsets"),
        *("Query", "QueryBatch", "QueryGroups", "Count", "Facet", "Upsert", "Delete", "UpdateVectors", "DeleteVectors"),
        *("SetPayload", "OverwritePayload", "DeletePayload", "UpdateBatch"),
    )
} | {"/qdrant.Points/Scroll": {1: Over.OWN, 2: Over.WITHIN, 3: Over.TIME, 4: Over.REMOVED}}
"""Of each confinable method's answer: its fields, by their numbers."""

STEP: Final = 1000
"""Fields of one step, at some microseconds each."""


class OwnAnswer:
    """The reduction of one method's answer to what has a row above, and is not removed. Its errors pass."""

    __slots__ = ("_kept",)

    hides_errors = False

    def __init__(self, operation: Operation) -> None:
        table = MESSAGES[operation.path]
        self._kept = frozenset(number for number, over in table.items() if over is not Over.REMOVED)

    def reducing(self, body: bytes) -> Steps[bytes]:
        """``body`` is one message. Raises ValueError for what is not such a message."""
        kept = []
        for count, one in enumerate(fields(body), start=1):
            if not count % STEP:
                yield
            if one.number in self._kept:
                kept.append(one.raw)
        return b"".join(kept)
