"""Marks in the payload of new points over gRPC: those of REST, for values of all types and paths of all forms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from support.rows import rows
from support.tenant_roles import marked

from tlsproxy.authz.access import Condition, Confinement, Value
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant.grpc_decision import confine_message, operation_of
from tlsproxy.qdrant.grpc_rewrite import STEP
from tlsproxy.qdrant.rest_tenancy import confine
from tlsproxy.qdrant.router import recognise
from tlsproxy.qdrant.tenant_filters import marks_of
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.protobuf import ProtobufError, delimited

scalars = st.sampled_from(["acme", "x", "", 1, 0, -1, True, False, None, 1.0, 2**63 - 1])
payloads = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["b", "c"]), inner, max_size=2),
        max_leaves=5,
    ),
    max_size=3,
)
keys = st.sampled_from(["a", "b", "d", "d.a", "a.b", "a[].b", '"d"', ""])
values = st.lists(st.sampled_from(["acme", "x", 1, 0, -(2**63), True, False]), min_size=1, max_size=2, unique_by=repr)
conditions = st.builds(
    Condition, st.sampled_from(["a", "b", "a.b", "a[].b", "a.b[].c", "a[].b.c"]), values.map(tuple)
)  # fmt: skip


def upserted(payload: Any, mine: Confinement) -> Any:
    """The payload that is sent for a point with this one."""
    operation = operation_of("/qdrant.Points/Upsert")
    assert operation is not None
    points = pb.UpsertPoints(
        collection_name="docs", points=[pb.PointStruct(payload=RestToGrpc.convert_payload(payload))]
    )
    sent = at_once(confine_message(operation, "docs", points.SerializeToString(), (mine,))).content
    return GrpcToRest.convert_payload(pb.UpsertPoints.FromString(sent).points[0].payload)


def typed(value: Any) -> Any:
    """To tell True from 1, and 1 from 1.0."""
    if isinstance(value, dict):
        return {key: typed(one) for key, one in value.items()}
    return [typed(one) for one in value] if isinstance(value, list) else (type(value), value)


@pytest.mark.fuzz
@example({"a": [{"b": "acme"}, {}]}, [Condition("a[].b", ("acme",))])
@example({"a": None}, [Condition("a.b", ("x",))])
@example({"a": {"b": None}}, [Condition("a.b", ("x",))])
@example({"a": None}, [Condition("a[].b", ("x",)), Condition("b", (1,))])
@example({"a": {"b": 1}}, [Condition("a.b", (True,))])
@example({}, [Condition("a.b", ("x",)), Condition("a.c[].b", (1,))])
@given(payloads, st.lists(conditions, min_size=1, max_size=2))
def test_both_apis_mark_alike(payload: dict[str, Any], mine: list[Condition]) -> None:
    confinement = Confinement(tuple(mine))
    try:
        expected = typed(marked(copy.deepcopy(payload), marks_of((confinement,))))
    except Unconfined:
        expected = None
    try:
        made = typed(upserted(payload, confinement))
    except Unconfined:
        made = None
    assert made == expected


@pytest.mark.fuzz
@given(st.sampled_from(["PUT", "POST"]), payloads, st.lists(conditions, min_size=1, max_size=2), st.none() | keys)
def test_both_apis_set_payloads_alike(
    method: str, payload: dict[str, Any], mine: list[Condition], key: str | None
) -> None:
    """PUT overwrites."""
    body = {"payload": copy.deepcopy(payload), "points": [3], **({} if key is None else {"key": key})}
    confinements = (Confinement(tuple(mine)),)
    try:
        asked = recognise(method, "/collections/docs/points/payload")
        expected = typed(at_once(confine(asked, body, confinements)).body["payload"])
    except Unconfined:
        expected = None
    message = pb.SetPayloadPoints(
        collection_name="docs", payload=RestToGrpc.convert_payload(payload), points_selector=BY_IDS, key=key
    )
    path = "OverwritePayload" if method == "PUT" else "SetPayload"
    try:
        made = pb.SetPayloadPoints.FromString(sent(f"/qdrant.Points/{path}", message, *mine))
    except Unconfined:
        assert expected is None
    else:
        assert typed(GrpcToRest.convert_payload(made.payload)) == expected


def sent(path: str, message: Any, *mine: Condition) -> bytes:
    operation = operation_of(path)
    assert operation is not None
    content = message if isinstance(message, bytes) else message.SerializeToString()
    return at_once(confine_message(operation, "docs", content, (Confinement(mine),))).content


NESTED = (Condition("a[].b", (7,)), Condition("c.d", (True,)))
MARKS = {"a": [{"b": 7}], "c": {"d": True}}
BY_IDS = pb.PointsSelector(points=pb.PointsIdsList(ids=[pb.PointId(num=3), pb.PointId(num=4)]))


def test_a_payload_is_overwritten_and_cleared_with_all_marks() -> None:
    overwrite = pb.SetPayloadPoints(collection_name="docs", points_selector=BY_IDS)
    ordering = pb.WriteOrdering(type=pb.WriteOrderingType.Strong)
    keys = pb.ShardKeySelector(shard_keys=[pb.ShardKey(keyword="k")])
    cleared = pb.ClearPayloadPoints(
        collection_name="docs", wait=True, points=BY_IDS, ordering=ordering, shard_key_selector=keys, timeout=9
    )
    for path, message in (("OverwritePayload", overwrite), ("ClearPayload", cleared)):
        made = pb.SetPayloadPoints.FromString(sent(f"/qdrant.Points/{path}", message, *NESTED))
        assert GrpcToRest.convert_payload(made.payload) == MARKS
        assert list(made.points_selector.filter.must[0].has_id.has_id) == list(BY_IDS.points.ids)
        assert [one.WhichOneof("condition_one_of") for one in made.points_selector.filter.must[1:]] == ["field"] * 2
    assert (made.wait, made.ordering, made.shard_key_selector, made.timeout) == (True, ordering, keys, 9)


def test_a_batch_clears_with_all_marks() -> None:
    operations = [
        pb.PointsUpdateOperation(clear_payload=pb.PointsUpdateOperation.ClearPayload(points=BY_IDS)),
        pb.PointsUpdateOperation(clear_payload_deprecated=BY_IDS),
        pb.PointsUpdateOperation(delete_deprecated=BY_IDS),
    ]
    message = pb.UpdateBatchPoints(collection_name="docs", operations=operations)
    made = pb.UpdateBatchPoints.FromString(sent("/qdrant.Points/UpdateBatch", message, *NESTED)).operations
    assert [one.WhichOneof("operation") for one in made] == ["overwrite_payload"] * 2 + ["delete_points"]
    for one in made[:2]:
        assert GrpcToRest.convert_payload(one.overwrite_payload.payload) == MARKS
        assert list(one.overwrite_payload.points_selector.filter.must[0].has_id.has_id) == list(BY_IDS.points.ids)
    assert list(made[2].delete_points.points.filter.must[0].has_id.has_id) == list(BY_IDS.points.ids)


@pytest.mark.parametrize("path", ["OverwritePayload", "ClearPayload"])
def test_of_several_values_none_is_chosen(path: str) -> None:
    message = delimited(1, b"docs") + delimited(3 if path == "ClearPayload" else 5, BY_IDS.SerializeToString())
    with pytest.raises(Unconfined, match=r"one of several values|tenant"):
        sent(f"/qdrant.Points/{path}", message, Condition("tenant", ("acme", "umbrella")))


def entry(key: bytes, value: bytes) -> bytes:
    return delimited(3, delimited(1, key) + delimited(2, value))


INNER = delimited(1, delimited(1, b"b") + delimited(2, b"\x18\x07"))
OTHER = delimited(1, delimited(1, b"b") + delimited(2, b"\x18\x08"))


@rows(
    "payload",
    [
        entry(b"a", delimited(6, INNER + OTHER)),
        entry(b"a", delimited(6, OTHER + INNER)),
        entry(b"a", delimited(6, INNER) + delimited(6, OTHER)),
        entry(b"a", delimited(6, INNER) + b"\x18\x07"),
        entry(b"a", delimited(6, INNER)) + entry(b"a", delimited(6, OTHER)),
        entry(b"a", delimited(6, delimited(1, delimited(1, b"b") * 2 + delimited(2, b"\x18\x07")))),
        entry(b"a", delimited(6, delimited(1, delimited(1, b"b") + delimited(2, b"\x18\x08\x18\x07")))),
        entry(b"a", delimited(6, delimited(2, b"") + INNER)),
        entry(b"a", delimited(6, delimited(1, delimited(1, b"b") + delimited(2, b"\x18\x87\x00")))),
        entry(b"a", delimited(7, delimited(1, delimited(6, INNER)))),
        entry(b"a", b""),
        entry(b"a", delimited(8, b"")),
    ],
)
def test_nothing_hides_in_a_struct(payload: bytes) -> None:
    message = delimited(1, b"docs") + delimited(3, payload)
    assert sent("/qdrant.Points/Upsert", delimited(1, b"docs") + delimited(3, entry(b"a", delimited(6, INNER))), AB)
    with pytest.raises((BadRequest, ProtobufError, Unconfined)):
        sent("/qdrant.Points/Upsert", message, AB)


AB = Condition("a.b", (7,))


@pytest.mark.parametrize(
    "struct", [{"a": {str(n): n for n in range(STEP)}}, {"a": [{"b": 7}] * STEP}], ids=["a", "a[]"]
)
def test_long_ones_are_marked_in_steps(struct: Value) -> None:
    operation = operation_of("/qdrant.Points/Upsert")
    assert operation is not None
    message = pb.UpsertPoints(points=[pb.PointStruct(payload=RestToGrpc.convert_payload(struct))]).SerializeToString()
    path = "a.b" if isinstance(struct["a"], dict) else "a[].b"
    steps = list(confine_message(operation, "docs", message, (Confinement((Condition(path, (7,)),)),)))
    assert len(steps) > 3
