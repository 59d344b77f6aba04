"""Inputs of a query, found in its message: points by their ids, and the kind of its vectors."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from support import qdrant_messages as qdrant
from support.qdrant_messages import OF_NO_POINT, ids_in
from support.rows import rows

from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.grpc_examples import EXAMPLE, INPUTS, ONE_OF, VECTOR, Inputs
from tlsproxy.qdrant.grpc_rewrite import STEP, Reading
from tlsproxy.qdrant.scoring import Scored
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.protobuf import ProtobufError


def found(message: Any, content: bytes | None = None) -> Inputs:
    inputs = Inputs()
    name = message.DESCRIPTOR.name
    at_once(inputs.reading(name, message.SerializeToString() if content is None else content, Reading()))
    return inputs


@cache
def leads_to_inputs(descriptor: Descriptor) -> bool:
    if descriptor.name in {EXAMPLE, VECTOR}:
        return True
    return descriptor.name not in OF_NO_POINT and any(
        one.message_type is not None and leads_to_inputs(one.message_type) for one in descriptor.fields
    )


@rows("name", INPUTS)
def test_fields_that_lead_to_inputs_are_what_qdrant_describes(name: str) -> None:
    descriptor = getattr(pb, name).DESCRIPTOR
    rows = INPUTS[name]
    leading = {
        one.number: one.message_type.name
        for one in descriptor.fields
        if one.message_type is not None and leads_to_inputs(one.message_type)
    }
    assert {number: row for number, row in rows.items() if isinstance(row, str)} == leading
    if name in {"Query", "VectorInput"}:
        assert rows.keys() == {one.number for one in descriptor.fields}
    oneofs = [one for one in descriptor.oneofs if len(one.fields) > 1 or one.name == "target"]
    assert (name in ONE_OF) is bool(oneofs)


def dense(*numbers: float) -> Any:
    return pb.VectorInput(dense=pb.DenseVector(data=numbers))


def example(one: int | str) -> Any:
    return pb.VectorInput(id=pb.PointId(num=one) if isinstance(one, int) else pb.PointId(uuid=one))


UUID = "936da01f-9abd-4d9d-80c7-02af85c822a8"
SPARSE = pb.VectorInput(sparse=pb.SparseVector(values=[1.0], indices=[1]))
PAIR = pb.ContextInputPair(positive=example(1), negative=dense(1.0))


@rows(
    ("message", "examples", "scored"),
    [
        (pb.Query(nearest=dense(1.0)), [], Scored.DENSE),
        (pb.Query(nearest=SPARSE), [], Scored.SPARSE),
        (pb.Query(nearest=example(7)), [7], Scored.INFERRED),
        (pb.Query(nearest=example(f"{{{UUID.upper()}}}")), [UUID], Scored.INFERRED),
        (pb.Query(nearest_with_mmr=pb.NearestInputWithMmr(nearest=example(7), mmr=pb.Mmr())), [7], Scored.INFERRED),
        (
            pb.Query(recommend=pb.RecommendInput(positive=[example(3), dense(1.0), example(1)], negative=[example(3)])),
            [3, 1],
            Scored.INFERRED,
        ),
        (pb.Query(recommend=pb.RecommendInput(positive=[dense(1.0)], negative=[dense(2.0)])), [], Scored.DENSE),
        (pb.Query(recommend=pb.RecommendInput(positive=[dense(1.0), SPARSE])), [], Scored.INFERRED),
        (pb.Query(context=pb.ContextInput(pairs=[PAIR])), [1], Scored.INFERRED),
        (
            pb.Query(discover=pb.DiscoverInput(target=example(9), context=pb.ContextInput(pairs=[PAIR, PAIR]))),
            [9, 1],
            Scored.INFERRED,
        ),
        (
            pb.Query(
                relevance_feedback=pb.RelevanceFeedbackInput(
                    target=dense(1.0), feedback=[pb.FeedbackItem(example=example(2), score=0.5)]
                )
            ),
            [2],
            Scored.INFERRED,
        ),
        (pb.Query(fusion=pb.Fusion.RRF), [], Scored.NOTHING),
        (pb.Query(text=pb.TextQuery()), [], Scored.TEXT),
        (pb.Query(formula=pb.Formula(expression=pb.Expression(variable="$score"))), [], Scored.NOTHING),
        (pb.TargetVector(single=pb.VectorExample(id=pb.PointId(num=4))), [4], Scored.INFERRED),
        (pb.TargetVector(single=pb.VectorExample(vector=pb.Vector(data=[1.0, 2.0]))), [], Scored.DENSE),
        (pb.Vector(data=[1.0], indices=pb.SparseIndices(data=[1])), [], Scored.SPARSE),
        (pb.Vector(data=[1.0, 2.0], vectors_count=2), [], Scored.DENSE),
        (pb.Vector(sparse=pb.SparseVector()), [], Scored.SPARSE),
        (pb.Vector(document=pb.Document(text="x")), [], Scored.INFERRED),
        (pb.Vector(data=[1.0], sparse=pb.SparseVector()), [], Scored.INFERRED),
        (pb.Vector(), [], Scored.INFERRED),
        (
            pb.ContextExamplePair(
                positive=pb.VectorExample(id=pb.PointId(num=4)), negative=pb.VectorExample(id=pb.PointId(num=5))
            ),
            [4, 5],
            Scored.INFERRED,
        ),
        (pb.PointId(num=4), [4], Scored.INFERRED),
    ],
    ids=str,
)
def test_inputs_of_each_form(message: Any, examples: list[object], scored: Scored) -> None:
    inputs = found(message)
    assert (list(inputs.examples), inputs.scored) == (examples, scored)


@rows(
    ("message", "content"),
    [
        (pb.Query(), b""),
        (pb.VectorInput(), b""),
        (pb.TargetVector(), b""),
        (pb.VectorExample(), b""),
        (pb.VectorInput(), dense(1.0).SerializeToString() + example(1).SerializeToString()),
        (pb.VectorInput(), example(1).SerializeToString() * 2),
        (pb.PointId(), b""),
        (pb.PointId(), b"\x08\x01\x08\x02"),
        (pb.PointId(), b"\x08\x01" + pb.PointId(uuid=UUID).SerializeToString()),
        (pb.PointId(), pb.PointId(uuid="1").SerializeToString()),
        (pb.PointId(), b"\x0a\x01\x01"),
        (pb.PointId(), b"\x18\x01"),
    ],
)
def test_no_two_readers_differ(message: Any, content: bytes) -> None:
    with pytest.raises((BadRequest, ProtobufError)):
        found(message, content)


def test_many_examples_are_found_in_steps() -> None:
    message = pb.RecommendInput(positive=[example(number) for number in range(STEP)]).SerializeToString()
    steps = list(Inputs().reading("RecommendInput", message, Reading()))
    assert len(steps) == 2


@pytest.mark.fuzz
@given(st.data())
def test_every_example_is_found(data: st.DataObject) -> None:
    """By whatever way it can be reached."""
    name = data.draw(st.sampled_from(sorted(INPUTS)))
    message = data.draw(qdrant.messages(getattr(pb, name).DESCRIPTOR, ALSO))
    try:
        inputs = found(message)
    except (BadRequest, ProtobufError):
        return
    assert set(inputs.examples) == set(ids_in(message))


ALSO = frozenset({"id", "num", "positive", "negative", "pairs", "context", "target", "feedback", "example", "nearest"})
