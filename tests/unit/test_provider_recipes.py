"""The recipes of docs/keys-and-tokens.md: tokens as each provider writes them get the role that its page says."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from support.documented import ROOT
from support.rows import rows
from test_config_tokens import RSA_KEY

from tlsproxy.authz.access import Decision
from tlsproxy.authz.admission import admit
from tlsproxy.authz.keys import Keys
from tlsproxy.authz.locks import Locks
from tlsproxy.authz.roles import Policy
from tlsproxy.config.loader import parse
from tlsproxy.config.model import Config
from tlsproxy.config.policy import policy_of
from tlsproxy.config.tokens import key_sources, resolve_tokens

NOW = 1_800_000_000.0
USUAL = {"iat": int(NOW) - 60, "nbf": int(NOW) - 60, "exp": int(NOW) + 600}
EC_KEY = ec.generate_private_key(ec.SECP256R1())
TENANT = "72f988bf-86f1-41af-91ab-2d7cd011db47"
CLUSTER = {"namespace": "web", "pod": {"name": "web-0", "uid": "1"}, "serviceaccount": {"name": "default", "uid": "2"}}
BOUND = "system:serviceaccount"

TOKENS: list[tuple[str, dict[str, Any], str]] = [
    (
        "Keycloak",
        {"aud": ["qdrant", "account"], "realm_access": {"roles": ["offline_access", "qdrant-admin"]}},
        "admin",
    ),
    ("Keycloak", {"aud": "qdrant", "realm_access": {"roles": ["x"]}, "groups": ["/hr", "/search/web/eu"]}, "search"),
    ("Keycloak", {"aud": "qdrant", "groups": ["/searchers"], "realm_access": {}}, "token_without_access"),
    ("Keycloak", {"aud": "account", "realm_access": {"roles": ["qdrant-admin"]}}, "token_issuer"),
    ("Microsoft Entra ID", {"ver": "2.0", "roles": ["Qdrant.Admin"], "azp": "1", "tid": TENANT}, "admin"),
    ("Microsoft Entra ID", {"ver": "2.0", "azp": "22223333-cccc-4444-dddd-5555eeee6666", "idtyp": "app"}, "ingest"),
    ("Microsoft Entra ID", {"azp": "22223333-cccc-4444-dddd-5555eeee6666"}, "token_without_access"),
    (
        "Microsoft Entra ID",
        {"_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://graph.windows.net/"}}},
        "token_without_access",
    ),
    ("Microsoft Entra ID", {"iss": f"https://sts.windows.net/{TENANT}/", "roles": ["Qdrant.Admin"]}, "token_issuer"),
    ("Okta", {"ver": 1, "cid": "0oa1", "groups": ["Everyone", "Qdrant Admins"], "scp": ["openid"]}, "admin"),
    ("Okta", {"ver": 1, "cid": "0oa1example", "scp": ["qdrant.read", "qdrant.write"]}, "ingest"),
    ("Okta", {"cid": "0oa1example", "scp": ["qdrant.read"]}, "token_without_access"),
    ("GitHub Actions", {"sub": "repo:acme/search:environment:production", "repository": "acme/search"}, "admin"),
    ("GitHub Actions", {"sub": "repo:acme/search:x", "repository": "acme/search", "ref": "refs/heads/main"}, "ingest"),
    ("GitHub Actions", {"repository": "evil/search", "ref": "refs/heads/main"}, "token_without_access"),
    ("GitHub Actions", {"aud": "https://github.com/acme", "repository": "acme/search"}, "token_issuer"),
    ("Kubernetes service accounts", {"sub": f"{BOUND}:rag:ingest", "aud": ["qdrant"]}, "ingest"),
    ("Kubernetes service accounts", {"sub": f"{BOUND}:web:default", "kubernetes.io": CLUSTER}, "search"),
    ("Kubernetes service accounts", {"sub": f"{BOUND}:rag:other", "kubernetes.io": {}}, "token_without_access"),
    ("SPIFFE JWT-SVID", {"sub": "spiffe://example.org/search/web"}, "search"),
    (
        "SPIFFE JWT-SVID",
        {"sub": "spiffe://example.org/ingest/a/b", "aud": ["x", "spiffe://example.org/qdrant"]},
        "ingest",
    ),
    ("SPIFFE JWT-SVID", {"sub": "spiffe://example.org/search/web/deep"}, "token_without_access"),
    ("SPIFFE JWT-SVID", {"sub": "spiffe://example.org/search/web", "iss": None}, "search"),
    ("SPIFFE JWT-SVID", {"sub": "spiffe://example.org/search/web", "iss": "https://oidc.example.org"}, "search"),
    ("SPIFFE JWT-SVID", {"sub": "spiffe://example.org.evil/search/web"}, "token_issuer"),
    ("SPIFFE JWT-SVID", {"sub": "spiffe://other.org/search/web"}, "token_issuer"),
    ("SPIFFE JWT-SVID", {"sub": None}, "token_issuer"),
    ("SPIFFE JWT-SVID", {"sub": "spiffe://example.org/search/web", "exp": None}, "token_without_exp"),
    ("SPIFFE JWT-SVID", {"sub": "spiffe://example.org/search/web", "aud": ["spiffe://example.org/x"]}, "token_issuer"),
    ("Dex", {"groups": ["sre", "staff"], "email": "a@example.org", "email_verified": True}, "admin"),
    ("Dex", {"email": "a@example.org", "email_verified": True}, "search"),
    ("Dex", {"email": "a@example.org", "email_verified": False}, "token_without_access"),
]


@cache
def recipe(provider: str) -> tuple[Config, Policy]:
    page = (ROOT / "docs/keys-and-tokens.md").read_text()
    block = re.search(rf"^### {provider}\n\n```yaml\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    assert block is not None
    tree = yaml.safe_load(block.group(1)) | {
        "tls": {"cert": "c", "key": "k", "ca_cert": "a"},
        "roles": {name: {"access": "r"} for name in ("admin", "search", "ingest")},
        "service": {"verify_https_client_certificate": False},
    }
    config = parse(yaml.safe_dump(tree).encode(), Path("/etc/f.yaml"), {}).config
    public = (
        RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True),
        ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True),
    )
    (source,) = key_sources(config)
    tokens = resolve_tokens(config, Path.read_bytes, {source: json.dumps({"keys": public}).encode()})
    return config, policy_of(config, Keys(()), tokens, Locks())


@rows(("provider", "claims", "expected"), TOKENS)
def test_a_recipe(provider: str, claims: dict[str, Any], expected: str) -> None:
    config, policy = recipe(provider)
    (issuer,) = config.jwt_issuers
    whole = {"iss": issuer.issuer, "aud": issuer.audience, "sub": "somebody", **USUAL, **claims}
    payload = json.dumps({name: value for name, value in whole.items() if value is not None}).encode()
    key = EC_KEY if issuer.algorithm == "ES256" else RSA_KEY
    token = PyJWS().encode(payload, key, issuer.algorithm, headers={"typ": "at+jwt"})
    admitted = admit(policy.principal_of(None), policy, token, NOW)
    if isinstance(admitted, Decision):
        assert admitted.reason == expected
    else:
        assert admitted.credential is not None
        assert admitted.credential.roles == (expected,)


def test_each_recipe_is_tried() -> None:
    page = (ROOT / "docs/keys-and-tokens.md").read_text().partition("## Identity providers")[2]
    assert re.findall(r"^### (.*)$", page, re.MULTILINE) == list(dict.fromkeys(provider for provider, _, _ in TOKENS))
