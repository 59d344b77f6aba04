"""Confines a gRPC message to the points that meet the caller's payload conditions, or refuses it.

The rules are those of :mod:`tlsproxy.qdrant.rest_tenancy`, for the message of the method that corresponds to a route. A
method without a row is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.authz.access import Confinements, Value
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant import rest_tenancy, scoring
from tlsproxy.qdrant.grpc_conditions import narrowed
from tlsproxy.qdrant.grpc_retrieval import RetrievedPoints, scrolled
from tlsproxy.qdrant.grpc_rewrite import MAX_FIELDS, Reading
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.qdrant.scoring import Facts, Scored
from tlsproxy.qdrant.tenant_filters import MARKED, marks_of, roots_of
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import VARINT, Field, ProtobufError, delimited, flag, varint

_EXACT: Final = 2
_QUANTIZATION: Final = 3
_INDEXED_ONLY: Final = 4
_IDF: Final = 6
"""Fields of SearchParams."""
_RESCORE: Final = 2
"""A field of QuantizationSearchParams."""


@dataclass(slots=True)
class RewriteState:
    """The state of confining one message. ``exact``: its searches are exact. ``facts``: of its collection, None until
    they are fetched.
    """

    confinements: Confinements
    reading: Reading
    facts: Facts | None = None
    exact: bool = False


Change = Callable[[bytes, RewriteState], bytes]
Within = Callable[[bytes, RewriteState], Steps[bytes]]


@dataclass(slots=True)
class _Found:
    """The parts of one message that its :class:`Rewrite` needs. ``numbers``: of all its fields."""

    numbers: set[int] = field(default_factory=set)
    filter: bytes = b""
    params: bytes | None = None
    payload: dict[bytes, bytes] = field(default_factory=dict)
    scored: Scored = Scored.NOTHING
    using: str = ""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """How one message is confined. The members are numbers of its fields.

    ``filter`` gets the conditions, present or not; ``alone``: excludes shared points. ``changes``: functions for the
    contents of other fields; ``within``: the same for nested messages; ``needs``: the one of them that must be present.
    ``refused``: fields that are refused, with the text. ``set``: a flag that is set, whatever the caller sends.

    ``payload`` must not have the conditions' keys; that of new points (``makes``) may, with the conditions' values.
    With ``marks`` the conditions are added to it.

    The ``params`` of a search depend on its vector: ``query``, or ``dense``, which the indices of ``sparse`` make a
    sparse one; ``using`` is the vector's name. Searches of groups are ``exact``. A ``matrix`` has no such parameters.
    """

    message: str
    filter: int = 0
    alone: bool = False
    changes: Mapping[int, Change] = field(default_factory=dict)
    within: Mapping[int, Within] = field(default_factory=dict)
    needs: int = 0
    refused: Mapping[int, str] = field(default_factory=dict)
    set: int = 0
    payload: int = 0
    makes: bool = False
    marks: bool = False
    params: int = 0
    query: int = 0
    dense: int = 0
    sparse: int = 0
    using: int = 0
    exact: bool = False
    matrix: bool = False

    def confined(self, content: bytes, state: RewriteState) -> Steps[bytes]:
        """The new message.

        Raises :class:`Unconfined`, :class:`BadRequest`, :class:`ProtobufError`, :class:`FactsNeeded`.
        """
        found = _Found()
        state.exact |= self.exact
        return (
            yield from state.reading.rewritten(
                self.message,
                content,
                lambda one: self._take(one, found, state),
                lambda: self._added(found, state),
            )
        )

    def _take(self, one: Field, found: _Found, state: RewriteState) -> bytes | Steps[bytes]:
        """The field's replacement; nothing where it is set aside."""
        number = one.number
        if number in self.refused:
            raise Unconfined(self.refused[number])
        found.numbers.add(number)
        if number in self.within:
            return self._nested(one, state)
        if number == self.filter:
            found.filter = one.content()
        elif number == self.params:
            found.params = one.content()
        elif number == self.set:
            _check_flag(one, self.message)
        elif number == self.payload:
            key, value = _entry(one.content(), state)
            if key in found.payload:
                raise BadRequest("A payload's key is there twice")
            found.payload[key] = value
            return one.raw
        elif number in self.changes:
            return delimited(number, self.changes[number](one.content(), state))
        else:
            self._note_vector(one, found, state)
            return one.raw
        return b""

    def _nested(self, one: Field, state: RewriteState) -> Steps[bytes]:
        return delimited(one.number, (yield from self.within[one.number](one.content(), state)))

    def _note_vector(self, one: Field, found: _Found, state: RewriteState) -> None:
        """Notes the kind and the name of a search's vector."""
        if one.number == self.query:
            found.scored = _scored(one.content(), state)
        elif one.number == self.sparse:
            found.scored = Scored.SPARSE
        elif one.number == self.dense and found.scored is Scored.NOTHING:
            found.scored = Scored.DENSE
        elif one.number == self.using:
            found.using = one.content().decode(errors="replace")

    def _added(self, found: _Found, state: RewriteState) -> Iterator[bytes]:
        if self.needs and self.needs not in found.numbers:
            raise BadRequest(f"Field {self.needs} of {self.message} is missing")
        if self.payload:
            missing = _marks(found.payload, state.confinements, makes=self.makes)
            yield from (delimited(self.payload, mark) for mark in missing if self.marks)
        if self.matrix:
            scoring.check_matrix(found.using, state.facts)
        if self.filter:
            yield delimited(self.filter, narrowed(found.filter, state.confinements, alone=self.alone))
        if self.params:
            params = _search_params(found, state)
            if params or found.params is not None:
                yield delimited(self.params, params)
        if self.set:
            yield flag(self.set)


