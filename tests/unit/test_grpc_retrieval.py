"""The answer to a confined scroll as that of a retrieval by ids."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc as pb

from tlsproxy.qdrant.grpc_decision import confine_message, operation_of
from tlsproxy.qdrant.grpc_retrieval import RetrievedPoints
from tlsproxy.qdrant.grpc_rewrite import STEP
from tlsproxy.qdrant.point_ids import PointId, canonical_uuid
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.grpc import message

uuids = st.uuids().map(str)
ids = st.integers(0, 2**64 - 1) | uuids


def spelled(one: PointId, form: str = "{}") -> pb.PointId:
    return pb.PointId(num=one) if isinstance(one, int) else pb.PointId(uuid=form.format(one))


def scroll(asked: list[pb.PointId]) -> RetrievedPoints:
    operation = operation_of("/qdrant.Points/Get")
    assert operation is not None
    request = pb.GetPoints(collection_name="docs", ids=asked).SerializeToString()
    return RetrievedPoints(message(at_once(confine_message(operation, "docs", request, ())).content))


@pytest.mark.fuzz
@given(st.lists(ids, max_size=6, unique=True), st.data())
def test_points_come_in_the_order_of_the_ids(asked: list[PointId], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sampled_from(asked), max_size=9)) if asked else []
    there = data.draw(st.lists(st.sampled_from(asked), unique=True)) if asked else []
    found = {one: pb.RetrievedPoint(id=spelled(one), payload={"id": pb.Value(string_value=str(one))}) for one in there}
    forms = st.sampled_from(["{}", "{{{}}}", "urn:uuid:{}"])
    reshaping = scroll([spelled(one, data.draw(forms)) for one in wanted])
    answer = pb.ScrollResponse(result=found.values(), next_page_offset=pb.PointId(num=1), time=0.5)
    answer.usage.SetInParent()
    shown = pb.GetResponse.FromString(at_once(reshaping.reducing(answer.SerializeToString())))
    expected = [found[one] for one in dict.fromkeys(wanted) if one in found]
    assert shown == pb.GetResponse(result=expected, time=0.5, usage=answer.usage)


def test_it_is_done_in_steps() -> None:
    points = [pb.RetrievedPoint(id=pb.PointId(num=number)) for number in range(2 * STEP)]
    reshaping = scroll([one.id for one in points])
    answer = pb.ScrollResponse(result=points).SerializeToString()
    assert [one for one in reshaping.reducing(answer) if one is None] == [None] * 4


@pytest.mark.parametrize(
    "body",
    [b"\x12\x05", b"\x12\x00", b"\x12\x02\x0a\x00", b"\x12\x04\x0a\x02\x12\x00", b"\x12\x06\x0a\x04\x08\x01\x08\x02"],
)
def test_a_point_without_an_id_is_malformed(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|id"):
        at_once(scroll([]).reducing(body))


@given(st.uuids(), st.booleans())
def test_spellings_of_a_uuid(one: UUID, upper: bool) -> None:  # noqa: FBT001
    for text in (str(one), one.hex, one.urn, f"{{{one}}}"):
        assert canonical_uuid(text.upper() if upper else text) == str(one)
    assert canonical_uuid(canonical := str(one)) is canonical, "no copy of it"
    for text in (
        f"{{{one}",
        f"{one}}}",
        f"{one.hex}0",
        f"urn:uuid:{one.hex}",
        f" {one}",
        f"{one}\n",
        str(one)[:-1],
        "",
    ):
        assert canonical_uuid(text) is None
