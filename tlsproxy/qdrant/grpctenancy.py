"""A gRPC message, confined to the points that carry a caller's payload conditions: a new message, or a refusal.

What :mod:`tlsproxy.qdrant.tenancy` does to the body of a route, done to the message of the method that means the same;
its rules are explained there. A method without a row is refused. A message that is looked into has only fields that are
known, and none twice that is singular, so that nothing merges with what is written here, and nothing hides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.authz.access import Condition
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant import tenancy
from tlsproxy.qdrant.messages import PARTS, SHAPES
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.tenancy import Conditions
from tlsproxy.wire.protobuf import MAX_DEPTH, Field, ProtobufError, delimited, shaped
from tlsproxy.wire.steps import Steps

MAX_FIELDS: Final = 300_000
"""Fields of one message that are looked at, at some 2 to 10 microseconds each."""
STEP: Final = 250
"""Those of one step."""
_MESSAGES: Final = SHAPES | PARTS


@dataclass(slots=True)
class Work:
    """What is left to spend on one message: ``fields`` to look at, and how much ``deeper`` prefetches may go."""

    conditions: Conditions
    fields: int = MAX_FIELDS
    deeper: int = MAX_DEPTH
    _pause: int = MAX_FIELDS - STEP

    def is_step(self) -> bool:
        """Whether there was enough to look at since it last was."""
        if self.fields > self._pause:
            return False
        self._pause = self.fields - STEP
        return True

    def look(self, message: str, content: bytes) -> Iterator[Field]:
        """At the fields of a message, which has what it is known to have. Raises :class:`ProtobufError`."""
        for one in shaped(_MESSAGES[message], message, content):
            self.fields -= 1
            if self.fields < 0:
                raise ProtobufError("too many fields")
            yield one

    def alone(self, message: str, content: bytes) -> Field | None:
        """The field of a message that has one of several: of more than one, readers may differ in which counts."""
        found = list(self.look(message, content))
        return found[0] if len(found) == 1 else None


Change = Callable[[bytes, Work], bytes]
Within = Callable[[bytes, Work], Steps[bytes]]


@dataclass(frozen=True, slots=True)
class Way:
    """How one message is confined.

    ``filter`` is the number of the field that gets the conditions, whether or not it is there. ``changes``: what
    becomes of other fields' contents, ``within`` the same of those that are messages like this one; ``needs``: the one
    of them without which the message would mean something else.
    ``payload`` is that of a payload that must not say otherwise than the conditions, and is marked with them where
    ``marks`` is set. ``refused``: what may not be there, with the text.
    """

    message: str
    filter: int = 0
    changes: Mapping[int, Change] = field(default_factory=dict)
    within: Mapping[int, Within] = field(default_factory=dict)
    needs: int = 0
    payload: int = 0
    marks: bool = False
    refused: Mapping[int, str] = field(default_factory=dict)

    def _check(self, one: Field) -> None:
        if one.number in self.refused:
            raise Unconfined(self.refused[one.number])

    def confined(self, content: bytes, work: Work) -> Steps[bytes]:
        """Raises :class:`Unconfined`, :class:`BadRequest`, :class:`ProtobufError`."""
        kept: list[bytes] = []
        own = b""
        payload: dict[bytes, bytes] = {}
        needed = not self.needs
        for one in work.look(self.message, content):
            if work.is_step():
                yield
            change, within = self.changes.get(one.number), self.within.get(one.number)
            needed |= one.number == self.needs
            self._check(one)
            if one.number == self.filter:
                own = one.content()
            elif one.number == self.payload:
                key, value = _entry(one.content(), work)
                if key in payload:
                    raise BadRequest("A payload's key is there twice")
                payload[key] = value
                kept.append(one.raw)
            elif within is not None:
                kept.append(delimited(one.number, (yield from within(one.content(), work))))
            else:
                kept.append(one.raw if change is None else delimited(one.number, change(one.content(), work)))
        if not needed:
            raise BadRequest(f"Field {self.needs} of {self.message} is missing")
        if self.payload:
            missing = _marks(payload, work.conditions)
            kept += [delimited(self.payload, mark) for mark in missing if self.marks]
        if self.filter:
            kept.append(delimited(self.filter, narrowed(own, work.conditions)))
        return b"".join(kept)


def is_confinable_call(operation: Operation) -> bool:
    """Whether :func:`confined` has a way for it."""
    return operation.path in WAYS


def confined(operation: Operation, message: bytes, conditions: Conditions) -> Steps[bytes]:
    """Of a whole message. Raises :class:`Unconfined`, :class:`BadRequest`, :class:`ProtobufError`."""
    way = WAYS.get(operation.path)
    if way is None:
        raise Unconfined(tenancy.NOT_CONFINED)
    return (yield from way.confined(message, Work(conditions)))


def narrowed(own: bytes, conditions: Conditions) -> bytes:
    """A Filter: all conditions must hold, and the caller's own filter, as one condition more, if it says anything."""
    must = [delimited(2, delimited(1, _match(one))) for one in conditions]
    if own:
        must.append(delimited(2, delimited(4, own)))
    return b"".join(must)