def is_confinable_call(operation: Operation) -> bool:
    """Whether :func:`confined` has a row for it."""
    return operation.path in REWRITES


def confined(
    operation: Operation, message: bytes, confinements: Confinements, facts: Facts | None, *, fields: int = MAX_FIELDS
) -> Steps[bytes]:
    """Confines a whole message of at most so many ``fields``.

    Raises :class:`Unconfined`, :class:`BadRequest`, :class:`ProtobufError`, and :class:`FactsNeeded` where it depends
    on the collection's facts.
    """
    rewrite = REWRITES.get(operation.path)
    if rewrite is None:
        raise Unconfined(rest_tenancy.NOT_CONFINED)
    return (yield from rewrite(message, RewriteState(confinements, Reading(fields), facts)))


def method_of_confined(operation: Operation) -> str:
    """Path of the method that takes the message which :func:`confined` makes."""
    return _SENT_AS.get(operation.path, operation.path)


def reshaping_of(operation: Operation, framed: bytes) -> Reducer | None:
    """Makes an answer to the confined message, ``framed`` as for gRPC, one to the operation; None where it is one."""
    return RetrievedPoints(framed) if operation.path == _GET else None


# Contents of fields


def _selector(content: bytes, state: RewriteState) -> bytes:
    """PointsSelector: by ids (1) or by a filter (2)."""
    chosen = state.reading.alone("PointsSelector", content)
    if chosen is None:
        raise BadRequest("Either points or a filter is expected")
    if chosen.number != 2:  # noqa: PLR2004 - as the docstring has it
        raise Unconfined(rest_tenancy.BY_IDS)
    return delimited(2, narrowed(chosen.content(), state.confinements, alone=True))


def _scored(content: bytes, state: RewriteState) -> Scored:
    """The kind of a Query's vector: order_by (5), fusion (6), sample (7), formula (8) and rrf (10) have none."""
    variant = state.reading.alone("Query", content)
    number = 0 if variant is None else variant.number
    if variant is not None and number == 1:
        return _scored_of_vector(variant.content(), state)
    if variant is not None and number == 9:  # noqa: PLR2004 - nearest_with_mmr
        inputs = [one for one in state.reading.fields_of("NearestInputWithMmr", variant.content()) if one.number == 1]
        if inputs:
            return _scored_of_vector(inputs[0].content(), state)
    if variant is not None and number == 12:  # noqa: PLR2004 - text
        variant.content()
        return Scored.TEXT
    if number not in {5, 6, 7, 8, 10}:
        raise Unconfined(rest_tenancy.BY_EXAMPLE)
    return Scored.NOTHING


def _scored_of_vector(content: bytes, state: RewriteState) -> Scored:
    """The kind of a VectorInput: a point's id (1), one dense vector (2) or several (4), sparse (3), a model's (5…)."""
    variant = state.reading.alone("VectorInput", content)
    if variant is None or variant.number == 1:
        raise Unconfined(rest_tenancy.BY_EXAMPLE)
    variant.content()
    if variant.number in {2, 4}:
        return Scored.DENSE
    return Scored.SPARSE if variant.number == 3 else Scored.INFERRED  # noqa: PLR2004 - as the docstring has it


