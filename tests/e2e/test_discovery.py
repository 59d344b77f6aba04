"""Issuers by discovery: keys that an OpenID configuration names, over TLS with a private CA and a bearer token."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from support.gateway import Gateway
from support.raw_request import Client
from support.site import Site
from support.token_issuer import TokenIssuer, key_set, signed
from support.upstream import ScriptedUpstream

from tlsproxy.cli import main

OLD, NEW = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
DOCUMENT = "/realms/acme/.well-known/openid-configuration"


def test_from_the_start_to_an_outage(own_site: Site, upstream: ScriptedUpstream) -> None:
    own_site.issue("idp", ips=["127.0.0.1"], server=True)
    both = own_site.write(
        "both.pem", b"".join((own_site.directory / f"idp.{end}").read_bytes() for end in ("pem", "key"))
    )
    own_site.write("bearer", b"BEARER\n")
    with TokenIssuer(both) as idp, TokenIssuer(both) as other:
        issuer = f"{idp.url}/realms/acme"

        def configured(**fields: Any) -> None:
            document = {"issuer": issuer, "jwks_uri": f"{idp.url}/keys", **fields}
            idp.answers[DOCUMENT] = (200, json.dumps(document).encode())

        def ask(key: ec.EllipticCurvePrivateKey, kid: str) -> int:
            token = signed(key, kid, iss=issuer, aud="qdrant", access="r")
            return kept.ask("GET", "/collections/docs", [("api-key", token)]).status

        configured(id_token_signing_alg_values_supported=["RS256"])
        idp.answers["/keys"] = (200, key_set(old=OLD))
        other.answers["/keys?k=S3CRET"] = (200, key_set(new=NEW))
        entry = {"name": "acme", "issuer": issuer, "audience": "qdrant", "algorithm": "ES256", "discovery": issuer}
        config = own_site.write_config(
            upstream.url,
            workers=2,
            service={"verify_https_client_certificate": False},
            jwt_issuers=[entry | {"refresh": 1, "ca_cert": "ca.pem", "bearer_token_file": "bearer"}],
        )
        checked = CliRunner().invoke(main, ["check", "--config", str(config)])
        assert f"{idp.url}{DOCUMENT}: not fetched by this command" in checked.output
        fetched = CliRunner().invoke(main, ["check", "--connect", "--config", str(config)])
        assert f"{idp.url}{DOCUMENT}: ok\nwarning: {idp.url}{DOCUMENT}: it names" in fetched.output
        with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as kept:
            assert [ask(OLD, "old"), ask(NEW, "new")] == [200, 403]
            assert idp.authorizations == dict.fromkeys((DOCUMENT, "/keys"), "Bearer BEARER")
            status = json.loads(gateway.ask_admin("/status")[1])
            assert status["key_sets"][0]["keys_url"] == f"{idp.url}/keys"
            (warning,) = status["generation"]["warnings"]
            assert warning.endswith('it names "RS256" as its algorithms, not ES256')
            # Another server has the keys: it is not given the token.
            configured(jwks_uri=f"{other.url}/keys?k=S3CRET")
            gateway.reloaded(reason="jwks")
            assert [ask(OLD, "old"), ask(NEW, "new")] == [403, 200]
            assert set(other.authorizations.values()) == {None}
            # A configuration of somebody else: the keys are those of before, and one that is withdrawn goes.
            configured(issuer="https://evil.example/", jwks_uri=f"{idp.url}/keys")
            gateway.log.wait(lambda line: "is the configuration of" in line and "still fetched from" in line)
            assert [ask(OLD, "old"), ask(NEW, "new")] == [403, 200]
            other.answers["/keys?k=S3CRET"] = (200, key_set(old=OLD))
            gateway.reloaded(reason="jwks")
            assert [ask(OLD, "old"), ask(NEW, "new")] == [200, 403]
            configured(jwks_uri="http://keys.example/")
            gateway.log.wait(lambda line: "its `jwks_uri` cannot be used" in line)
            idp.stop()
            other.stop()
            gateway.log.wait(lambda line: f"{other.url}/keys: cannot be fetched" in line and "former keys" in line)
            assert [ask(OLD, "old"), ask(NEW, "new")] == [200, 403]
            told = [gateway.ask_admin("/status")[1], *gateway.log.seen]
        assert not any(secret in "\n".join(told) for secret in ("S3CRET", "BEARER"))
