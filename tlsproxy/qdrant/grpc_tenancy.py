"""Confines a gRPC message to the points that meet the caller's payload conditions, or refuses it.

The rules are those of :mod:`tlsproxy.qdrant.rest_tenancy`, for the message of the method that corresponds to a route: a
table, whose rows are :class:`Search` and :class:`Change`. A method without a row is refused. A few methods go upstream
as others, which can be confined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.authz.access import Confinements
from tlsproxy.errors import Unconfined
from tlsproxy.qdrant import tenant_texts
from tlsproxy.qdrant.grpc_changes import Change
from tlsproxy.qdrant.grpc_conditions import RewriteState, Within
from tlsproxy.qdrant.grpc_examples import EXAMPLE, VECTOR
from tlsproxy.qdrant.grpc_retrieval import RetrievedPoints, scrolled
from tlsproxy.qdrant.grpc_rewrite import MAX_FIELDS, Reading
from tlsproxy.qdrant.grpc_searches import Search
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.qdrant.tenant_examples import Question
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import delimited


def is_confinable_call(operation: Operation) -> bool:
    """Whether :func:`confined` has a row for it."""
    return operation.path in CONFINED


@dataclass(frozen=True, slots=True)
class ConfinedMessage:
    """``content`` is to be sent; ``questions`` are to be asked first."""

    content: bytes = field(repr=False)
    questions: tuple[Question, ...] = ()

    @property
    def beside(self) -> int:
        """Bytes that the questions take: their ids, and twice these as text."""
        return 2 * sum(len(one.body) for one in self.questions)


def confined(
    operation: Operation,
    collection: str,
    message: bytes,
    confinements: Confinements,
    facts: Facts | None,
    *,
    fields: int = MAX_FIELDS,
) -> Steps[ConfinedMessage]:
    """Confines a whole message about a collection, of at most so many ``fields``.

    Raises :class:`Unconfined`, :class:`BadRequest`, :class:`ProtobufError`, and :class:`FactsNeeded` where it depends
    on the collection's facts.
    """
    confine = CONFINED.get(operation.path)
    if confine is None:
        raise Unconfined(tenant_texts.NOT_CONFINED)
    state = RewriteState(collection, confinements, Reading(fields), facts)
    made = ConfinedMessage((yield from confine(message, state)), state.examples.questions(confinements))
    if made.questions:
        yield state.reading.memory + made.beside
    return made


def method_of_confined(operation: Operation) -> str:
    """Path of the method that takes the message which :func:`confined` makes."""
    return _SENT_AS.get(operation.path, operation.path)


def reshaping_of(operation: Operation, framed: bytes) -> Reducer | None:
    """Makes an answer to the confined message, ``framed`` as for gRPC, one to the operation; None where it is one."""
    return RetrievedPoints(framed) if operation.path == _GET else None


def _retrieval(content: bytes, state: RewriteState) -> Steps[bytes]:
    return (yield from scrolled(content, state.confinements, state.reading))


def _operation(content: bytes, state: RewriteState) -> Steps[bytes]:
    """PointsUpdateOperation. A selector that stands for an operation (until 1.6) is made one."""
    chosen = state.reading.alone("PointsUpdateOperation", content)
    number = 0 if chosen is None else _SELECTORS.get(chosen.number, chosen.number)
    if chosen is None or number not in _OPERATIONS:
        raise Unconfined(tenant_texts.NOT_OF_A_BATCH)
    change = chosen.content() if number == chosen.number else delimited(1, chosen.content())
    sent_as, row = _OPERATIONS[number]
    return delimited(sent_as, (yield from row.confined(change, state)))


def _prefetch(content: bytes, state: RewriteState) -> Steps[bytes]:
    return (yield from state.reading.deeper(_PREFETCH.confined(content, state)))


_WITH_LOOKUP: Final = tenant_texts.LOOKS_UP.format("with_lookup")

_POINT: Final = Change("PointStruct", payload=3, makes=True, marks=3).confined
_SEARCH: Final = Search("SearchPoints", filter=3, params=7, dense=2, sparse=15, using=10)
_PREFETCH: Final = Search(
    "PrefetchQuery", filter=4, params=5, inputs={2: "Query"}, lookup=8, using=3, within={1: _prefetch}
)
_QUERY: Final = Search(
    "QueryPoints", filter=5, params=6, inputs={3: "Query"}, lookup=14, using=4, within={2: _prefetch}
)
_RECOMMEND: Final = Search(
    "RecommendPoints",
    filter=4,
    params=8,
    lookup=13,
    using=11,
    inputs={2: EXAMPLE, 3: EXAMPLE, 17: VECTOR, 18: VECTOR},
)
_DISCOVER: Final = Search(
    "DiscoverPoints", filter=4, params=7, inputs={2: "TargetVector", 3: "ContextExamplePair"}, lookup=11, using=9
)
_MATRIX: Final = Search("SearchMatrixPoints", filter=2, using=5, matrix=True)

_SELECTORS: Final = {2: 9, 6: 10}
_OPERATIONS: Final = {
    1: (1, Change("PointsUpdateOperation.PointStructList", update_filter=3, within={1: _POINT})),
    3: (3, Change("PointsUpdateOperation.SetPayload", payload=1, selector=2, key=4)),
    4: (4, Change("PointsUpdateOperation.OverwritePayload", payload=1, marks=1, selector=2, key=4)),
    5: (5, Change("PointsUpdateOperation.DeletePayload", keys=1, selector=2)),
    7: (7, Change("PointsUpdateOperation.UpdateVectors", update_filter=3)),
    8: (8, Change("PointsUpdateOperation.DeleteVectors", selector=1)),
    9: (9, Change("PointsUpdateOperation.DeletePoints", selector=1)),
    10: (4, Change("PointsUpdateOperation.ClearPayload", selector=1, marks=1, renumbered={1: 2, 2: 3})),
}
"""By the field of PointsUpdateOperation: that of the operation that is sent, and how it is confined."""
_GET: Final = "/qdrant.Points/Get"
_SENT_AS: Final = {
    _GET: "/qdrant.Points/Scroll",
    "/qdrant.Points/ClearPayload": "/qdrant.Points/OverwritePayload",
}
"""Methods that cannot be confined → those that can, and do the same."""
_ROWS: Final[Mapping[str, Search | Change]] = {
    "Search": _SEARCH,
    "SearchBatch": Search("SearchBatchPoints", within={2: _SEARCH.confined}),
    "SearchGroups": Search(
        "SearchPointGroups", filter=3, params=6, dense=2, sparse=16, using=8, exact=True, refused={13: _WITH_LOOKUP}
    ),
    "SearchMatrixPairs": _MATRIX,
    "SearchMatrixOffsets": _MATRIX,
    "Query": _QUERY,
    "QueryBatch": Search("QueryBatchPoints", within={2: _QUERY.confined}),
    "QueryGroups": Search(
        "QueryPointGroups", filter=5, params=6, inputs={3: "Query"}, lookup=10, using=4, exact=True,
        within={2: _prefetch}, refused={15: _WITH_LOOKUP},
    ),
    "Recommend": _RECOMMEND,
    "RecommendBatch": Search("RecommendBatchPoints", within={2: _RECOMMEND.confined}),
    "RecommendGroups": Search(
        "RecommendPointGroups", filter=4, params=7, lookup=11, using=9, exact=True, refused={15: _WITH_LOOKUP},
        inputs={2: EXAMPLE, 3: EXAMPLE, 18: VECTOR, 19: VECTOR},
    ),
    "Discover": _DISCOVER,
    "DiscoverBatch": Search("DiscoverBatchPoints", within={2: _DISCOVER.confined}),
    "Scroll": Search("ScrollPoints", filter=2),
    "Count": Search("CountPoints", filter=2, set=3),
    "Facet": Search("FacetCounts", filter=3, set=5),
    "Upsert": Change("UpsertPoints", update_filter=6, within={3: _POINT}),
    "Delete": Change("DeletePoints", selector=3),
    "UpdateVectors": Change("UpdatePointVectors", update_filter=6),
    "DeleteVectors": Change("DeletePointVectors", selector=3),
    "SetPayload": Change("SetPayloadPoints", payload=3, selector=5, key=8),
    "OverwritePayload": Change("SetPayloadPoints", payload=3, marks=3, selector=5, key=8),
    "DeletePayload": Change("DeletePayloadPoints", keys=3, selector=5),
    "ClearPayload": Change("ClearPayloadPoints", selector=3, marks=3, renumbered={3: 5, 4: 6, 5: 7, 6: 9}),
    "UpdateBatch": Change("UpdateBatchPoints", within={3: _operation}),
}  # fmt: skip
CONFINED: Final[Mapping[str, Within]] = {
    _GET: _retrieval,
    **{f"/qdrant.Points/{method}": row.confined for method, row in _ROWS.items()},
}
"""By the method's path. The collections of a batch's requests are checked by `grpc_decision.CollectionFinder`."""
