"""From the configuration's files to the verifiers of tokens: a key that could not verify anything is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm
from support.rsa_numbers import RsaNumbers

from tlsproxy.authz.tokens import Tokens
from tlsproxy.config.loader import parse
from tlsproxy.config.secrets import known_keys, repeated_keys
from tlsproxy.config.tokens import public_key_files, resolve_tokens
from tlsproxy.errors import MaterialError

EC_KEY = ec.generate_private_key(ec.SECP256R1())
EC_384 = ec.generate_private_key(ec.SECP384R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
ED_KEY = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}


def resolved(directory: Path, algorithm: str = "ES256", **sections: Any) -> Tokens:
    """With the file `key` of the directory as the one issuer's."""
    issuer = {"name": "login", "issuer": "i", "audience": "a", "algorithm": algorithm}
    name = "jwks" if (directory / "key").read_bytes().startswith(b"{") else "pem"
    tree = {
        "tls": {"cert": "c", "key": "k", "ca_cert": "a"},
        "service": {"api_key": "k"},
        "jwt_issuers": [issuer | {name: "key"}],
    } | sections
    config = parse(json.dumps(tree).encode(), directory / "f.yaml", {}).config
    assert public_key_files(config) == (directory / "key",)
    return resolve_tokens(config, Path.read_bytes)


def pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def jwk(key: ec.EllipticCurvePrivateKey, **more: str) -> dict[str, Any]:
    return ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | more


def key_set(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


@pytest.mark.parametrize(
    ("algorithm", "content"),
    [
        ("ES256", pem(EC_KEY)),
        ("ES384", pem(EC_384)),
        ("RS256", pem(RSA_KEY)),
        ("PS512", pem(RSA_KEY)),
        ("EdDSA", pem(ed25519.Ed25519PrivateKey.generate())),
        ("ES256", key_set(jwk(EC_KEY, kid="1", use="sig", alg="ES256"))),
        ("ES256", key_set({"kty": "oct", "k": "AA"}, {"kty": "RSA"}, jwk(EC_KEY), jwk(EC_384, alg="ES384"))),
        ("ES256", key_set(jwk(EC_KEY, use="enc"), jwk(EC_KEY))),
        ("ES256", key_set({"kty": "EC", "use": "x509-svid"}, jwk(EC_KEY, use="jwt-svid"), jwk(EC_384, use="jwt-svid"))),
        ("ES256", key_set({"kty": "EC", "crv": []}, {"kty": "EC", "use": {}}, jwk(EC_KEY))),
        ("EdDSA", key_set({"kty": "OKP", "crv": "X25519", "x": "AA"}, ED_KEY)),
    ],
)
def test_usable_keys(tmp_path: Path, algorithm: str, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    (verifier,) = resolved(tmp_path, algorithm).verifiers
    assert (verifier.name, verifier.algorithm, len(verifier.keys)) == ("login", algorithm, 1)


@pytest.mark.parametrize(
    ("algorithm", "content"),
    [
        ("ES256", b""),
        ("ES256", b"not a key"),
        ("ES256", pem(EC_384)),
        ("RS256", pem(EC_KEY)),
        ("EdDSA", pem(EC_KEY)),
        ("RS256", pem(RsaNumbers(1024))),
        ("ES256", EC_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
        ("ES256", b"{"),
        ("ES256", b'{"keys": {}}'),
        ("ES256", b'{"keys": [], "keys": []}'),
        ("ES256", b'{"keys": [1]}'),
        ("ES256", key_set()),
        ("ES256", key_set({"kty": "oct", "k": "AAAA"})),
        ("ES256", key_set({"kty": "EC"})),
        ("ES256", key_set(jwk(EC_384))),
        ("ES256", key_set(jwk(EC_KEY, d="AAAA"))),
    ],
)
def test_unusable_keys(tmp_path: Path, algorithm: str, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(MaterialError) as caught:
        resolved(tmp_path, algorithm)
    assert caught.value.path == str(tmp_path / "key")


def test_qdrants_own_come_first_and_only_where_they_are_enabled(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(pem(EC_KEY))
    keys = {"api_key": "one", "alt_api_key": "two", "read_only_api_key": "three"}
    enabled = resolved(tmp_path, service=keys | {"jwt_rbac": True})
    assert [verifier.name for verifier in enabled.verifiers] == ["api_key", "alt_api_key", "login"]
    assert [verifier.name for verifier in resolved(tmp_path, service=keys).verifiers] == ["login"]


def test_one_key_has_one_name(tmp_path: Path) -> None:
    tree = {
        "tls": {"cert": "c", "key": "k", "ca_cert": "a"},
        "service": {"api_key": "same"},
        "roles": {"r": {"access": "r"}},
        "keys": [{"name": "ci", "file": "ci.key", "role": "r"}],
    }
    (tmp_path / "ci.key").write_text("same")
    config = parse(json.dumps(tree).encode(), tmp_path / "f.yaml", {}).config
    repeated = repeated_keys(config, known_keys(config, Path.read_bytes))
    assert list(repeated) == [("ci", "api_key", (tmp_path / "ci.key",))]
