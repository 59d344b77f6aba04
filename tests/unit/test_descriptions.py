"""The description of a collection for a tenant has its configuration, and no number of all points."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client import grpc
from qdrant_client import models as m

from tlsproxy.qdrant.descriptions import DescriptionReducer, describing
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.protobuf import ProtobufError

CONFIG = {"params": {"vectors": {"size": 4, "distance": "Cosine"}}}
KEYWORD = {"data_type": "keyword", "points": 7}


def described(**members: Any) -> Any:
    return at_once(describing({"status": "green", "optimizer_status": "ok", "config": CONFIG, **members}))


def test_no_number_is_left() -> None:
    counts = {"points_count": 90, "indexed_vectors_count": 80, "segments_count": 5, "vectors_count": 90}
    more = {"warnings": [{"message": "90 points"}], "update_queue": {"length": 3}, "of_a_newer_release": 90}
    assert described(payload_schema={"n": KEYWORD}, **counts, **more) == {
        "status": "green",
        "optimizer_status": "ok",
        "config": CONFIG,
        "segments_count": 0,
        "payload_schema": {"n": {"data_type": "keyword", "points": 0}},
    }


def test_an_error_of_the_optimizers_keeps_its_text_to_itself() -> None:
    error = described(optimizer_status={"error": "point 17 of umbrella"})["optimizer_status"]["error"]
    assert "umbrella" not in error


@pytest.mark.parametrize("result", [None, [], True, "green"])
def test_another_form_is_no_description(result: object) -> None:
    with pytest.raises(ValueError, match="description"):
        at_once(describing(result))


@pytest.mark.parametrize("error", ["", "point 17 of umbrella"])
def test_the_message_likewise(error: str) -> None:
    whole = grpc.GetCollectionInfoResponse(
        time=0.5,
        result=grpc.CollectionInfo(
            status=grpc.CollectionStatus.Green,
            optimizer_status=grpc.OptimizerStatus(ok=not error, error=error),
            segments_count=5,
            points_count=90,
            indexed_vectors_count=80,
            payload_schema={"n": grpc.PayloadSchemaInfo(data_type=grpc.PayloadSchemaType.Keyword, points=7)},
            config=grpc.CollectionConfig(params=grpc.CollectionParams(shard_number=2)),
            warnings=[grpc.CollectionWarning(message="90 points")],
        ),
    )
    left = grpc.GetCollectionInfoResponse.FromString(at_once(DescriptionReducer().reducing(whole.SerializeToString())))
    assert left.time == 0.5
    assert left.result.config == whole.result.config
    assert left.result.status == whole.result.status
    assert left.result.optimizer_status.ok is not bool(error)
    assert "umbrella" not in left.result.optimizer_status.error
    assert left.result.payload_schema["n"] == grpc.PayloadSchemaInfo(data_type=grpc.PayloadSchemaType.Keyword)
    numbers = {one.name for one, _ in left.result.ListFields()}
    assert numbers == {"status", "optimizer_status", "config", "payload_schema"}


def test_members_that_clients_require_are_there() -> None:
    assert m.CollectionInfo.model_fields.keys() >= described(payload_schema={}).keys()
    required = {name for name, one in m.CollectionInfo.model_fields.items() if one.is_required()}
    assert required <= described(payload_schema={}).keys()


def test_a_message_that_is_broken() -> None:
    with pytest.raises(ProtobufError):
        at_once(DescriptionReducer().reducing(b"\x0a\xff"))
