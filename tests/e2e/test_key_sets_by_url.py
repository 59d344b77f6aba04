"""Keys of a token issuer that are fetched from its URL: at the start, when they change, and not when it is down."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.gateway import Gateway
from support.raw_request import Client
from support.site import Site
from support.token_issuer import TokenIssuer, key_set, signed
from support.upstream import ScriptedUpstream

OLD, NEW = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
ISSUER = {"name": "login", "issuer": "https://login/", "audience": "qdrant", "algorithm": "ES256", "refresh": 1}


@pytest.fixture
def issuer() -> Iterator[TokenIssuer]:
    with TokenIssuer() as made:
        made.answers["/keys"] = (200, key_set(old=OLD))
        yield made


def ask(connection: Client, key: ec.EllipticCurvePrivateKey, kid: str) -> int:
    token = signed(key, kid, iss="https://login/", aud="qdrant", access="r")
    return connection.ask("GET", "/collections/docs", [("api-key", token)]).status


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rotation_and_an_outage(
    own_site: Site, upstream: ScriptedUpstream, issuer: TokenIssuer, workers: int
) -> None:
    config = own_site.write_config(
        upstream.url,
        workers=workers,
        service={"verify_https_client_certificate": False},
        jwt_issuers=[ISSUER | {"jwks": f"{issuer.url}/keys"}],
    )
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as kept:
        assert ask(kept, OLD, "old") == 200
        assert gateway.audited(status=200)["key"] == "login"
        assert ask(kept, NEW, "new") == 403
        issuer.answers["/keys"] = (200, key_set(old=OLD, new=NEW))
        gateway.reloaded(reason="jwks")
        assert [ask(kept, OLD, "old"), ask(kept, NEW, "new")] == [200, 200]
        issuer.answers["/keys"] = (200, key_set(new=NEW))
        gateway.reloaded(reason="jwks")
        assert [ask(kept, OLD, "old"), ask(kept, NEW, "new")] == [403, 200]
        for answer in ((200, b'{"keys": []}'), (503, key_set(old=OLD)), (302, key_set(old=OLD))):
            issuer.answers["/keys"] = answer
            gateway.log.wait(lambda line: f"{issuer.url}/keys: " in line and "its former keys count" in line)
        issuer.stop()
        gateway.log.wait(lambda line: f"{issuer.url}/keys: cannot be fetched" in line)
        gateway.hang_up()
        gateway.reloaded(reason="sighup")
        assert [ask(kept, OLD, "old"), ask(kept, NEW, "new")] == [403, 200]
        (entry,) = json.loads(gateway.ask_admin("/status")[1])["key_sets"]
        assert entry["url"] == f"{issuer.url}/keys"
        assert entry["fetched_at"] > 0
        assert "cannot be fetched" in entry["error"]


def test_keys_that_cannot_be_had_at_the_start(own_site: Site, upstream: ScriptedUpstream, issuer: TokenIssuer) -> None:
    issuer.answers["/keys"] = (500, b"")
    config = own_site.write_config(
        upstream.url,
        service={"verify_https_client_certificate": False},
        jwt_issuers=[ISSUER | {"jwks": f"{issuer.url}/keys"}],
    )
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as kept:
        (warning,) = json.loads(gateway.ask_admin("/status")[1])["generation"]["warnings"]
        assert warning.startswith(f"{issuer.url}/keys: its keys have not been fetched yet")
        assert ask(kept, OLD, "old") == 401
        issuer.answers["/keys"] = (200, key_set(old=OLD))
        gateway.reloaded(reason="jwks")
        assert ask(kept, OLD, "old") == 200
        assert json.loads(gateway.ask_admin("/status")[1])["generation"]["warnings"] == []


def test_an_issuer_that_comes_with_a_reload(own_site: Site, upstream: ScriptedUpstream, issuer: TokenIssuer) -> None:
    """Its keys are there when it is: no token of its is refused first."""
    config = own_site.write_config(upstream.url, service={"verify_https_client_certificate": False})
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as kept:
        own_site.edit_config(config, jwt_issuers=[ISSUER | {"jwks": f"{issuer.url}/keys"}])
        gateway.reloaded()
        assert ask(kept, OLD, "old") == 200
        issuer.answers["/keys"] = (200, key_set(new=NEW))
        gateway.reloaded(reason="jwks")
        assert ask(kept, NEW, "new") == 200
