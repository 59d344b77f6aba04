"""A gRPC message, confined to the points that carry a caller's payload conditions: a new message, or a refusal.

What :mod:`tlsproxy.qdrant.rest_tenancy` does to the body of a route, done to the message of the method that means the
same; its rules are explained there. A method without a row is refused. A message that is looked into has only fields
that are known, and none twice that is singular, so that nothing merges with what is written here, and nothing hides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.authz.access import Condition
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant import rest_tenancy, scoring
from tlsproxy.qdrant.grpc_schema import PARTS, SHAPES
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.rest_tenancy import Conditions
from tlsproxy.qdrant.scoring import Facts, Scored
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import MAX_DEPTH, VARINT, Field, ProtobufError, delimited, flag, shaped

MAX_FIELDS: Final = 300_000
"""Fields of one message that are looked at, at some 2 to 10 microseconds each."""
COPIES: Final = 5
"""Copies of a message in memory: itself, with and without its tag if it is nested; its parts, and their results."""
FIELD: Final = 64
"""Bytes of memory beside a field's content."""
SMALL: Final = 4096
"""Bytes of a message that is confined without asking for memory first."""
STEP: Final = 250
"""Those of one step."""
_MESSAGES: Final = SHAPES | PARTS
_EXACT: Final = 2
_QUANTIZATION: Final = 3
_INDEXED_ONLY: Final = 4
_IDF: Final = 6
"""In SearchParams."""
_RESCORE: Final = 2
"""In QuantizationSearchParams."""


@dataclass(slots=True)
class Work:
    """Budget for one message: ``fields`` to look at, and how much ``deeper`` prefetches may go.

    ``exact``: its searches are exact. ``facts`` are those of its collection, None while nobody asked.
    """

    conditions: Conditions
    facts: Facts | None = None
    exact: bool = False
    fields: int = MAX_FIELDS
    deeper: int = MAX_DEPTH
    _looked: int = 0
    _pause: int = STEP
    _held: int = 0

    def begin(self, content: bytes) -> int | None:
        """The memory that is needed from here on, None for what is too small to matter."""
        self._held += COPIES * len(content)
        return self.memory if len(content) > SMALL else None

    def end(self, content: bytes) -> None:
        self._held -= COPIES * len(content)

    @property
    def memory(self) -> int:
        """Bytes that the messages that are being confined take: those within others too."""
        return self._held + FIELD * self._looked

    def is_step(self) -> bool:
        """Whether there was enough to look at since it last was."""
        if self._looked < self._pause:
            return False
        self._pause = self._looked + STEP
        return True

    def look(self, message: str, content: bytes) -> Iterator[Field]:
        """At the fields of a message, which has what it is known to have. Raises :class:`ProtobufError`."""
        for one in shaped(_MESSAGES[message], message, content):
            self._looked += 1
            if self._looked > self.fields:
                raise ProtobufError("too many fields")
            yield one

    def alone(self, message: str, content: bytes) -> Field | None:
        """The field of a message that has one of several: of more than one, readers may differ in which counts."""
        found = list(self.look(message, content))
        return found[0] if len(found) == 1 else None


Change = Callable[[bytes, Work], bytes]
Within = Callable[[bytes, Work], Steps[bytes]]


