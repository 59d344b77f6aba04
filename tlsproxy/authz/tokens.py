"""JWTs: a bearer token → its verified claims, or the refusal that Qdrant would give (src/common/auth).

Each verifier has one algorithm, which the token's header must name: a token never chooses how it is verified, and
``alg: none`` is the algorithm of no verifier. PyJWT does the cryptography only: its checks of claims have other
outcomes than Qdrant's, on which clients depend.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final, Literal

from jwt import PyJWS

from tlsproxy.authz.access import Decision, GlobalMode, Rights
from tlsproxy.authz.claim_paths import literal, values_at
from tlsproxy.authz.claims import Claims, MalformedToken, read_claims, read_object, unpadded
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import NEVER
from tlsproxy.errors import Form

TRUST_DOMAIN: Final = "spiffe://"
LEEWAY: Final = 30
"""Seconds by which clocks may differ, as in Qdrant."""
QDRANT_ALGORITHM: Final = "HS256"
IssuerAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Algorithms of external issuers: asymmetric ones, named in the configuration."""

GROUPS: Final = 256
UNKNOWN_KEY: Final = "token_key_unknown"
"""The audit reason where an issuer has no key with the token's `kid`: our copy of its keys may be outdated."""

WITHOUT_ACCESS: Final = "token_without_access"
INVALID_TEXT: Final = "Invalid API key or JWT"
_NO_ACCESS: Final = (
    f"{INVALID_TEXT}: the token has no `access` claim, which would mean full access; "
    "service.jwt_full_access_without_claim allows that"
)
_STRINGS: Final = ("typ", "cty", "jku", "kid", "x5u", "x5t", "x5t#S256")
_JWS: Final = PyJWS()


def unauthenticated(reason: str, text: str = INVALID_TEXT) -> Decision:
    return Decision(allowed=False, reason=reason, status=HTTPStatus.UNAUTHORIZED, text=text, form=Form.BARE)


def _forbidden(reason: str, text: str) -> Decision:
    return Decision(allowed=False, reason=reason, status=HTTPStatus.FORBIDDEN, text=text, form=Form.BARE)


INVALID: Final = unauthenticated("invalid_key")
NO_RULE: Final = unauthenticated(
    WITHOUT_ACCESS,
    f"{INVALID_TEXT}: the token has no `access` claim, and no rule of `identities` matches its claims",
)


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """``key`` is what PyJWT prepared for the verifier's algorithm; ``kid`` is empty where the key has none.

    ``begins`` (None if unknown) and ``ends`` are what its issuer says of it, in seconds since the epoch: it is warned
    of, and verifies until it is removed.
    """

    key: Any = field(repr=False)
    kid: str = ""
    begins: float | None = None
    ends: float = NEVER


@dataclass(frozen=True, slots=True)
class Verifier:
    """Verifies the tokens of one issuer; without an ``issuer`` Qdrant's own, signed with one of its API keys.

    ``role``: a key of the policy's roles, whose rights and filter limit these tokens; empty for none.
    ``groups_claim``: the path of the claim whose values are in the audit log.
    """

    name: str
    algorithm: str
    keys: tuple[VerificationKey, ...] = field(repr=False)
    issuer: str = ""
    audience: str = ""
    role: str = ""
    groups_claim: str = ""

    @property
    def of_trust_domain(self) -> bool:
        """Whether the issuer is a SPIFFE trust domain, such as `spiffe://example.org`."""
        return self.issuer.startswith(TRUST_DOMAIN)

    def claims_in(self, payload: bytes) -> Claims:
        """The claims of a token. Of a trust domain the issuer is the one that ``sub`` says.

        A JWT-SVID needs no ``iss``, and one that is there means nothing: its SPIFFE ID must be of the domain whose keys
        verified it (JWT-SVID §3 and §4). Raises MalformedToken.
        """
        claims = read_claims(payload)
        if not self.of_trust_domain:
            return claims
        issuer = self.issuer if str(claims.claims.get("sub")).startswith(f"{self.issuer}/") else ""
        return replace(claims, issuer=issuer, claims={**claims.claims, "iss": issuer})


@dataclass(frozen=True, slots=True)
class Token:
    """A verified token. ``expires``: seconds since the epoch, exclusive.

    ``rights`` are those of its own claims; None for a token of an issuer without ``access``, to which only rules can
    give any.
    """

    verifier: Verifier
    rights: Rights | None
    claims: Claims
    expires: float

    @property
    def subject(self) -> str:
        """Of an issuer's token `sub` (RFC 7519 §4.1.2), else `subject`; of Qdrant's own `subject`."""
        own = self.claims.claims.get("sub") if self.verifier.issuer else ""
        return own or self.claims.subject

    @property
    def groups(self) -> tuple[str, ...]:
        """Values of the groups' claim, of at most ``GROUPS`` characters in all; `…` stands for the others."""
        path, room = self.verifier.groups_claim, GROUPS
        shown: list[str] = []
        for value in values_at(self.claims.claims, path) if path else ():
            text = value if isinstance(value, str) else literal(value)
            room -= len(text)
            if room < 0:
                return (*shown, "…")
            shown.append(text)
        return tuple(shown)


