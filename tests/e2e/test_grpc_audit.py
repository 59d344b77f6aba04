"""One audit line for each gRPC call, whatever became of it; and never a secret in it, or what a message says."""

from __future__ import annotations

import asyncio
import re

import grpc
import pytest
from hyperframe.frame import DataFrame, RstStreamFrame
from qdrant_client import grpc as pb
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import aio_channel, call, channel
from support.grpc_upstream import GrpcCall, GrpcUpstream, failing, never, replying
from support.h2_raw_client import fields, h2, message
from support.site import Site
from support.upstream import ScriptedUpstream

SCROLL = "/qdrant.Points/Scroll"
DOCS = pb.ScrollPoints(collection_name="docs").SerializeToString()
OTHER = pb.ScrollPoints(collection_name="other").SerializeToString()
FIELDS = [
    "timestamp",
    "method",
    "api",
    "auth_type",
    "subject",
    "remote",
    "tls_version",
    "tls_cipher",
    "collection",
    "tracing_id",
    "result",
    "error",
    "role",
    "rule",
    "certificate_subject",
    "certificate_sha256",
    "ca_sha256",
    "request_id",
    "status",
    "grpc_status",
    "bytes_in",
    "bytes_out",
    "duration_ms",
    "reason",
]


@pytest.fixture
def gateway(grpc_gateway: Gateway) -> Gateway:
    return grpc_gateway


def calls_of(gateway: Gateway) -> list[dict[str, object]]:
    return [record for record in gateway.stop() if "event" not in record]


