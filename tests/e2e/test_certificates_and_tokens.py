"""What a certificate that no rule matches may do with a key or token, and tokens that belong to one certificate."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm
from support.gateway import Gateway
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.authz.tokens import mint

KEY = "manage-k3y"
READ = ("GET", "/collections/docs")
MUST = "Must provide an API key or an Authorization bearer token"


def status(gateway: Gateway, site: Site, client: str | None, key: str | None) -> int:
    with Client(gateway, site.client(client)) as connection:
        return connection.ask(*READ, [("api-key", key)] if key is not None else []).status


def test_without_identities_any_verified_certificate_may_use_a_key(site: Site, upstream: ScriptedUpstream) -> None:
    """As in Qdrant, which never looks at a certificate's subject."""
    config = site.write_config(upstream.url, service={"api_key": KEY}, identities=[], roles={})
    with Gateway(config) as gateway:
        assert status(gateway, site, "stranger", KEY) == 200
        record = gateway.audited(status=200)
        assert (record["auth_type"], record["certificate_subject"]) == ("ApiKey", "CN=nobody")
        with Client(gateway, site.client("stranger")) as connection:
            refused = connection.ask(*READ)
        assert (refused.status, refused.body.decode()) == (401, MUST)
        assert status(gateway, site, "stranger", "wrong") == 401


def test_with_identities_it_is_a_choice(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, service={"api_key": KEY})
    with Gateway(config) as gateway, Client(gateway, own_site.client("stranger")) as kept:
        assert kept.ask(*READ, [("api-key", KEY)]).status == 403
        own_site.edit_config(config, service={"unmapped_certificate": "token"})
        gateway.reloaded()
        assert kept.ask(*READ, [("api-key", KEY)]).status == 200
        assert kept.ask(*READ).status == 401
        own_site.edit_config(config, service={"unmapped_certificate": "deny"})
        gateway.reloaded()
        assert gateway.audited(event="connection")["reason"] == "no_role"
        with Client(gateway, own_site.client("stranger")) as again:
            assert again.ask(*READ, [("api-key", KEY)]).status == 403


def test_a_token_that_belongs_to_one_certificate(site: Site, upstream: ScriptedUpstream) -> None:
    certificate = load_pem_x509_certificate((site.directory / "admin.pem").read_bytes())
    thumbprint = urlsafe_b64encode(certificate.fingerprint(SHA256())).rstrip(b"=").decode()
    bound = mint(KEY, {"access": "r", "cnf": {"x5t#S256": thumbprint}})
    service = {"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True}
    with Gateway(site.write_config(upstream.url, service=service)) as gateway:
        assert status(gateway, site, "admin", bound) == 200
        assert status(gateway, site, "search", bound) == 401
        assert status(gateway, site, None, bound) == 401


def test_issuers_of_tokens_and_the_rotation_of_their_keys(own_site: Site, upstream: ScriptedUpstream) -> None:
    old, new = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def key_set(**keys: ec.EllipticCurvePrivateKey) -> bytes:
        jwks = [ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid} for kid, key in keys.items()]
        return json.dumps({"keys": [{"kty": "oct", "k": "AAAA"}, *jwks]}).encode()

    def token(key: ec.EllipticCurvePrivateKey, kid: str, audience: str = "qdrant") -> str:
        claims = {"iss": "https://login/", "aud": audience, "access": "r"}
        return PyJWS().encode(json.dumps(claims).encode(), key, "ES256", headers={"kid": kid})

    own_site.write("jwks.json", key_set(old=old))
    issuer = {"issuer": "https://login/", "audience": "qdrant", "algorithm": "ES256"}
    config = own_site.write_config(
        upstream.url,
        service={"verify_https_client_certificate": False},
        jwt_issuers=[{"name": "login", "jwks": "jwks.json", **issuer}],
    )
    with Gateway(config) as gateway:
        assert status(gateway, own_site, None, token(old, "old")) == 200
        assert gateway.audited(status=200)["key"] == "login"
        assert status(gateway, own_site, None, token(old, "old", "other")) == 401
        assert status(gateway, own_site, None, token(new, "new")) == 403
        own_site.replace("jwks.json", key_set(old=old, new=new))
        gateway.reloaded()
        assert [status(gateway, own_site, None, token(*each)) for each in ((old, "old"), (new, "new"))] == [200, 200]
        own_site.replace("jwks.json", b'{"keys": []}')
        assert "holds no public key" in gateway.reloaded("failed")["error"]
        assert status(gateway, own_site, None, token(old, "old")) == 200
        pem = new.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        own_site.write("login.pem", pem)
        own_site.edit_config(config, jwt_issuers=[{"name": "login", "pem": "login.pem", **issuer}])
        gateway.reloaded()
        assert [status(gateway, own_site, None, token(*each)) for each in ((old, "old"), (new, "new"))] == [403, 200]