def _match(condition: Condition) -> bytes:
    """A FieldCondition: this key has this keyword."""
    return delimited(1, condition.key.encode()) + delimited(2, delimited(1, condition.value.encode()))


# What becomes of a field


def _selector(content: bytes, work: Work) -> bytes:
    """PointsSelector: by ids (1) or by a filter (2)."""
    chosen = work.alone("PointsSelector", content)
    if chosen is None:
        raise BadRequest("Either points or a filter is expected")
    if chosen.number != 2:  # noqa: PLR2004 - as the docstring has it
        raise Unconfined(tenancy.BY_IDS)
    return delimited(2, narrowed(chosen.content(), work.conditions))


def _query(content: bytes, work: Work) -> bytes:
    """Query: order_by (5), fusion (6), sample (7), formula (8) and rrf (10) are about no point."""
    variant = work.alone("Query", content)
    number = 0 if variant is None else variant.number
    if variant is not None and number == 1:
        _check_vector(variant.content(), work)
    elif variant is not None and number == 9:  # noqa: PLR2004 - nearest_with_mmr
        inputs = list(work.look("NearestInputWithMmr", variant.content()))
        if not any(one.number == 1 for one in inputs):
            raise Unconfined(tenancy.BY_EXAMPLE)
        for one in inputs:
            if one.number == 1:
                _check_vector(one.content(), work)
    elif number not in {5, 6, 7, 8, 10}:
        raise Unconfined(tenancy.BY_EXAMPLE)
    return content


def _check_vector(content: bytes, work: Work) -> None:
    """VectorInput: a point's id (1), or a vector, or what a model makes one of."""
    variant = work.alone("VectorInput", content)
    if variant is None or variant.number == 1:
        raise Unconfined(tenancy.BY_EXAMPLE)
    variant.content()


def _path(content: bytes, work: Work) -> bytes:
    tenancy.check_deleted(content.decode(errors="replace"), work.conditions)
    return content


def _entry(content: bytes, work: Work) -> tuple[bytes, bytes]:
    """Key and value of a payload's entry; one that is not there is empty, as in any map."""
    found = {one.number: one.content() for one in work.look("PointStruct.PayloadEntry", content)}
    return found.get(1, b""), found.get(2, b"")


def _marks(payload: dict[bytes, bytes], conditions: Conditions) -> list[bytes]:
    """The entries of conditions that the payload lacks, and has then. Raises :class:`Unconfined` where it differs."""
    missing = []
    for one in conditions:
        key, value = one.key.encode(), delimited(4, one.value.encode())  # Value.string_value
        if key not in payload:
            missing.append(delimited(1, key) + delimited(2, value))
        if payload.setdefault(key, value) != value:
            raise Unconfined(tenancy.MARKED.format(one.key))
    return missing


