"""Inputs of a query: the kind of its vectors, and the points whose vectors are taken by their ids (examples)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.grpc_retrieval import point_id
from tlsproxy.qdrant.grpc_rewrite import Reading
from tlsproxy.qdrant.point_ids import PointId
from tlsproxy.qdrant.scoring import Scored
from tlsproxy.qdrant.tenant_examples import Place, place
from tlsproxy.wire.cooperative import Steps

EXAMPLE: Final = "PointId"
VECTOR: Final = "Vector"
_PAIR: Final = {1: "VectorInput", 2: "VectorInput"}
INPUTS: Final[Mapping[str, Mapping[int, str | Scored]]] = {
    "Query": {
        1: "VectorInput",
        2: "RecommendInput",
        3: "DiscoverInput",
        4: "ContextInput",
        5: Scored.NOTHING,  # order_by
        6: Scored.NOTHING,  # fusion
        7: Scored.NOTHING,  # sample
        8: Scored.NOTHING,  # formula
        9: "NearestInputWithMmr",
        10: Scored.NOTHING,  # rrf
        11: "RelevanceFeedbackInput",
        12: Scored.TEXT,
    },
    "VectorInput": {
        1: EXAMPLE,
        2: Scored.DENSE,
        3: Scored.SPARSE,
        4: Scored.DENSE,  # several
        5: Scored.INFERRED,  # document
        6: Scored.INFERRED,  # image
        7: Scored.INFERRED,  # object
    },
    "RecommendInput": _PAIR,
    "DiscoverInput": {1: "VectorInput", 2: "ContextInput"},
    "ContextInput": {1: "ContextInputPair"},
    "ContextInputPair": _PAIR,
    "NearestInputWithMmr": {1: "VectorInput"},
    "RelevanceFeedbackInput": {1: "VectorInput", 2: "FeedbackItem"},
    "FeedbackItem": {1: "VectorInput"},
    "TargetVector": {1: "VectorExample"},
    "ContextExamplePair": {1: "VectorExample", 2: "VectorExample"},
    "VectorExample": {1: EXAMPLE, 2: VECTOR},
}
"""Message → its fields that are inputs, or lead to them."""
ONE_OF: Final = frozenset({"Query", "VectorInput", "TargetVector", "VectorExample"})
"""Those with exactly one field: readers may differ in which of several counts."""
_DENSE_VECTORS: Final = frozenset({frozenset({1}), frozenset({1, 3}), frozenset({101}), frozenset({103})})
_SPARSE_VECTORS: Final = frozenset({frozenset({1, 2}), frozenset({102})})
"""Fields of a Vector, which may be of an older form."""


@dataclass(slots=True)
class Inputs:
    """``scored``: the kind of all inputs; of different ones, and of examples, any. ``examples``: in order."""

    scored: Scored = Scored.NOTHING
    examples: dict[PointId, None] = field(default_factory=dict)

    def add(self, kind: Scored) -> None:
        if kind is not Scored.NOTHING:
            self.scored = kind if self.scored in {Scored.NOTHING, kind} else Scored.INFERRED

    def reading(self, message: str, content: bytes, reading: Reading) -> Steps[None]:
        """Finds the inputs in a message. Raises :class:`BadRequest`, :class:`ProtobufError`."""
        if message == EXAMPLE:
            self.examples[point_id(content)] = None
            self.add(Scored.INFERRED)
            return
        rows, numbers = INPUTS.get(message, {}), set[int]()
        for count, one in enumerate(reading.fields_of(message, content)):
            if reading.is_step():
                yield reading.memory
            if count and message in ONE_OF:
                raise BadRequest(f"A {message} has one field")
            numbers.add(one.number)
            row = rows.get(one.number, Scored.NOTHING)
            if isinstance(row, Scored):
                self.add(row)
            else:
                yield from self.reading(row, one.content(), reading)
        if message == VECTOR:
            self.add(_kind_of_vector(frozenset(numbers)))
        elif message in ONE_OF and not numbers:
            raise BadRequest(f"A {message} has one field")


def place_of(lookup: bytes, reading: Reading) -> Steps[Place]:
    """The collection and the shard key of a LookupLocation.

    Raises :class:`BadRequest`, :class:`ProtobufError`.
    """
    collection, key = "", None
    for one in reading.fields_of("LookupLocation", lookup):
        if one.number == 1:
            collection = one.content().decode(errors="replace")
        elif one.number == 3:  # noqa: PLR2004 - shard_key_selector
            key = yield from _shard_key(one.content(), reading)
    return place(collection, key)


def _shard_key(selector: bytes, reading: Reading) -> Steps[object]:
    """A ShardKeySelector in the form of REST."""
    keys: list[PointId] = []
    fallback: PointId | None = None
    for one in reading.fields_of("ShardKeySelector", selector):
        if reading.is_step():
            yield reading.memory
        chosen = reading.alone("ShardKey", one.content())
        if chosen is None:
            raise BadRequest("A shard key is a keyword or a number")
        key = chosen.content().decode(errors="replace") if chosen.number == 1 else chosen.integer()
        if one.number == 1:
            keys.append(key)
        else:
            fallback = key
    if fallback is None:
        return keys
    if len(keys) != 1:
        raise BadRequest("A fallback is for one shard key")
    return {"target": keys[0], "fallback": fallback}


def _kind_of_vector(numbers: frozenset[int]) -> Scored:
    if numbers in _DENSE_VECTORS:
        return Scored.DENSE
    return Scored.SPARSE if numbers in _SPARSE_VECTORS else Scored.INFERRED
