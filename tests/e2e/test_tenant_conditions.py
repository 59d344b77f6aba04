"""Kinds of conditions: lists of a claim, numbers, booleans, keys below keys, and what is public besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.gateway import Gateway
from support.qdrant_clients import EmbeddedUpstream, qdrant, qdrant_by_grpc
from support.site import Site

from tlsproxy.authz.tokens import mint
from tlsproxy.cli import main

SECRET = "the-s1gning-key"
DOCS = [{"collection": "docs", "access": "rw"}]
ROLES = {
    "admin": {"access": "m"},
    "member": {"access": DOCS, "filter": {"acl[].group": "{claim:groups}"}, "or_public": {"meta.visibility": "public"}},
    "level": {"access": DOCS, "filter": {"level": 3, "draft": False}},
    "nested": {"access": DOCS, "filter": {"meta.org": "{claim:https://acme.example/org}"}},
}
IDENTITIES = [
    {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
    *({"name": name, "match": {"cn": name}, "role": name} for name in ("member", "level", "nested")),
]
REFUSED = (UnexpectedResponse, grpc.RpcError)
Tenant = Callable[..., QdrantClient]
PAYLOADS: dict[int, dict[str, Any]] = {
    1: {"acl": [{"group": "red"}], "meta": {"org": 7}},
    2: {"acl": [{"group": "red"}, {"group": "blue"}], "meta": {"org": "7"}},
    3: {"acl": [{"group": "green"}], "meta": {"visibility": "public", "org": True}},
    4: {"acl": [{"group": "green"}], "meta": {"visibility": "private"}},
    5: {"level": 3, "draft": False},
    6: {"level": 3, "draft": True},
    7: {"level": "3", "draft": False},
    8: {"acl": {"group": "red"}, "level": [3, 4], "draft": [False, True]},
}


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Gateway]:
    for name in ("member", "level", "nested"):
        site.issue(name, client=True, common_name=name)
    service = {"api_key": SECRET, "jwt_rbac": True}
    with (
        EmbeddedUpstream() as embedded,
        Gateway(
            site.write_config(embedded.url, grpc=embedded.grpc_url, service=service, roles=ROLES, identities=IDENTITIES)
        ) as running,
    ):
        yield running


@pytest.fixture
def admin(site: Site, gateway: Gateway) -> Iterator[QdrantClient]:
    client = qdrant(gateway, site.client("admin"))
    client.delete_collection("docs")
    client.create_collection("docs", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
    points = [m.PointStruct(id=n, vector=[1.0, n / 8], payload=payload) for n, payload in PAYLOADS.items()]
    client.upsert("docs", points)
    yield client
    client.close()


@pytest.fixture(params=["rest", "grpc"])
def tenant(request: pytest.FixtureRequest, gateway: Gateway, site: Site) -> Tenant:
    def client(name: str, **claims: object) -> QdrantClient:
        key = mint(SECRET, {"access": "m", **claims}) if claims else None
        if request.param == "rest":
            return qdrant(gateway, site.client(name), api_key=key)
        return qdrant_by_grpc(QdrantClient, gateway, site, name, api_key=key)

    return client


def seen(client: QdrantClient) -> set[object]:
    """The points that there are for a tenant, by every way to ask."""
    found: set[object] = {point.id for point in client.scroll("docs", limit=100)[0]}
    assert {point.id for point in client.retrieve("docs", list(PAYLOADS))} == found
    assert {point.id for point in client.query_points("docs", query=[1.0, 1.0], limit=100).points} == found
    assert client.count("docs").count == len(found)
    for example in found:
        assert {point.id for point in client.query_points("docs", query=example, limit=100).points} == found - {example}
    return found


def changed(client: QdrantClient, admin: QdrantClient) -> set[object]:
    """The points that a change of all reaches."""
    client.set_payload("docs", {"touched": True}, m.Filter())
    return {point.id for point in admin.scroll("docs", limit=100)[0] if (point.payload or {}).get("touched")}


@pytest.mark.parametrize(
    ("name", "claims", "readable", "writable"),
    [
        ("member", {"groups": ["red"]}, {1, 2, 3}, {1}),
        ("member", {"groups": ["red", "blue"]}, {1, 2, 3}, {1, 2}),
        ("member", {"groups": "green"}, {3, 4}, {3, 4}),
        ("member", {"groups": ["nobody"]}, {3}, set()),
        ("level", {}, {5, 8}, {5}),
        ("nested", {"https://acme.example/org": 7}, {1}, {1}),
        ("nested", {"https://acme.example/org": "7"}, {2}, {2}),
        ("nested", {"https://acme.example/org": True}, {3}, {3}),
        ("nested", {"https://acme.example/org": [7, "7"]}, {1, 2}, {1, 2}),
    ],
)
def test_the_points_of_a_tenant(
    tenant: Tenant,
    admin: QdrantClient,
    name: str,
    claims: dict[str, object],
    readable: set[object],
    writable: set[object],
) -> None:
    client = tenant(name, **claims)
    assert seen(client) == readable
    assert changed(client, admin) == writable
    client.delete("docs", list(PAYLOADS))
    assert {point.id for point in admin.scroll("docs", limit=100)[0]} == set(PAYLOADS) - writable
    client.close()


def payload_of(admin: QdrantClient, number: int) -> object:
    return admin.retrieve("docs", [number])[0].payload


def test_marks_of_new_points(tenant: Tenant, admin: QdrantClient) -> None:
    level = tenant("level")
    nested = tenant("nested", **{"https://acme.example/org": [7]})
    one, several = (tenant("member", groups=groups) for groups in (["red"], ["red", "blue"]))
    level.upsert("docs", [m.PointStruct(id=11, vector=[0.0, 1.0], payload={"a": 1})])
    nested.upsert("docs", [m.PointStruct(id=12, vector=[0.0, 1.0], payload={"meta": {"a": 1}})])
    one.upsert("docs", [m.PointStruct(id=13, vector=[0.0, 1.0], payload={"acl": [{}, {"a": 1}]})])
    several.upsert("docs", [m.PointStruct(id=14, vector=[0.0, 1.0], payload={"acl": [{"group": "blue"}]})])
    assert payload_of(admin, 11) == {"a": 1, "level": 3, "draft": False}
    assert payload_of(admin, 12) == {"meta": {"a": 1, "org": 7}}
    assert payload_of(admin, 13) == {"acl": [{"group": "red"}, {"a": 1, "group": "red"}]}
    assert payload_of(admin, 14) == {"acl": [{"group": "blue"}]}
    for client, payload in (
        (level, {"level": 4}),
        (level, {"level": "3"}),
        (level, {"draft": 0}),
        (nested, {"meta": {"org": "7"}}),
        (nested, {"meta": 7}),
        (one, {"acl": [{"group": "blue"}]}),
        (one, {"acl": {"group": "red"}}),
        (several, {}),
        (several, {"acl": [{"group": "blue"}, {"group": "green"}]}),
    ):
        with pytest.raises(REFUSED, match="is not yours to choose"):
            client.upsert("docs", [m.PointStruct(id=15, vector=[0.0, 1.0], payload=payload)])
    level.clear_payload("docs", [11])
    assert payload_of(admin, 11) == {"level": 3, "draft": False}
    with pytest.raises(REFUSED, match="overwrite it with the one to keep"):
        several.clear_payload("docs", [14])
    several.overwrite_payload("docs", {"acl": [{"group": "red"}]}, [14])
    assert payload_of(admin, 14) == {"acl": [{"group": "red"}]}
    assert admin.retrieve("docs", [15]) == []
    for client in (level, nested, one, several):
        client.close()


def test_check_says_it(gateway: Gateway) -> None:
    said = CliRunner().invoke(main, ["check", "--config", str(gateway.config)]).output
    assert 'where acl[].group = "{claim:groups}" (to read, or meta.visibility = "public")' in said
    assert "where draft = false and level = 3" in said