def _operation(content: bytes, work: Work) -> Steps[bytes]:
    """PointsUpdateOperation."""
    chosen = work.alone("PointsUpdateOperation", content)
    way = None if chosen is None else _OPERATIONS.get(chosen.number)
    if chosen is None or way is None:
        raise Unconfined(tenancy.NOT_OF_A_BATCH)
    return delimited(chosen.number, (yield from way.confined(chosen.content(), work)))


def _prefetch(content: bytes, work: Work) -> Steps[bytes]:
    work.deeper -= 1
    if work.deeper < 0:
        raise ProtobufError("messages are nested too deeply")
    confined = yield from _PREFETCH.confined(content, work)
    work.deeper += 1
    return confined


_LOOKUP_FROM: Final = tenancy.LOOKS_UP.format("lookup_from")
_WITH_LOOKUP: Final = tenancy.LOOKS_UP.format("with_lookup")
_BELOW_A_KEY: Final = tenancy.BELOW_A_KEY

_PARAMS: Final = Way("SearchParams", within={6: Way("IdfParams", filter=1).confined}).confined
_POINT: Final = Way("PointStruct", payload=3, marks=True).confined
_PREFETCH: Final = Way(
    "PrefetchQuery", filter=4, changes={2: _query}, within={1: _prefetch, 5: _PARAMS}, refused={8: _LOOKUP_FROM}
)
_SEARCH: Final = Way("SearchPoints", filter=3, within={7: _PARAMS})
_QUERY: Final = Way(
    "QueryPoints", filter=5, changes={3: _query}, within={2: _prefetch, 6: _PARAMS}, refused={14: _LOOKUP_FROM}
)
_MATRIX: Final = Way("SearchMatrixPoints", filter=2)

_OPERATIONS: Final = {
    1: Way("PointsUpdateOperation.PointStructList", filter=3, within={1: _POINT}),
    3: Way("PointsUpdateOperation.SetPayload", payload=1, changes={2: _selector}, needs=2, refused={4: _BELOW_A_KEY}),
    4: Way(
        "PointsUpdateOperation.OverwritePayload",
        payload=1, marks=True, changes={2: _selector}, needs=2, refused={4: _BELOW_A_KEY},
    ),
    5: Way("PointsUpdateOperation.DeletePayload", changes={1: _path, 2: _selector}, needs=2),
    7: Way("PointsUpdateOperation.UpdateVectors", filter=3),
    8: Way("PointsUpdateOperation.DeleteVectors", changes={1: _selector}, needs=1),
    9: Way("PointsUpdateOperation.DeletePoints", changes={1: _selector}, needs=1),
}  # fmt: skip
WAYS: Final = {
    f"/qdrant.Points/{method}": way
    for method, way in {
        "Search": _SEARCH,
        "SearchBatch": Way("SearchBatchPoints", within={2: _SEARCH.confined}),
        "SearchGroups": Way("SearchPointGroups", filter=3, within={6: _PARAMS}, refused={13: _WITH_LOOKUP}),
        "SearchMatrixPairs": _MATRIX,
        "SearchMatrixOffsets": _MATRIX,
        "Query": _QUERY,
        "QueryBatch": Way("QueryBatchPoints", within={2: _QUERY.confined}),
        "QueryGroups": Way(
            "QueryPointGroups", filter=5, changes={3: _query}, within={2: _prefetch, 6: _PARAMS},
            refused={10: _LOOKUP_FROM, 15: _WITH_LOOKUP},
        ),
        "Scroll": Way("ScrollPoints", filter=2),
        "Count": Way("CountPoints", filter=2),
        "Facet": Way("FacetCounts", filter=3),
        "Upsert": Way("UpsertPoints", filter=6, within={3: _POINT}),
        "Delete": Way("DeletePoints", changes={3: _selector}, needs=3),
        "UpdateVectors": Way("UpdatePointVectors", filter=6),
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
