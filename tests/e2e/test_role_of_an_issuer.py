"""An issuer of tokens with a role: its tokens, which need no certificate, are confined to the tenant that they name."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWS
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.gateway import Gateway
from support.qdrant_clients import EmbeddedUpstream, qdrant
from support.raw_request import Client
from support.site import Site

KEY = ec.generate_private_key(ec.SECP256R1())
DOCS = [{"collection": "docs", "access": "rw"}]
ROLES = {"admin": {"access": "m"}, "tenant": {"access": DOCS, "filter": {"tenant": "{claim:org}"}}}
IDENTITIES = [{"name": "platform", "match": {"ou": "platform"}, "role": "admin"}]
ISSUER = {"name": "login", "issuer": "https://login/", "audience": "qdrant", "algorithm": "ES256", "pem": "login.pem"}


@pytest.fixture
def gateway(own_site: Site) -> Iterator[Gateway]:
    """Points 1 and 2 are acme's, 3 is umbrella's."""
    own_site.write("login.pem", KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with EmbeddedUpstream() as embedded:
        config = own_site.write_config(
            embedded.url,
            service={"verify_https_client_certificate": False},
            roles=ROLES,
            identities=IDENTITIES,
            jwt_issuers=[ISSUER | {"role": "tenant"}],
        )
        with Gateway(config) as running:
            admin = qdrant(running, own_site.client("admin"))
            for name in ("docs", "other"):
                admin.create_collection(name, vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
            tenants = {1: "acme", 2: "acme", 3: "umbrella"}
            admin.upsert(
                "docs", [m.PointStruct(id=n, vector=[1.0, n], payload={"tenant": org}) for n, org in tenants.items()]
            )
            admin.close()
            yield running


def token(**claims: object) -> str:
    said = {"iss": "https://login/", "aud": "qdrant", "access": "m", "exp": int(time.time()) + 600, **claims}
    return PyJWS().encode(json.dumps(said).encode(), KEY, "ES256")


def points(gateway: Gateway, site: Site, certificate: str | None = None, **claims: object) -> set[object]:
    client = qdrant(gateway, site.client(certificate), api_key=token(**claims))
    try:
        return {point.id for point in client.scroll("docs", limit=100)[0]}
    finally:
        client.close()


def status(action: object, *arguments: object, **options: object) -> int:
    assert callable(action)
    with pytest.raises(UnexpectedResponse) as caught:
        action(*arguments, **options)
    return int(caught.value.status_code or 0)


def test_the_role_confines_and_does_not_give(own_site: Site, gateway: Gateway) -> None:
    assert points(gateway, own_site, org="acme") == {1, 2}
    assert points(gateway, own_site, org="umbrella") == {3}
    assert points(gateway, own_site, "admin", org="umbrella") == {3}
    assert status(points, gateway, own_site) == 403
    assert gateway.audited(reason="no_tenant")["result"] == "denied"

    acme = qdrant(gateway, own_site.client(None), api_key=token(org="acme"))
    acme.upsert("docs", [m.PointStruct(id=9, vector=[0.0, 9.0])])
    assert acme.count("docs").count == 3
    assert status(acme.scroll, "other") == status(acme.delete_collection, "docs") == 403
    acme.close()
    reader: QdrantClient = qdrant(gateway, own_site.client(None), api_key=token(org="acme", access="r"))
    assert reader.count("docs").count == 3
    assert status(reader.upsert, "docs", [m.PointStruct(id=10, vector=[0.0, 9.0])]) == 403
    reader.close()


def test_it_is_told_and_taken_away_live(own_site: Site, gateway: Gateway) -> None:
    sent = [("api-key", token(org="acme", subject="alice"))]
    with Client(gateway, own_site.client(None)) as kept:
        told = kept.ask("GET", "/_tlsproxy/whoami", sent).json
        assert (told["role"], told["rights"]) == ("tenant", ["m", 'docs rw where tenant = "acme"'])
        credential = told["credential"]
        assert (credential["name"], credential["role"]) == ("login", "tenant")
        assert credential["rights"] == 'm & docs rw where tenant = "acme"'
        record = gateway.audited(method="whoami")
        assert (record["key"], record["key_rights"], record["role"]) == ("login", credential["rights"], "tenant")

        def points() -> int | None:
            """Number of points that the collection's description tells."""
            return kept.ask("GET", "/collections/docs", sent).json["result"].get("points_count")

        assert points() is None  # it would tell of all tenants' points
        own_site.edit_config(gateway.config, jwt_issuers=[ISSUER])
        gateway.reloaded()
        assert points() is not None
        own_site.edit_config(gateway.config, jwt_issuers=[ISSUER | {"role": "tenant"}])
        gateway.reloaded()
        assert points() is None