@dataclass(slots=True)
class _Found:
    """Parts of one message that its :class:`Way` is about. ``numbers`` are the numbers of its fields."""

    kept: list[bytes] = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)
    filter: bytes = b""
    params: bytes | None = None
    payload: dict[bytes, bytes] = field(default_factory=dict)
    scored: Scored = Scored.NOTHING
    using: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """How one message is confined, by the numbers of its fields.

    ``filter`` gets the conditions, whether or not it is there; ``alone``: shared points are left out. ``changes``: what
    becomes of other fields' contents, ``within`` the same of those that are messages like this one; ``needs``: the one
    of them without which the message would mean something else. ``refused``: what may not be there, with the text.
    ``set`` is true, whatever the caller says.

    ``payload`` must not name the conditions' keys, unless the message makes the points (``makes``): then it must not
    say otherwise. It is marked with the conditions where ``marks`` is set.

    A search has ``params``, which depend on what it is by: ``query``, or a ``dense`` vector, or that and the indices
    that make it a ``sparse`` one, of the name ``using``. Searches of groups are ``exact``. A ``matrix`` has no such
    parameters.
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

    def confined(self, content: bytes, work: Work) -> Steps[bytes]:
        """Raises :class:`Unconfined`, :class:`BadRequest`, :class:`ProtobufError`, :class:`FactsNeeded`."""
        found = _Found()
        work.exact |= self.exact
        yield work.begin(content)
        for one in work.look(self.message, content):
            if work.is_step():
                yield work.memory
            if one.number in self.refused:
                raise Unconfined(self.refused[one.number])
            found.numbers.add(one.number)
            within = self.within.get(one.number)
            if within is None:
                self._take(one, found, work)
            else:
                found.kept.append(delimited(one.number, (yield from within(one.content(), work))))
        if self.needs and self.needs not in found.numbers:
            raise BadRequest(f"Field {self.needs} of {self.message} is missing")
        work.end(content)
        return b"".join([*found.kept, *self._added(found, work)])

    def _take(self, one: Field, found: _Found, work: Work) -> None:
        """Keeps the field as it is or as it becomes, or puts it aside."""
        number = one.number
        if number == self.filter:
            found.filter = one.content()
        elif number == self.params:
            found.params = one.content()
        elif number == self.set:
            _check_flag(one, self.message)
        elif number == self.payload:
            key, value = _entry(one.content(), work)
            if key in found.payload:
                raise BadRequest("A payload's key is there twice")
            found.payload[key] = value
            found.kept.append(one.raw)
        elif number in self.changes:
            found.kept.append(delimited(number, self.changes[number](one.content(), work)))
        else:
            self._hear(one, found, work)
            found.kept.append(one.raw)

    def _hear(self, one: Field, found: _Found, work: Work) -> None:
        """Notes the kind and the name of the vector that a search is by."""
        if one.number == self.query:
            found.scored = _scored(one.content(), work)
        elif one.number == self.sparse:
            found.scored = Scored.SPARSE
        elif one.number == self.dense and found.scored is Scored.NOTHING:
            found.scored = Scored.DENSE
        elif one.number == self.using:
            found.using = one.content().decode(errors="replace")

    def _added(self, found: _Found, work: Work) -> Iterator[bytes]:
        if self.payload:
            missing = _marks(found.payload, work.conditions, makes=self.makes)
            yield from (delimited(self.payload, mark) for mark in missing if self.marks)
        if self.matrix:
            scoring.check_matrix(found.using, work.facts)
        if self.filter:
            yield delimited(self.filter, narrowed(found.filter, work.conditions, alone=self.alone))
        if self.params:
            params = _search_params(found, work)
            if params or found.params is not None:
                yield delimited(self.params, params)
        if self.set:
            yield flag(self.set)


def is_confinable_call(operation: Operation) -> bool:
    """Whether :func:`confined` has a way for it."""
    return operation.path in WAYS


def confined(
    operation: Operation, message: bytes, conditions: Conditions, facts: Facts | None, *, fields: int = MAX_FIELDS
) -> Steps[bytes]:
    """Confines a whole message of at most so many ``fields``.

    Raises :class:`Unconfined`, :class:`BadRequest`, :class:`ProtobufError`, and :class:`FactsNeeded` where the
    collection's facts have a say.
    """
    way = WAYS.get(operation.path)
    if way is None:
        raise Unconfined(rest_tenancy.NOT_CONFINED)
    return (yield from way.confined(message, Work(conditions, facts, fields=fields)))


def narrowed(own: bytes, conditions: Conditions, *, alone: bool = False) -> bytes:
    """A Filter: all conditions must hold, and the caller's own filter, as one condition more, if it says anything.

    ``alone`` as in :class:`Way`.
    """
    must = [delimited(2, delimited(1, _match(one))) for one in conditions]
    if alone:
        must += (delimited(2, delimited(1, _one_value(one))) for one in conditions)
    if own:
        must.append(delimited(2, delimited(4, own)))
    return b"".join(must)


def _match(condition: Condition) -> bytes:
    """A FieldCondition: this key has this keyword."""
    return delimited(1, condition.key.encode()) + delimited(2, delimited(1, condition.value.encode()))


def _one_value(condition: Condition) -> bytes:
    """A FieldCondition: this key has at most one value (values_count.lte)."""
    return delimited(1, condition.key.encode()) + delimited(6, b"\x20\x01")


# What becomes of a field


def _selector(content: bytes, work: Work) -> bytes:
    """PointsSelector: by ids (1) or by a filter (2)."""
    chosen = work.alone("PointsSelector", content)
    if chosen is None:
        raise BadRequest("Either points or a filter is expected")
    if chosen.number != 2:  # noqa: PLR2004 - as the docstring has it
        raise Unconfined(rest_tenancy.BY_IDS)
    return delimited(2, narrowed(chosen.content(), work.conditions, alone=True))


def _scored(content: bytes, work: Work) -> Scored:
    """Kind of a Query's vector: order_by (5), fusion (6), sample (7), formula (8) and rrf (10) have none."""
    variant = work.alone("Query", content)
    number = 0 if variant is None else variant.number
    if variant is not None and number == 1:
        return _scored_of_vector(variant.content(), work)
    if variant is not None and number == 9:  # noqa: PLR2004 - nearest_with_mmr
        inputs = [one for one in work.look("NearestInputWithMmr", variant.content()) if one.number == 1]
        if inputs:
            return _scored_of_vector(inputs[0].content(), work)
    if variant is not None and number == 12:  # noqa: PLR2004 - text
        variant.content()
        return Scored.TEXT
    if number not in {5, 6, 7, 8, 10}:
        raise Unconfined(rest_tenancy.BY_EXAMPLE)
    return Scored.NOTHING