def _search_params(found: _Found, state: RewriteState) -> bytes:
    """SearchParams without the influence of other tenants' points: on indexed segments (4), on codes of quantized
    vectors (3), and on the counts of words (6).
    """
    parts: list[bytes] = []
    corpus = quantization = None
    for one in state.reading.fields_of("SearchParams", found.params or b""):
        if one.number in {_EXACT, _INDEXED_ONLY}:
            _check_flag(one, "SearchParams")
        if one.number == _IDF:
            corpus = b"".join(filter_.content() for filter_ in state.reading.fields_of("IdfParams", one.content()))
        elif one.number == _QUANTIZATION:
            quantization = _quantization(one.content(), state)
        elif one.number != _INDEXED_ONLY and not (one.number == _EXACT and state.exact):
            parts.append(one.raw)
    if state.exact:
        parts.append(flag(_EXACT))
    if scoring.is_rescored(found.scored) or quantization is not None:
        parts.append(delimited(_QUANTIZATION, (quantization or b"") + flag(_RESCORE)))
    if scoring.needs_corpus(found.scored, found.using, state.facts) or corpus is not None:
        parts.append(delimited(_IDF, delimited(1, narrowed(corpus or b"", state.confinements))))
    return b"".join(parts)


def _quantization(content: bytes, state: RewriteState) -> bytes:
    """QuantizationSearchParams, without its rescore."""
    parts = []
    for one in state.reading.fields_of("QuantizationSearchParams", content):
        if one.number == _RESCORE:
            _check_flag(one, "QuantizationSearchParams")
        else:
            parts.append(one.raw)
    return b"".join(parts)


def _check_flag(one: Field, message: str) -> None:
    if one.wire_type != VARINT:
        raise ProtobufError(f"field {one.number} of {message} has another type")


def _path(content: bytes, state: RewriteState) -> bytes:
    rest_tenancy.check_deleted(content.decode(errors="replace"), state.confinements)
    return content


def _entry(content: bytes, state: RewriteState) -> tuple[bytes, bytes]:
    """Key and value of a payload's entry; an absent one is empty, as in any map."""
    found = {one.number: one.content() for one in state.reading.fields_of("PointStruct.PayloadEntry", content)}
    return found.get(1, b""), found.get(2, b"")


def _marks(payload: dict[bytes, bytes], confinements: Confinements, *, makes: bool) -> list[bytes]:
    """The marks that are missing in a payload, as its entries.

    Raises :class:`Unconfined` where it has another value under a key, or, unless it is that of a new point, any value.
    """
    missing = []
    for root in () if makes else sorted(roots_of(confinements)):
        if root.encode() in payload:
            raise Unconfined(rest_tenancy.SET.format(root))
    for mark in marks_of(confinements):
        key, values = mark.key.encode(), list(map(_value, mark.values))
        if key not in payload and len(values) == 1:
            missing.append(delimited(1, key) + delimited(2, values[0]))
            payload[key] = values[0]
        if makes and (mark.root != mark.key or payload.get(key) not in values):
            raise Unconfined(MARKED.format(mark.key))
    return missing


def _value(value: Value) -> bytes:
    """A Value: a string (4), a boolean (5) or an integer (3)."""
    if isinstance(value, str):
        return delimited(4, value.encode())
    return varint((5 if isinstance(value, bool) else 3) << 3 | VARINT) + varint(value % (1 << 64))


def _retrieval(content: bytes, state: RewriteState) -> Steps[bytes]:
    return (yield from scrolled(content, state.confinements, state.reading))


def _operation(content: bytes, state: RewriteState) -> Steps[bytes]:
    """PointsUpdateOperation."""
    chosen = state.reading.alone("PointsUpdateOperation", content)
    rewrite = None if chosen is None else _OPERATIONS.get(chosen.number)
    if chosen is None or rewrite is None:
        raise Unconfined(rest_tenancy.NOT_OF_A_BATCH)
    return delimited(chosen.number, (yield from rewrite.confined(chosen.content(), state)))


def _prefetch(content: bytes, state: RewriteState) -> Steps[bytes]:
    state.reading.deeper -= 1
    if state.reading.deeper < 0:
        raise ProtobufError("messages are nested too deeply")
    confined = yield from _PREFETCH.confined(content, state)
    state.reading.deeper += 1
    return confined


