"""Tokens and keys in gRPC's metadata: conditions, certificates they are bound to, their end, and their rotation."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate
from qdrant_client import grpc as pb
from support.gateway import Gateway
from support.grpc_channels import Answered, call, channel
from support.grpc_traffic import LIST, GrpcClients
from support.grpc_upstream import GrpcUpstream
from support.site import Site
from support.upstream import OK as REST_OK
from support.upstream import Connection, Received, ScriptedUpstream

from tlsproxy.authz.tokens import mint

KEY = "manage-k3y"
SERVICE = {"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True}
OK = Answered(grpc.StatusCode.OK)
STATEFUL = "Invalid JWT, stateful validation failed"
LARGE = pb.UpsertPoints(collection_name="docs", points=[pb.PointStruct(id=pb.PointId(uuid="u" * 300_000))])


def token(access: object = "r", *, key: str = KEY, **claims: object) -> tuple[str, str]:
    return "api-key", mint(key, {"access": access, **claims})


def on_condition(value: Any = "alice", access: object = "m") -> tuple[str, str]:
    matches = [{"key": "name", "value": value}]
    return token(access, value_exists={"collection": "users", "matches": matches})


@pytest.fixture(scope="module")
def grpc_behind() -> Iterator[GrpcUpstream]:
    with GrpcUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, grpc_behind: GrpcUpstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(shared_upstream.url, grpc=grpc_behind.url, service=SERVICE)) as running:
        yield running


@pytest.fixture
def upstream(shared_upstream: ScriptedUpstream) -> ScriptedUpstream:
    shared_upstream.requests.clear()
    return shared_upstream


@pytest.fixture
def grpc_upstream(grpc_behind: GrpcUpstream) -> GrpcUpstream:
    grpc_behind.calls.clear()
    return grpc_behind


# A point that must exist


def response(status: int, body: object) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(data), data)


def scripted(upstream: ScriptedUpstream, scroll: bytes) -> None:
    def answer(connection: Connection, received: Received) -> None:
        received.body = connection.read_body(received)
        connection.sock.sendall(scroll if "/scroll " in received.line else REST_OK)

    upstream.answer = answer


FOUND = response(200, {"result": {"points": [{"id": 1}]}})
EMPTY = response(200, {"result": {"points": []}})


@pytest.mark.parametrize(
    ("scroll", "expected"),
    [
        (FOUND, OK),
        (EMPTY, Answered(grpc.StatusCode.UNAUTHENTICATED, STATEFUL)),
        (response(404, {"status": {"error": "x"}}), Answered(grpc.StatusCode.PERMISSION_DENIED, STATEFUL)),
        (
            response(500, {"status": {"error": "no shard answered"}}),
            Answered(grpc.StatusCode.INTERNAL, "no shard answered"),
        ),
        (
            response(429, {"status": {"error": "Rate limit exceeded"}}),
            Answered(grpc.StatusCode.RESOURCE_EXHAUSTED, "Rate limit exceeded"),
        ),
    ],
)
@pytest.mark.parametrize("access", ["m", [{"collection": "docs", "access": "rw"}]], ids=["global", "limited"])
def test_a_token_that_counts_while_a_point_exists(
    site: Site,
    gateway: Gateway,
    upstream: ScriptedUpstream,
    grpc_upstream: GrpcUpstream,
    scroll: bytes,
    expected: Answered,
    access: object,
) -> None:
    """The message waits meanwhile: a server has it only if the answer is good, and then to the byte."""
    scripted(upstream, scroll)
    message = LARGE.SerializeToString()
    with channel(gateway, site, None) as opened:
        assert call(opened, "/qdrant.Points/Upsert", message, on_condition(access=access)) == expected
        assert call(opened, "/qdrant.Qdrant/HealthCheck", b"", on_condition("nobody")) == OK
    record = gateway.audited(method="upsert_points")
    assert (record["auth_type"], record["result"]) == ("Jwt", "ok" if expected == OK else "denied")
    arrived = [one.messages for one in grpc_upstream.calls if one.method.endswith("Upsert") and one.messages]
    assert arrived == ([[message]] if expected == OK else [])
    assert json.loads(upstream.requests[0].body)["filter"]["must"] == [{"key": "name", "match": {"value": "alice"}}]


# What a token is bound to, and when it ends


def test_a_token_that_belongs_to_a_certificate(site: Site, gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    certificate = load_pem_x509_certificate((site.directory / "admin.pem").read_bytes())
    thumbprint = urlsafe_b64encode(certificate.fingerprint(SHA256())).rstrip(b"=").decode()
    bound = token("m", cnf={"x5t#S256": thumbprint})
    for client, code in (
        ("admin", grpc.StatusCode.OK),
        ("search", grpc.StatusCode.UNAUTHENTICATED),
        (None, grpc.StatusCode.UNAUTHENTICATED),
    ):
        with channel(gateway, site, client) as opened:
            assert call(opened, LIST, b"", bound).code is code
    assert len(grpc_upstream.calls) == 1


def test_a_token_that_runs_out_on_an_open_connection(site: Site, gateway: Gateway) -> None:
    """What was decided once on the same fields is not remembered beyond the token: 30 s of leeway, as in Qdrant."""
    ending = token("r", exp=int(time.time()) - 29)
    with channel(gateway, site, None) as opened:
        answers = [call(opened, LIST, b"", ending)]
        end = time.monotonic() + 10
        under_way = Answered(grpc.StatusCode.PERMISSION_DENIED, "The right to this has ended: token_expired")
        while answers[-1] in {OK, under_way} and time.monotonic() < end:
            time.sleep(0.02)  # nothing tells of that moment
            answers.append(call(opened, LIST, b"", ending))
        assert answers[0] == OK
        assert answers[-1] == Answered(grpc.StatusCode.PERMISSION_DENIED, "ExpiredSignature")
        assert call(opened, LIST, b"", token()) == OK


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", f"bearer {KEY}")],
        [("authorization", f"Bearer  {KEY}")],
        [("authorization", f"Basic {KEY}")],
        [("api-key", "")],
        [("api-key", "wr0ng"), ("authorization", f"Bearer {KEY}")],
    ],
)
def test_what_is_no_credential(site: Site, gateway: Gateway, metadata: list[tuple[str, str]]) -> None:
    with channel(gateway, site, None) as opened:
        assert call(opened, LIST, b"", *metadata).code is grpc.StatusCode.UNAUTHENTICATED
        assert call(opened, LIST, b"", ("authorization", f"Bearer {KEY}")) == OK
        assert call(opened, LIST, b"", ("api-key", KEY), ("authorization", "Bearer wr0ng")) == OK


# Keys that are replaced under way


OLD, NEW = "the-old-signing-key", "the-new-signing-key"


@pytest.mark.parametrize("kind", ["keys", "tokens"])
def test_add_move_drop(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, kind: str) -> None:
    """No call fails that is sent with what is still meant to be good."""
    sent = {key: key if kind == "keys" else token(key=key)[1] for key in (OLD, NEW)}
    own_site.write("old.key", OLD.encode())
    own_site.write("new.key", NEW.encode())
    service = {"verify_https_client_certificate": False, "api_key_file": "old.key", "jwt_rbac": True}
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url, service=service)
    with Gateway(config) as gateway, channel(gateway, own_site, None) as kept:
        assert call(kept, LIST, b"", ("api-key", sent[NEW])) != OK
        assert call(kept, LIST, b"", ("api-key", sent[OLD])) == OK
        clients = GrpcClients(gateway, own_site, None, sent[OLD])
        with clients.calling():
            clients.wait_for(sent[OLD])
            own_site.edit_config(config, service={"alt_api_key_file": "new.key"})
            gateway.reloaded()
            clients.wait_for(sent[OLD])
            clients.key = sent[NEW]
            clients.wait_for(sent[NEW])
            clients.wait_for(sent[NEW])  # whoever was under way with the old one has its answer
            own_site.edit_config(config, service={"api_key_file": "new.key", "alt_api_key_file": None})
            gateway.reloaded()
            clients.wait_for(sent[NEW])
        assert {answered for _, answered in clients.answers} == {OK}
        assert {key for key, _ in clients.answers} == set(sent.values())
        assert call(kept, LIST, b"", ("api-key", sent[OLD])).code in {
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.PERMISSION_DENIED,
        }
        assert call(kept, LIST, b"", ("api-key", sent[NEW])) == OK
        records = "\n".join(str(record) for record in gateway.stop())
        log = "\n".join(gateway.log.seen)
    for secret in (OLD, NEW, *sent.values()):
        assert secret not in records
        assert secret not in log