def _scored_of_vector(content: bytes, work: Work) -> Scored:
    """Kind of a VectorInput: a point's id (1), one dense vector (2) or several (4), sparse (3), a model's (5, …)."""
    variant = work.alone("VectorInput", content)
    if variant is None or variant.number == 1:
        raise Unconfined(rest_tenancy.BY_EXAMPLE)
    variant.content()
    if variant.number in {2, 4}:
        return Scored.DENSE
    return Scored.SPARSE if variant.number == 3 else Scored.INFERRED  # noqa: PLR2004 - as the docstring has it


def _search_params(found: _Found, work: Work) -> bytes:
    """SearchParams: which segments are indexed (4) is a matter of all points in them, and so are the codes of quantized
    vectors (3); words are counted over the caller's own (6).
    """
    kept: list[bytes] = []
    corpus = quantization = None
    for one in work.look("SearchParams", found.params or b""):
        if one.number in {_EXACT, _INDEXED_ONLY}:
            _check_flag(one, "SearchParams")
        if one.number == _IDF:
            corpus = b"".join(filter_.content() for filter_ in work.look("IdfParams", one.content()))
        elif one.number == _QUANTIZATION:
            quantization = _quantization(one.content(), work)
        elif one.number != _INDEXED_ONLY and not (one.number == _EXACT and work.exact):
            kept.append(one.raw)
    if work.exact:
        kept.append(flag(_EXACT))
    if scoring.is_rescored(found.scored) or quantization is not None:
        kept.append(delimited(_QUANTIZATION, (quantization or b"") + flag(_RESCORE)))
    if scoring.needs_corpus(found.scored, found.using, work.facts) or corpus is not None:
        kept.append(delimited(_IDF, delimited(1, narrowed(corpus or b"", work.conditions))))
    return b"".join(kept)


def _quantization(content: bytes, work: Work) -> bytes:
    """QuantizationSearchParams, without its rescore."""
    kept = []
    for one in work.look("QuantizationSearchParams", content):
        if one.number == _RESCORE:
            _check_flag(one, "QuantizationSearchParams")
        else:
            kept.append(one.raw)
    return b"".join(kept)


def _check_flag(one: Field, message: str) -> None:
    if one.wire_type != VARINT:
        raise ProtobufError(f"field {one.number} of {message} has another type")


def _path(content: bytes, work: Work) -> bytes:
    rest_tenancy.check_deleted(content.decode(errors="replace"), work.conditions)
    return content


def _entry(content: bytes, work: Work) -> tuple[bytes, bytes]:
    """Key and value of a payload's entry; one that is not there is empty, as in any map."""
    found = {one.number: one.content() for one in work.look("PointStruct.PayloadEntry", content)}
    return found.get(1, b""), found.get(2, b"")


def _marks(payload: dict[bytes, bytes], conditions: Conditions, *, makes: bool) -> list[bytes]:
    """The entries of conditions that the payload lacks, and has then. Raises :class:`Unconfined` where it differs, or,
    unless it is that of a new point, names a key at all.
    """
    missing = []
    for one in () if makes else conditions:
        if one.key.encode() in payload:
            raise Unconfined(rest_tenancy.SET.format(one.key))
    for one in conditions:
        key, value = one.key.encode(), delimited(4, one.value.encode())  # Value.string_value
        if key not in payload:
            missing.append(delimited(1, key) + delimited(2, value))
        if payload.setdefault(key, value) != value:
            raise Unconfined(rest_tenancy.MARKED.format(one.key))
    return missing