def test_every_field_and_their_order(site: Site, gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    grpc_upstream.answer = replying(b"answer")
    with channel(gateway, site, "ingest") as opened:
        trace = [("x-request-id", "trace-1"), ("traceparent", "another")]
        assert call(opened, SCROLL, DOCS, *trace).message == b"answer"
        assert call(opened, SCROLL, OTHER).code is grpc.StatusCode.PERMISSION_DENIED
    allowed, denied = calls_of(gateway)
    for record in (allowed, denied):
        record.pop("tls_group", None)  # told by some versions of Python
    assert list(allowed) == [field for field in FIELDS if field != "error"]
    assert list(denied) == [field for field in FIELDS if field != "tracing_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", str(allowed["timestamp"]))
    assert 0 < float(str(allowed["duration_ms"])) < 20_000
    assert re.fullmatch(r"[0-9a-f]{32}", str(allowed["request_id"]))
    for field in ("timestamp", "duration_ms", "certificate_sha256", "ca_sha256", "request_id"):
        del allowed[field]
    assert allowed == {
        "method": "scroll",
        "api": SCROLL,
        "auth_type": "Certificate",
        "subject": "CN=ingest-7",
        "remote": "127.0.0.1",
        "tls_version": "TLSv1.3",
        "tls_cipher": "TLS_AES_256_GCM_SHA384",
        "collection": "docs",
        "tracing_id": "trace-1",
        "result": "ok",
        "role": "ingest",
        "rule": "ingest-jobs",
        "certificate_subject": "CN=ingest-7",
        "status": 200,
        "grpc_status": 0,
        "bytes_in": len(DOCS) + 5,
        "bytes_out": 6 + 5,
        "reason": "allowed",
    }
    assert denied["error"] == "Forbidden: Access to collection other is required"
    assert (denied["collection"], denied["result"], denied["grpc_status"]) == ("other", "denied", 7)


OUTCOMES = {
    "allowed": (replying(b""), "/qdrant.Collections/List", ("ok", 200, 0, "allowed")),
    "unknown method": (replying(b""), "/qdrant.Collections/Lists", ("denied", 200, 12, "unknown_operation")),
    "refused by the method": (replying(b""), "/qdrant.Collections/Delete", ("denied", 200, 7, "needs_manage")),
    "refused by the upstream": (
        failing(grpc.StatusCode.NOT_FOUND, "no such collection"),
        "/qdrant.Collections/List",
        ("ok", 200, 5, "allowed"),
    ),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_one_line_for_each_outcome(site: Site, gateway: Gateway, grpc_upstream: GrpcUpstream, outcome: str) -> None:
    grpc_upstream.answer, path, expected = OUTCOMES[outcome]
    with channel(gateway, site, "search") as opened:
        call(opened, path)
    (record,) = calls_of(gateway)
    assert record["api"] == path
    assert (record["result"], record["status"], record["grpc_status"], record["reason"]) == expected


def test_a_call_that_its_client_gives_up(site: Site, gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    grpc_upstream.answer = never
    with channel(gateway, site) as opened:
        waiting = opened.unary_unary(SCROLL).future(DOCS)
        (begun,) = grpc_upstream.wait()
        waiting.cancel()
        assert begun.ended.wait(DEADLINE)
        gateway.audited(reason="client_cancelled")
    (record,) = calls_of(gateway)
    assert (record["result"], record["status"]) == ("ok", 499)
    assert "grpc_status" not in record
    assert begun.cancelled


def test_a_deadline_that_passes(site: Site, gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    """Whoever notices first ends it, by a cancellation or by a status: one line either way."""
    grpc_upstream.answer = never
    with channel(gateway, site) as opened:
        grpc.channel_ready_future(opened).result(DEADLINE)  # or the deadline could pass before there was a call
        with pytest.raises(grpc.RpcError) as late:
            opened.unary_unary(SCROLL)(DOCS, timeout=0.2)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (record,) = calls_of(gateway)
    assert record["reason"] in {"client_cancelled", "client_gone", "allowed", "deadline_exceeded"}


def test_a_connection_that_goes_in_the_middle(site: Site, gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    grpc_upstream.answer = never
    with h2(gateway, site) as client:
        for _ in range(5):
            client.call(DOCS, fields(SCROLL))
        grpc_upstream.wait(5)
    for _ in range(5):
        gateway.audited(reason="client_gone")
    records = calls_of(gateway)
    assert [record["status"] for record in records] == [499] * 5
    assert all(one.ended.wait(DEADLINE) and one.cancelled for one in grpc_upstream.calls)


def test_calls_that_are_none(site: Site, gateway: Gateway) -> None:
    malformed, no_grpc, twice, unfinished, resets = range(1, 10, 2)
    with h2(gateway, site, "ingest") as client:
        assert client.open(fields(SCROLL, ("Upper", "x"))) == malformed
        client.reset(malformed)
        head = [field for field in fields(SCROLL) if field[0] != "content-type"]
        assert client.call(b"", head) == no_grpc
        assert client.fields(no_grpc)[":status"] == "415"
        assert client.call(b"", fields(SCROLL, ("api-key", "a"), ("api-key", "b"))) == twice
        assert client.status(twice) == 3
        assert client.open(fields(SCROLL)) == unfinished
        client.send(DataFrame(unfinished, message(DOCS)[:-1], flags=["END_STREAM"]))
        assert client.status(unfinished) == 3
        assert client.open(fields(SCROLL)) == resets
        client.send(RstStreamFrame(resets, error_code=8))
        client.lives()
    found = [(one["result"], one["status"], one.get("grpc_status"), one["reason"]) for one in calls_of(gateway)]
    assert found == [
        ("denied", 499, None, "malformed_stream"),
        ("denied", 415, 12, "not_grpc"),
        ("denied", 200, 3, "bad_request"),
        ("denied", 200, 3, "bad_request"),
        ("denied", 499, None, "client_cancelled"),
    ]


def test_hundreds_of_calls_have_a_line_each(site: Site, gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    """On one connection, with all outcomes mixed."""

    async def some(one: GrpcCall) -> None:
        while await one.receive() is not None:
            pass
        if int(str(one.metadata["x-tracing-id"])) % 3 == 1:
            await one.fail(grpc.StatusCode.NOT_FOUND, "none")
        await one.send(b"")

    grpc_upstream.answer = some

    async def ask() -> list[int]:
        async with aio_channel(gateway, site, "ingest") as opened:
            scroll = opened.unary_unary(SCROLL)

            async def one(number: int) -> int:
                try:
                    await scroll(DOCS if number % 3 else OTHER, metadata=[("x-tracing-id", str(number))])
                except grpc.RpcError as error:
                    return int(error.code().value[0])
                return 0

            return await asyncio.gather(*(one(number) for number in range(300)))

    statuses = asyncio.run(asyncio.wait_for(ask(), DEADLINE))
    assert statuses == [7, 5, 0] * 100
    told = {int(str(record["tracing_id"])): record["grpc_status"] for record in calls_of(gateway)}
    assert told == dict(enumerate(statuses))


def test_nothing_secret_is_written(site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> None:
    keys = {"api_key": "S3CRET-a", "alt_api_key": "S3CRET-b", "read_only_api_key": "S3CRET-c"}
    config = site.write_config(
        upstream.url,
        grpc=grpc_upstream.url,
        service={"verify_https_client_certificate": False, **keys},
        upstream={"api_key": "S3CRET-d"},
        log_level="DEBUG",
    )
    point = pb.PointStruct(
        id=pb.PointId(num=1),
        vectors=pb.Vectors(vector=pb.Vector(dense=pb.DenseVector(data=[0.5317]))),
        payload={"S3CRET-payload": pb.Value(string_value="S3CRET-value")},
    )
    upsert = pb.UpsertPoints(collection_name="docs", points=[point]).SerializeToString()
    grpc_upstream.answer = failing(grpc.StatusCode.INTERNAL, "S3CRET-e", [("x-answer", "S3CRET-f")])
    with Gateway(config) as gateway:
        for client in (None, "admin", "ingest", "stranger"):
            with channel(gateway, site, client) as opened:
                for key in (*keys.values(), "S3CRET-wrong"):
                    for named in (("api-key", key), ("authorization", f"Bearer {key}")):
                        call(opened, "/qdrant.Points/Upsert", upsert, named)
                        call(opened, "/qdrant.Points/Nothing", upsert, named, ("cookie", key))
                        call(opened, "/qdrant.Collections/List", b"", named, ("x-secret-bin", key.encode()))
                    call(opened, "/qdrant.Points/Upsert", upsert[:-3], ("api-key", key))
                    call(opened, "/qdrant.Points/Upsert", upsert, ("api-key", key), ("api-key", key))
        _, metrics = gateway.ask_admin("/metrics")
        _, told = gateway.ask_admin("/status")
        records = gateway.stop()
    assert len(records) > 100
    written = "\n".join([*gateway._audit.seen, *gateway.log.seen, metrics, told])
    assert "S3CRET" not in written
    assert "0.5317" not in written


def test_no_line_can_be_forged(site: Site, gateway: Gateway) -> None:
    evil = '\xa0","result":"ok"}\x85{"forged":1}\t\xff\x9b2J'
    named = pb.ScrollPoints(collection_name='"}\n\u202e{"forged":1}').SerializeToString()
    with h2(gateway, site, "ingest") as client:
        head = [(name.encode(), value.encode("latin-1")) for name, value in fields(SCROLL, ("x-request-id", evil))]
        assert client.status(client.call(named, head)) == 7
    (record,) = calls_of(gateway)
    assert (record["result"], record["tracing_id"], record["collection"]) == (
        "denied",
        evil,
        '"}\n\u202e{"forged":1}',
    )
    assert all(line.isascii() and line.isprintable() for line in gateway._audit.seen)


def test_log_api_false_leaves_the_method_path_out(
    site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    config = site.write_config(upstream.url, grpc=grpc_upstream.url, audit={"log_api": False})
    with Gateway(config) as gateway:
        with channel(gateway, site) as opened:
            call(opened, "/qdrant.Collections/List")
        (record,) = calls_of(gateway)
    assert "api" not in record
    assert record["method"] == "list_collections"
