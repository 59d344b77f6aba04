"""Long gRPC messages are decided in steps, as long bodies are: no run of work between two of them is long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson
import pytest
from qdrant_client import grpc as pb
from support.rows import rows
from support.steps import MOST_CALLS, Calls, longest_run
from support.tenant_roles import confinement

from tlsproxy.authz.query_policy import QueryPolicy, hidden_keys, parse_key_path
from tlsproxy.errors import RequestError
from tlsproxy.qdrant import tenant_examples
from tlsproxy.qdrant.grpc_decision import collection_finder, confine_message, message_under_policy, operation_of
from tlsproxy.qdrant.grpc_retrieval import point_id
from tlsproxy.qdrant.rest_hidden import stripping_of
from tlsproxy.qdrant.rest_tenancy import confine
from tlsproxy.qdrant.router import recognise
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.wire.cooperative import STEP, Steps, at_once
from tlsproxy.wire.http2 import MAX_FRAME
from tlsproxy.wire.protobuf import ProtobufError

TENANT: Final = confinement(tenant="acme")
DEEP_TENANT: Final = confinement(**{"parts[].tenant": "acme"})
HIDING: Final = QueryPolicy(hidden=hidden_keys(map(parse_key_path, ["salary", "contact.email"])))
FACTS: Final = Facts((1, 20), frozenset(), frozenset())
LONG: Final = STEP + STEP // 4

ID: Final = pb.PointId(num=1)
FIELD: Final = pb.Condition(field=pb.FieldCondition(key="a", match=pb.Match(integer=1)))
MARKED: Final = pb.Value(struct_value=pb.Struct(fields={"tenant": pb.Value(string_value="acme")}))
VECTORS: Final = pb.Vectors(vector=pb.Vector(dense=pb.DenseVector(data=[1.0])))


def ids(n: int) -> pb.PointsSelector:
    return pb.PointsSelector(points=pb.PointsIdsList(ids=[ID] * n))


def conditions(n: int) -> pb.Filter:
    return pb.Filter(must=[FIELD] * n)


def examples(n: int) -> pb.Query:
    vector = pb.VectorInput(dense=pb.DenseVector(data=[1.0]))
    return pb.Query(recommend=pb.RecommendInput(positive=[vector] * n))


def values(n: int) -> dict[str, pb.Value]:
    return {str(one): pb.Value(bool_value=True) for one in range(n)}


def in_a_batch(**operation: Any) -> pb.UpdateBatchPoints:
    return pb.UpdateBatchPoints(operations=[pb.PointsUpdateOperation(**operation)])


DELETION: Final = pb.PointsUpdateOperation(delete_points=pb.PointsUpdateOperation.DeletePoints(points=ids(20)))

confined, deep, policed = "confined", "deep", "policed"
LONG_MESSAGES: Final[list[tuple[str, Callable[[int], Any], str]]] = [
    ("Delete", lambda n: pb.DeletePoints(points=ids(n)), confined),
    ("DeleteVectors", lambda n: pb.DeletePointVectors(points_selector=ids(n)), confined),
    ("DeletePayload", lambda n: pb.DeletePayloadPoints(points_selector=ids(n), keys=["a"]), confined),
    ("DeletePayload", lambda n: pb.DeletePayloadPoints(points_selector=ids(1), keys=["a"] * n), confined),
    ("SetPayload", lambda n: pb.SetPayloadPoints(points_selector=ids(n)), confined),
    ("SetPayload", lambda n: pb.SetPayloadPoints(points_selector=ids(1), payload=values(n)), confined),
    ("OverwritePayload", lambda n: pb.SetPayloadPoints(points_selector=ids(n)), confined),
    ("ClearPayload", lambda n: pb.ClearPayloadPoints(points=ids(n)), confined),
    (
        "UpdateBatch",
        lambda n: in_a_batch(delete_points=pb.PointsUpdateOperation.DeletePoints(points=ids(n))),
        confined,
    ),
    ("UpdateBatch", lambda n: pb.UpdateBatchPoints(operations=[DELETION] * (n // 20)), confined),
    ("Upsert", lambda n: pb.UpsertPoints(points=[pb.PointStruct(id=ID, vectors=VECTORS)] * n), confined),
    ("Upsert", lambda n: pb.UpsertPoints(points=[pb.PointStruct(id=ID, payload=values(n))]), confined),
    (
        "Upsert",
        lambda n: pb.UpsertPoints(
            points=[
                pb.PointStruct(
                    id=ID, payload={"parts": pb.Value(list_value=pb.ListValue(values=[MARKED] * n))}, vectors=VECTORS
                )
            ]
        ),
        deep,
    ),
    ("Get", lambda n: pb.GetPoints(ids=[ID] * n), confined),
    ("Query", lambda n: pb.QueryPoints(query=examples(n)), confined),
    ("Query", lambda n: pb.QueryPoints(prefetch=[pb.PrefetchQuery()] * n), confined),
    (
        "Query",
        lambda n: pb.QueryPoints(
            query=pb.Query(nearest=pb.VectorInput(id=ID)),
            lookup_from=pb.LookupLocation(
                collection_name="docs",
                shard_key_selector=pb.ShardKeySelector(shard_keys=[pb.ShardKey(number=1)] * n),
            ),
        ),
        confined,
    ),
    ("SetPayload", lambda n: pb.SetPayloadPoints(points_selector=ids(1), payload=values(n)), policed),
    (
        "UpdateBatch",
        lambda n: in_a_batch(set_payload=pb.PointsUpdateOperation.SetPayload(payload=values(n))),
        policed,
    ),
    ("DeletePayload", lambda n: pb.DeletePayloadPoints(points_selector=ids(1), keys=["a.b"] * n), policed),
    ("Upsert", lambda n: pb.UpsertPoints(points=[pb.PointStruct(payload=values(n))]), policed),
    ("Scroll", lambda n: pb.ScrollPoints(filter=conditions(n)), policed),
    ("Scroll", lambda n: pb.ScrollPoints(filter=pb.Filter(must_not=[FIELD] * n)), policed),
    (
        "Scroll",
        lambda n: pb.ScrollPoints(
            filter=pb.Filter(must=[pb.Condition(nested=pb.NestedCondition(key="a", filter=conditions(n)))])
        ),
        policed,
    ),
    (
        "Get",
        lambda n: pb.GetPoints(
            with_payload=pb.WithPayloadSelector(include=pb.PayloadIncludeSelector(fields=["a.b"] * n))
        ),
        policed,
    ),
    ("QueryBatch", lambda n: pb.QueryBatchPoints(query_points=[pb.QueryPoints(limit=1)] * n), policed),
    (
        "Query",
        lambda n: pb.QueryPoints(
            query=pb.Query(
                formula=pb.Formula(expression=pb.Expression(sum=pb.SumExpression(sum=[pb.Expression(constant=1)] * n)))
            )
        ),
        policed,
    ),
]


def work(method: str, message: bytes, stage: str) -> Steps[Any]:
    operation = operation_of(f"/qdrant.Points/{method}")
    assert operation is not None
    if stage == policed:
        return message_under_policy(operation, message, HIDING)
    return confine_message(operation, "docs", message, DEEP_TENANT if stage == deep else TENANT, FACTS)


@rows(("method", "message", "stage"), LONG_MESSAGES)
def test_a_long_message_is_decided_in_steps(method: str, message: Callable[[int], Any], stage: str) -> None:
    made = message(LONG)
    if hasattr(made, "collection_name"):
        made.collection_name = "docs"
    try:
        longest, count = longest_run(work(method, made.SerializeToString(), stage))
    except RequestError as error:
        pytest.fail(f"refused: {error}")
    assert count >= 1
    assert longest < MOST_CALLS


@rows(
    ("method", "frame"),
    [
        ("Get", b"\x12\x00" * (MAX_FRAME // 2)),
        ("Get", b"\x12\x02\x08\x01" * (MAX_FRAME // 4)),
        ("Upsert", b"\x1a\x00" * (MAX_FRAME // 2)),
        ("Search", b"\x12\x00" * (MAX_FRAME // 2)),
        ("Recommend", b"\x12\x00" * (MAX_FRAME // 2)),
    ],
)
def test_a_frame_of_a_list_is_followed_at_once(method: str, frame: bytes) -> None:
    """No frame is cut: short items of a list that names nothing are skipped together."""
    operation = operation_of(f"/qdrant.Points/{method}")
    assert operation is not None
    finder = collection_finder(operation)
    finder.feed(b"\x0a\x04docs")
    assert Calls().of(lambda: finder.feed(frame)) < 100


def test_an_id_is_not_read_beyond_what_makes_it_none() -> None:
    def read() -> None:
        with pytest.raises(ProtobufError, match="a number or a UUID"):
            point_id(b"\x08\x01" * MAX_FRAME)

    assert Calls().of(read) < 200


def test_the_shard_keys_of_a_lookup_are_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    place = tenant_examples.place
    monkeypatch.setattr("tlsproxy.qdrant.rest_tenant_reads.place", lambda *of: written.append(of) or place(*of))
    body = {
        "query": {"recommend": {"positive": list(range(100))}},
        "lookup_from": {"collection": "docs", "shard_key": ["a", "b"]},
    }
    at_once(confine(recognise("POST", "/collections/docs/points/query"), body, TENANT, FACTS))
    assert written == [("docs", ["a", "b"])]


@rows(
    ("path", "result"),
    [
        ("query/batch", [{"points": []}] * 4 * LONG),
        ("search/batch", [[]] * 4 * LONG),
        ("query/groups", {"groups": [{"hits": []}] * 4 * LONG}),
    ],
)
def test_an_answer_without_points_is_stripped_in_steps(path: str, result: Any) -> None:
    operation = recognise("POST", f"/collections/docs/points/{path}").operation
    assert operation is not None
    stripping = stripping_of(operation, HIDING)
    assert stripping is not None
    longest, _ = longest_run(stripping.reducing(orjson.dumps({"result": result, "status": "ok", "time": 0.1})))
    assert longest < MOST_CALLS
