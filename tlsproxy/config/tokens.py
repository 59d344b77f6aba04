"""Token verifiers of a configuration: of Qdrant's own tokens by API keys, of issuers by public keys."""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_der_x509_certificate
from jwt import PyJWS, PyJWTError

from tlsproxy.authz.claims import MalformedToken, read_object
from tlsproxy.authz.keys import NEVER
from tlsproxy.authz.tokens import Tokens, VerificationKey, Verifier, qdrant_verifier
from tlsproxy.config.callers import JwtIssuer
from tlsproxy.config.discovery import configuration_url
from tlsproxy.config.endpoints import shown_url
from tlsproxy.config.model import Config
from tlsproxy.config.secrets import Read, signing_keys
from tlsproxy.errors import MaterialError
from tlsproxy.pem import blocks as pem

_JWS: Final = PyJWS()
_KEY_TYPES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""Key type (RFC 7518 §6.1) by the beginning of the algorithm's name."""
_CURVES: Final = {"ES256": ("P-256",), "ES384": ("P-384",), "ES512": ("P-521",), "EdDSA": ("Ed25519", "Ed448")}
"""Values of `crv` (RFC 7518 §3.4, RFC 8037 §3.1) by the algorithm."""
_USES: Final = ("sig", "jwt-svid")
"""Values of `use` (RFC 7517 §4.2) of keys that sign tokens; the second is that of SPIFFE bundles."""


@dataclass(frozen=True, slots=True)
class KeySource:
    """The URL of a key set, and the algorithm that it is validated for. ``shown`` is the URL without its secrets.

    With an ``issuer`` it is the URL of that issuer's OpenID configuration, which names the key set's. ``ca_cert`` and
    ``bearer_token_file`` are the files of a fetch.
    """

    url: str = field(repr=False)
    algorithm: str
    issuer: str = ""
    ca_cert: Path | None = None
    bearer_token_file: Path | None = None

    @property
    def shown(self) -> str:
        return shown_url(self.url)


def public_key_files(config: Config) -> tuple[Path, ...]:
    """Public key files of :func:`resolve_tokens`."""
    return tuple(path for issuer in config.jwt_issuers if (path := key_file(issuer)) is not None)


def key_file(issuer: JwtIssuer) -> Path | None:
    path = issuer.pem or issuer.jwks
    return path if isinstance(path, Path) else None


def key_sources(config: Config) -> dict[KeySource, float]:
    """Key sets to fetch, with their intervals in seconds."""
    sources: dict[KeySource, float] = {}
    for issuer in config.jwt_issuers:
        if (source := key_source(issuer)) is not None:
            sources[source] = min(issuer.refresh, sources.get(source, issuer.refresh))
    return sources


def key_source(issuer: JwtIssuer) -> KeySource | None:
    """None for an issuer whose keys are in a file."""
    files = issuer.ca_cert, issuer.bearer_token_file
    if issuer.discovery is not None:
        return KeySource(configuration_url(issuer.discovery), issuer.algorithm, issuer.issuer, *files)
    return KeySource(issuer.jwks, issuer.algorithm, "", *files) if isinstance(issuer.jwks, str) else None


def fetch_files(config: Config) -> tuple[Path, ...]:
    """Files that the fetches of :func:`key_sources` read."""
    files = (path for source in key_sources(config) for path in (source.ca_cert, source.bearer_token_file))
    return tuple(path for path in files if path is not None)


def resolve_tokens(config: Config, read: Read, documents: Mapping[KeySource, bytes] = MappingProxyType({})) -> Tokens:
    """All verifiers.

    An issuer without keys in ``documents``, or whose file ``read`` returns None for, verifies nothing.

    Raises MaterialError for a file without a usable key, or the exception of ``read``.
    """
    own = signing_keys(config, read) if config.service.jwt_rbac else ()
    return Tokens(
        verifiers=(
            *(qdrant_verifier(name, secret) for name, secret in own),
            *(_verifier(issuer, read, documents) for issuer in config.jwt_issuers),
        ),
        full_access_without_claim=config.service.jwt_full_access_without_claim,
        require_exp=config.service.jwt_require_exp,
    )


def key_set(name: str, data: bytes, algorithm: str) -> tuple[VerificationKey, ...]:
    """At least one key. ``name`` is the shown path or URL. Raises MaterialError."""
    keys = tuple(_key_set(name, data, algorithm))
    if not keys:
        raise MaterialError(name, f"holds no public key for {algorithm}")
    return keys