_LOOKUP_FROM: Final = rest_tenancy.LOOKS_UP.format("lookup_from")
_WITH_LOOKUP: Final = rest_tenancy.LOOKS_UP.format("with_lookup")
_BELOW_A_KEY: Final = rest_tenancy.BELOW_A_KEY

_POINT: Final = Rewrite("PointStruct", payload=3, makes=True, marks=True).confined
_SEARCH: Final = Rewrite("SearchPoints", filter=3, params=7, dense=2, sparse=15, using=10)
_PREFETCH: Final = Rewrite(
    "PrefetchQuery", filter=4, params=5, query=2, using=3, within={1: _prefetch}, refused={8: _LOOKUP_FROM}
)
_QUERY: Final = Rewrite(
    "QueryPoints", filter=5, params=6, query=3, using=4, within={2: _prefetch}, refused={14: _LOOKUP_FROM}
)
_MATRIX: Final = Rewrite("SearchMatrixPoints", filter=2, using=5, matrix=True)

_OPERATIONS: Final = {
    1: Rewrite("PointsUpdateOperation.PointStructList", filter=3, alone=True, within={1: _POINT}),
    3: Rewrite(
        "PointsUpdateOperation.SetPayload", payload=1, changes={2: _selector}, needs=2, refused={4: _BELOW_A_KEY}
    ),
    4: Rewrite(
        "PointsUpdateOperation.OverwritePayload",
        payload=1, marks=True, changes={2: _selector}, needs=2, refused={4: _BELOW_A_KEY},
    ),
    5: Rewrite("PointsUpdateOperation.DeletePayload", changes={1: _path, 2: _selector}, needs=2),
    7: Rewrite("PointsUpdateOperation.UpdateVectors", filter=3, alone=True),
    8: Rewrite("PointsUpdateOperation.DeleteVectors", changes={1: _selector}, needs=1),
    9: Rewrite("PointsUpdateOperation.DeletePoints", changes={1: _selector}, needs=1),
}  # fmt: skip
_GET: Final = "/qdrant.Points/Get"
_SENT_AS: Final = {_GET: "/qdrant.Points/Scroll"}
"""Methods that cannot be confined → those that can, and do the same."""
REWRITES: Final[Mapping[str, Within]] = {
    f"/qdrant.Points/{method}": rewrite.confined
    for method, rewrite in {
        "Search": _SEARCH,
        "SearchBatch": Rewrite("SearchBatchPoints", within={2: _SEARCH.confined}),
        "SearchGroups": Rewrite(
            "SearchPointGroups", filter=3, params=6, dense=2, sparse=16, using=8, exact=True, refused={13: _WITH_LOOKUP}
        ),
        "SearchMatrixPairs": _MATRIX,
        "SearchMatrixOffsets": _MATRIX,
        "Query": _QUERY,
        "QueryBatch": Rewrite("QueryBatchPoints", within={2: _QUERY.confined}),
        "QueryGroups": Rewrite(
            "QueryPointGroups", filter=5, params=6, query=3, using=4, exact=True, within={2: _prefetch},
            refused={10: _LOOKUP_FROM, 15: _WITH_LOOKUP},
        ),
        "Scroll": Rewrite("ScrollPoints", filter=2),
        "Count": Rewrite("CountPoints", filter=2, set=3),
        "Facet": Rewrite("FacetCounts", filter=3, set=5),
        "Upsert": Rewrite("UpsertPoints", filter=6, alone=True, within={3: _POINT}),
        "Delete": Rewrite("DeletePoints", changes={3: _selector}, needs=3),
        "UpdateVectors": Rewrite("UpdatePointVectors", filter=6, alone=True),
        "DeleteVectors": Rewrite("DeletePointVectors", changes={3: _selector}, needs=3),
        "SetPayload": Rewrite(
            "SetPayloadPoints", payload=3, changes={5: _selector}, needs=5, refused={8: _BELOW_A_KEY}
        ),
        "OverwritePayload": Rewrite(
            "SetPayloadPoints", payload=3, marks=True, changes={5: _selector}, needs=5, refused={8: _BELOW_A_KEY}
        ),
        "DeletePayload": Rewrite("DeletePayloadPoints", changes={3: _path, 5: _selector}, needs=5),
        "UpdateBatch": Rewrite("UpdateBatchPoints", within={3: _operation}),
    }.items()
} | {_GET: _retrieval}  # fmt: skip
"""By the method's path. The collections of a batch's requests are checked by `grpc_decision.CollectionFinder`."""