def _operation(content: bytes, work: Work) -> Steps[bytes]:
    """PointsUpdateOperation."""
    chosen = work.alone("PointsUpdateOperation", content)
    way = None if chosen is None else _OPERATIONS.get(chosen.number)
    if chosen is None or way is None:
        raise Unconfined(rest_tenancy.NOT_OF_A_BATCH)
    return delimited(chosen.number, (yield from way.confined(chosen.content(), work)))


def _prefetch(content: bytes, work: Work) -> Steps[bytes]:
    work.deeper -= 1
    if work.deeper < 0:
        raise ProtobufError("messages are nested too deeply")
    confined = yield from _PREFETCH.confined(content, work)
    work.deeper += 1
    return confined


_LOOKUP_FROM: Final = rest_tenancy.LOOKS_UP.format("lookup_from")
_WITH_LOOKUP: Final = rest_tenancy.LOOKS_UP.format("with_lookup")
_BELOW_A_KEY: Final = rest_tenancy.BELOW_A_KEY

_POINT: Final = Way("PointStruct", payload=3, makes=True, marks=True).confined
_SEARCH: Final = Way("SearchPoints", filter=3, params=7, dense=2, sparse=15, using=10)
_PREFETCH: Final = Way(
    "PrefetchQuery", filter=4, params=5, query=2, using=3, within={1: _prefetch}, refused={8: _LOOKUP_FROM}
)
_QUERY: Final = Way(
    "QueryPoints", filter=5, params=6, query=3, using=4, within={2: _prefetch}, refused={14: _LOOKUP_FROM}
)
_MATRIX: Final = Way("SearchMatrixPoints", filter=2, using=5, matrix=True)

_OPERATIONS: Final = {
    1: Way("PointsUpdateOperation.PointStructList", filter=3, alone=True, within={1: _POINT}),
    3: Way("PointsUpdateOperation.SetPayload", payload=1, changes={2: _selector}, needs=2, refused={4: _BELOW_A_KEY}),
    4: Way(
        "PointsUpdateOperation.OverwritePayload",
        payload=1, marks=True, changes={2: _selector}, needs=2, refused={4: _BELOW_A_KEY},
    ),
    5: Way("PointsUpdateOperation.DeletePayload", changes={1: _path, 2: _selector}, needs=2),
    7: Way("PointsUpdateOperation.UpdateVectors", filter=3, alone=True),
    8: Way("PointsUpdateOperation.DeleteVectors", changes={1: _selector}, needs=1),
    9: Way("PointsUpdateOperation.DeletePoints", changes={1: _selector}, needs=1),
}  # fmt: skip
WAYS: Final = {
    f"/qdrant.Points/{method}": way
    for method, way in {
        "Search": _SEARCH,
        "SearchBatch": Way("SearchBatchPoints", within={2: _SEARCH.confined}),
        "SearchGroups": Way(
            "SearchPointGroups", filter=3, params=6, dense=2, sparse=16, using=8, exact=True, refused={13: _WITH_LOOKUP}
        ),
        "SearchMatrixPairs": _MATRIX,
        "SearchMatrixOffsets": _MATRIX,
        "Query": _QUERY,
        "QueryBatch": Way("QueryBatchPoints", within={2: _QUERY.confined}),
        "QueryGroups": Way(
            "QueryPointGroups", filter=5, params=6, query=3, using=4, exact=True, within={2: _prefetch},
            refused={10: _LOOKUP_FROM, 15: _WITH_LOOKUP},
        ),
        "Scroll": Way("ScrollPoints", filter=2),
        "Count": Way("CountPoints", filter=2, set=3),
        "Facet": Way("FacetCounts", filter=3, set=5),
        "Upsert": Way("UpsertPoints", filter=6, alone=True, within={3: _POINT}),
        "Delete": Way("DeletePoints", changes={3: _selector}, needs=3),
        "UpdateVectors": Way("UpdatePointVectors", filter=6, alone=True),
        "DeleteVectors": Way("DeletePointVectors", changes={3: _selector}, needs=3),
        "SetPayload": Way("SetPayloadPoints", payload=3, changes={5: _selector}, needs=5, refused={8: _BELOW_A_KEY}),
        "OverwritePayload": Way(
            "SetPayloadPoints", payload=3, marks=True, changes={5: _selector}, needs=5, refused={8: _BELOW_A_KEY}
        ),
        "DeletePayload": Way("DeletePayloadPoints", changes={3: _path, 5: _selector}, needs=5),
        "UpdateBatch": Way("UpdateBatchPoints", within={3: _operation}),
    }.items()
}  # fmt: skip
"""By the method's path. A batch's inner collection is settled by who reads the message."""
