"""How large the bodies and messages of a role may be: what is larger is refused, and never whole upstream."""

from __future__ import annotations

from hashlib import sha256

import grpc
import pytest
from support.gateway import Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcUpstream
from support.limit_answers import role
from support.raw_connection import UPSERT, connected
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

MIB = 1 << 20
UPSERT_CALL = "/qdrant.Points/Upsert"
SIZES = {"small": 1, "large": 3}


@pytest.mark.parametrize(
    "access", ["m", [{"collection": "docs", "access": "rw"}]], ids=["streamed", "limited to collections"]
)
def test_a_body_that_says_its_length(own_site: Site, upstream: ScriptedUpstream, access: object) -> None:
    config = own_site.write_config(upstream.url, roles={"ingest": role(access, max_body_mb=1)})
    with (
        Gateway(config) as gateway,
        Client(gateway, own_site.client("ingest")) as client,
        Client(gateway, own_site.client("admin")) as admin,
    ):
        put = ("PUT", "/collections/docs/points")
        assert client.ask(*put, body=b" " * MIB).status == 200
        refused = client.ask(*put, body=b" " * (MIB + 1))
        assert (refused.status, refused.closing) == (413, True)
        assert refused.json["status"]["error"] == (
            "The body is larger than the caller's role may send (limit: 1048576 bytes)"
        )
        record = gateway.audited(status=413)
        assert (record["reason"], record["role"]) == ("role_body_too_large", "ingest")
        assert len(upstream.requests) == 1
        assert admin.ask(*put, body=b" " * (2 * MIB)).status == 200


def test_a_body_in_chunks_and_an_upload(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, roles={"admin": role("m", max_body_mb=1)})
    with Gateway(config) as gateway:
        with connected(gateway, own_site.client()) as client:
            client.send(
                UPSERT, b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n" % MIB, b" " * MIB, b"\r\n1\r\n \r\n0\r\n\r\n"
            )
            assert client.response().status == 413
        assert not [request for request in upstream.requests if request.body]
        with Client(gateway, own_site.client()) as uploader:
            upload = ("POST", "/collections/docs/snapshots/upload")
            assert uploader.ask(*upload, body=b"-" * (MIB + 1)).status == 413


@pytest.mark.parametrize(
    "access", ["m", [{"collection": "docs", "access": "rw"}]], ids=["relayed", "limited to collections"]
)
def test_a_message(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, access: object) -> None:
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url, roles={"ingest": role(access, max_body_mb=1)})
    with Gateway(config) as gateway, channel(gateway, own_site, "ingest") as opened:
        assert call(opened, UPSERT_CALL, _upsert(MIB)).code is grpc.StatusCode.OK
        refused = call(opened, UPSERT_CALL, _upsert(MIB + 1))
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.text == "The body is larger than the caller's role may send (limit: 1048576 bytes)"
        assert gateway.audited(grpc_status=8)["reason"] == "role_body_too_large"
        assert call(opened, UPSERT_CALL, _upsert(MIB)).code is grpc.StatusCode.OK, "the connection goes on"
        assert [len(message) for one in grpc_upstream.calls for message in one.messages] == [MIB, MIB]


def test_two_roles_of_one_caller(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> None:
    """A certificate's role and a key's: the smaller limit counts, on whichever side it is."""
    keys = {name: f"{name}-{'k' * 40}" for name in ("small", "large")}
    config = own_site.write_config(
        upstream.url,
        grpc=grpc_upstream.url,
        roles={name: role("m", max_body_mb=size) for name, size in {**SIZES, "ingest": 2}.items()},
        keys=[{"name": name, "role": name, "sha256": sha256(key.encode()).hexdigest()} for name, key in keys.items()],
    )
    with (
        Gateway(config) as gateway,
        Client(gateway, own_site.client("ingest")) as client,
        channel(gateway, own_site, "ingest") as opened,
    ):
        for name, most in (("small", 1), ("large", 2)):
            key = ("api-key", keys[name])
            put = ("PUT", "/collections/docs/points")
            assert client.ask(*put, fields=[key], body=b" " * (most * MIB)).status == 200
            with Client(gateway, own_site.client("ingest")) as refused:
                assert refused.ask(*put, fields=[key], body=b" " * (most * MIB + 1)).status == 413
            assert call(opened, UPSERT_CALL, _upsert(most * MIB), key).code is grpc.StatusCode.OK
            assert call(opened, UPSERT_CALL, _upsert(most * MIB + 1), key).code is grpc.StatusCode.RESOURCE_EXHAUSTED


def _upsert(size: int) -> bytes:
    """Of the collection docs, in so many bytes: a point whose id is long, and whose lengths are of four bytes each."""
    head = b"\x0a\x04docs"
    text = size - len(head) - 15
    uuid = b"\x12" + _length(text) + b"u" * text
    identity = b"\x0a" + _length(len(uuid)) + uuid
    message = head + b"\x1a" + _length(len(identity)) + identity
    assert len(message) == size
    return message


def _length(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21])