@dataclass(frozen=True, slots=True)
class Tokens:
    """All verifiers, Qdrant's two first, in its order."""

    verifiers: tuple[Verifier, ...] = ()
    full_access_without_claim: bool = False
    require_exp: bool = False

    def __bool__(self) -> bool:
        return bool(self.verifiers)

    def verify(self, presented: str, identity: Identity | None, now: float) -> Token | Decision:
        """The token if any verifier accepts it; else the first refusal that is more specific than "not a token"."""
        try:
            parts = _Parts.of(presented)
        except MalformedToken:
            return INVALID
        first: Decision | None = None
        for verifier in self.verifiers:
            # An issuer without keys (not fetched yet) cannot verify any signature.
            if verifier.algorithm != parts.header["alg"] or not verifier.keys:
                continue
            try:
                outcome = self._try(verifier, parts, identity, int(now))
            except MalformedToken:
                continue
            if isinstance(outcome, Token):
                return outcome
            # Both have the same text for the client; the unknown key is the better reason for the log.
            if first is None or (first.reason == "token_signature" and outcome.reason == UNKNOWN_KEY):
                first = outcome
        return first or INVALID

    def _try(self, verifier: Verifier, parts: _Parts, identity: Identity | None, now: int) -> Token | Decision:
        """Checks in Qdrant's order: signature, format of the claims, ``exp``, their values."""
        keys = parts.keys_of(verifier)
        if not parts.signed_with(keys, verifier.algorithm):
            return _forbidden("token_signature" if keys else UNKNOWN_KEY, "InvalidSignature")
        claims = verifier.claims_in(unpadded(parts.payload))
        if claims.expires is not None and claims.expires < now - LEEWAY:
            return _forbidden("token_expired", "ExpiredSignature")
        if claims.defect:
            return unauthenticated("token_claims", claims.defect)
        if verifier.issuer and ("crit" in parts.header or not _for_this_service(verifier, claims)):
            return unauthenticated("token_issuer")
        if claims.not_before is not None and claims.not_before > now + LEEWAY:
            return unauthenticated("token_not_yet_valid")
        if claims.expires is None and (self.require_exp or verifier.of_trust_domain):
            return unauthenticated("token_without_exp", f"{INVALID_TEXT}: the token has no `exp` claim")
        if claims.certificate and (identity is None or identity.sha256 != claims.certificate):
            return unauthenticated("token_of_another_certificate")
        rights = claims.rights
        if rights is None and not verifier.issuer:
            if not self.full_access_without_claim:
                return unauthenticated(WITHOUT_ACCESS, _NO_ACCESS)
            rights = Rights(everywhere=GlobalMode.M)
        # int(now) - LEEWAY > exp from this moment on
        expires = float("inf") if claims.expires is None else float(claims.expires + LEEWAY + 1)
        return Token(verifier, rights, claims, expires)


def _for_this_service(verifier: Verifier, claims: Claims) -> bool:
    return claims.issuer == verifier.issuer and verifier.audience in claims.audience


@dataclass(frozen=True, slots=True)
class _Parts:
    """A JWS in its compact form (RFC 7515 §7.1), before its signature is verified."""

    header: dict[str, Any]
    payload: str
    signature: bytes
    message: bytes

    @classmethod
    def of(cls, text: str) -> _Parts:
        """Raises :class:`MalformedToken`."""
        parts = text.split(".")
        if len(parts) != 3:  # noqa: PLR2004
            raise MalformedToken("not three parts")
        header = read_object(unpadded(parts[0]))
        if not isinstance(header.get("alg"), str):
            raise MalformedToken("no algorithm")
        if any(not isinstance(header.get(name), str | None) for name in _STRINGS):
            raise MalformedToken("a header parameter is not a string")
        return cls(header, parts[1], unpadded(parts[2]), f"{parts[0]}.{parts[1]}".encode())

    def keys_of(self, verifier: Verifier) -> list[VerificationKey]:
        """The verifier's keys that ``kid`` selects; a token cannot bring a key of its own."""
        kid = self.header.get("kid") if verifier.issuer else None
        return [each for each in verifier.keys if not kid or not each.kid or each.kid == kid]

    def signed_with(self, keys: list[VerificationKey], name: str) -> bool:
        """Whether one of these keys verifies the signature, with the algorithm of this name."""
        algorithm = _JWS.get_algorithm_by_name(name)
        return any(algorithm.verify(self.message, each.key, self.signature) for each in keys)


def qdrant_verifier(name: str, secret: str) -> Verifier:
    """A verifier of Qdrant's own tokens: the secret is the UTF-8 bytes of the API key."""
    return Verifier(name, QDRANT_ALGORITHM, (VerificationKey(secret.encode()),))


def mint(secret: str, claims: Mapping[str, Any]) -> str:
    """A token as Qdrant issues it: HS256, signed with an API key."""
    message = ".".join(map(_encoded, (b'{"alg":"HS256","typ":"JWT"}', json.dumps(claims).encode())))
    signature = _JWS.get_algorithm_by_name(QDRANT_ALGORITHM).sign(message.encode(), secret.encode())
    return f"{message}.{_encoded(signature)}"


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