def keys_in(issuer: JwtIssuer, data: bytes) -> tuple[VerificationKey, ...]:
    """Keys of an issuer's file. Raises MaterialError."""
    if issuer.pem is not None:
        return (VerificationKey(_pem(str(issuer.pem), data, issuer.algorithm)),)
    return key_set(str(issuer.jwks), data, issuer.algorithm)


def _verifier(issuer: JwtIssuer, read: Read, documents: Mapping[KeySource, bytes]) -> Verifier:
    path, source = key_file(issuer), key_source(issuer)
    if path is not None:
        data = read(path)
        keys = () if data is None else keys_in(issuer, data)
    elif source is not None and (document := documents.get(source)) is not None:
        keys = key_set(source.shown, document, issuer.algorithm)
    else:
        keys = ()
    return Verifier(
        issuer.name, issuer.algorithm, keys, issuer.issuer, issuer.audience, issuer.role or "", issuer.groups_claim
    )


def _pem(path: str, data: bytes, algorithm: str) -> Any:
    text = "is not a public key in PEM form (-----BEGIN PUBLIC KEY-----)"
    found = pem.blocks_of(path, data)
    blocks = [block for block in found if block.label in pem.PUBLIC_KEYS]
    if not blocks:
        raise MaterialError(path, pem.hinted(path, text, found[0], public=True))
    if len(blocks) > 1:
        raise MaterialError(path, f"holds {len(blocks)} public keys; exactly one is needed")
    try:
        key: Any = load_pem_public_key(blocks[0].data)
    except (ValueError, UnsupportedAlgorithm):
        raise MaterialError(path, text) from None
    return _prepared(path, key, algorithm)


def _key_set(path: str, data: bytes, algorithm: str) -> Iterator[VerificationKey]:
    """Keys of a set for the algorithm. Others are skipped (RFC 7517 §5), a broken one is an error."""
    try:
        document = read_object(pem.text_of(path, data))
    except MalformedToken as error:
        hint = "; a PEM file is named by `pem`" if b"-----BEGIN " in data else ""
        raise MaterialError(path, f"is not a JWK set: {error}{hint}") from None
    members = document.get("keys")
    if not isinstance(members, list) or not all(isinstance(each, dict) for each in members):
        raise MaterialError(path, f"is not a JWK set: `keys` must be a list of keys{_instead_of_set(document)}")
    for jwk in members:
        if jwk.get("kty") != _KEY_TYPES[algorithm[:2]] or jwk.get("alg", algorithm) != algorithm:
            continue
        if jwk.get("use", "sig") not in _USES or (algorithm in _CURVES and jwk.get("crv") not in _CURVES[algorithm]):
            continue
        if "d" in jwk:
            raise MaterialError(path, "holds a private key: keep only its public part here")
        try:
            key = _JWS.get_algorithm_by_name(algorithm).from_jwk(jwk)
        except (PyJWTError, ValueError, TypeError, KeyError):
            raise MaterialError(path, "holds a key that cannot be read") from None
        kid, (begins, ends) = jwk.get("kid", ""), _dates(jwk)
        yield VerificationKey(_prepared(path, key, algorithm), kid if isinstance(kid, str) else "", begins, ends)


def _dates(jwk: Mapping[str, Any]) -> tuple[float | None, float]:
    """Beginning and end of a key: those of its certificate (`x5c`, RFC 7517 §4.7), else `nbf` and `exp`.

    OpenID Federation §8.7 names the latter. What cannot be read is no date: it decides nothing.
    """
    chain = jwk.get("x5c")
    if isinstance(chain, list) and chain and isinstance(chain[0], str):
        try:
            leaf = load_der_x509_certificate(b64decode(chain[0], validate=True))
        except ValueError:
            return None, NEVER
        return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    begins, ends = (_moment(jwk.get(name)) for name in ("nbf", "exp"))
    return begins, NEVER if ends is None else ends


def _moment(value: object) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None  # type: ignore[arg-type]


def _instead_of_set(document: Mapping[str, Any]) -> str:
    if "jwks_uri" in document:
        return "; it is an OpenID configuration, which `discovery` names"
    return '; it is one key: put it into `{"keys": [ … ]}`' if "kty" in document else ""


def _prepared(path: str, key: Any, name: str) -> Any:
    algorithm = _JWS.get_algorithm_by_name(name)
    try:
        prepared = algorithm.prepare_key(key)
    except (PyJWTError, ValueError, TypeError):
        raise MaterialError(path, f"its key is not one for {name}") from None
    if weakness := algorithm.check_key_length(prepared):
        raise MaterialError(path, weakness)
    return prepared
