"""One service for all tenants: its certificate gives the role, the token beside each request says whose points."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.gateway import Gateway
from support.qdrant_clients import EmbeddedUpstream, qdrant
from support.raw_request import Client
from support.site import Site

from tlsproxy.authz.tokens import mint

SECRET, ACME_KEY, OWN_KEY = "the-s1gning-key", "acmes-k3y", "its-own-k3y"
DOCS = [{"collection": "docs", "access": "rw"}]
ROLES = {
    "admin": {"access": "m"},
    "service": {"access": DOCS, "filter": {"tenant": "{claim:tenant}"}},
    "acme": {"access": DOCS, "filter": {"tenant": "acme"}},
    "own": {"access": DOCS, "filter": {"tenant": "{ou}"}},
}
IDENTITIES = [
    {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
    {"name": "service", "match": {"cn": "service"}, "role": "service"},
]
KEYS = [
    {"name": "acme", "sha256": hashlib.sha256(ACME_KEY.encode()).hexdigest(), "role": "acme"},
    {
        "name": "own",
        "sha256": hashlib.sha256(OWN_KEY.encode()).hexdigest(),
        "role": "own",
        "require_certificate": {"cn": "tenant-*"},
    },
]
SERVICE = {
    "api_key": SECRET,
    "jwt_rbac": True,
    "verify_https_client_certificate": False,
    "unmapped_certificate": "token",
}


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Gateway]:
    site.issue("service", client=True, common_name="service")
    site.issue("acme", client=True, common_name="tenant-acme", organizational_unit="acme")
    site.issue("homeless", client=True, common_name="tenant-of-nobody")
    with EmbeddedUpstream() as embedded:
        config = site.write_config(embedded.url, service=SERVICE, roles=ROLES, identities=IDENTITIES, keys=KEYS)
        with Gateway(config) as running:
            yield running


@pytest.fixture
def admin(site: Site, gateway: Gateway) -> Iterator[QdrantClient]:
    """Who also makes the collection anew: points 1 to 3 are acme's, 4 and 5 umbrella's, 6 nobody's."""
    client = qdrant(gateway, site.client("admin"))
    client.delete_collection("docs")
    client.create_collection("docs", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
    tenants = {1: "acme", 2: "acme", 3: "acme", 4: "umbrella", 5: "umbrella"}
    client.upsert(
        "docs",
        [
            m.PointStruct(id=n, vector=[1.0, n / 10], payload={"tenant": tenants[n]} if n in tenants else {})
            for n in range(1, 7)
        ],
    )
    yield client
    client.close()


def seen(gateway: Gateway, site: Site, certificate: str | None, credential: str) -> set[object]:
    """The points that there are for this caller."""
    client = qdrant(gateway, site.client(certificate), api_key=credential)
    try:
        points = {point.id for point in client.scroll("docs", limit=100)[0]}
        assert points == {point.id for point in client.query_points("docs", query=[1.0, 1.0], limit=100).points}
        assert client.count("docs").count == len(points)
    finally:
        client.close()
    return points


def token(**claims: object) -> str:
    return mint(SECRET, {"access": "m", **claims})


def test_the_token_says_whose_points(site: Site, gateway: Gateway, admin: QdrantClient) -> None:
    assert seen(gateway, site, "service", token(tenant="acme")) == {1, 2, 3}
    assert seen(gateway, site, "service", token(tenant="umbrella")) == {4, 5}
    assert seen(gateway, site, "service", token(tenant="nobody")) == set()
    umbrella = qdrant(gateway, site.client("service"), api_key=token(tenant="umbrella"))
    umbrella.upsert("docs", [m.PointStruct(id=n, vector=[0.0, 9.0]) for n in (1, 9)])
    with pytest.raises(UnexpectedResponse):
        umbrella.upsert("docs", [m.PointStruct(id=9, vector=[0.0, 9.0], payload={"tenant": "acme"})])
    umbrella.delete("docs", m.Filter(must_not=[m.HasIdCondition(has_id=[9])]))
    umbrella.close()
    left = {point.id: point.payload for point in admin.scroll("docs", limit=100)[0]}
    acme = {"tenant": "acme"}
    assert left == {1: acme, 2: acme, 3: acme, 6: {}, 9: {"tenant": "umbrella"}}


@pytest.mark.parametrize("claims", [{}, {"tenant": ""}, {"tenant": 1.5}, {"tenant": []}, {"tenant": None}])
def test_a_token_without_the_claim(
    site: Site, gateway: Gateway, admin: QdrantClient, claims: dict[str, object]
) -> None:
    with pytest.raises(UnexpectedResponse) as caught:
        seen(gateway, site, "service", token(**claims))
    assert caught.value.status_code == 403
    text = 'role "service" is for callers whose token has a value as its claim tenant'
    assert caught.value.structured()["status"]["error"] == f"Forbidden: {text}"
    assert gateway.audited(reason="no_tenant")["result"] == "denied"
    assert admin.count("docs").count == 6


@pytest.mark.parametrize("credential", [None, SECRET, ACME_KEY])
def test_no_token(site: Site, gateway: Gateway, admin: QdrantClient, credential: str | None) -> None:
    """On one connection that has shown a good token before: what it said is not remembered."""
    path, fields = "/collections/docs/points/count", [("api-key", credential)] if credential is not None else []
    with Client(gateway, site.client("service")) as client:
        good = client.ask("POST", path, [("api-key", token(tenant="acme"))], b"{}")
        assert (good.status, good.json["result"]["count"]) == (200, 3)
        assert client.ask("POST", path, fields, b"{}").status == 403
        assert client.ask("GET", "/healthz", fields).status == 200
    assert admin.count("docs").count == 6


def test_a_key_of_one_tenant(site: Site, gateway: Gateway, admin: QdrantClient) -> None:
    assert admin.count("docs").count == 6
    assert seen(gateway, site, None, ACME_KEY) == {1, 2, 3}
    assert seen(gateway, site, "acme", OWN_KEY) == {1, 2, 3}
    for certificate, status in (("homeless", 403), (None, 401)):
        with pytest.raises(UnexpectedResponse) as caught:
            seen(gateway, site, certificate, OWN_KEY)
        assert caught.value.status_code == status
