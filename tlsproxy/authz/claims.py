"""A token's claims: JSON → rights and conditions, as strictly as Qdrant reads them (src/common/auth/claims.rs).

Types are exact (``exp`` is an unsigned integer and nothing else), unknown claims are ignored. Where Qdrant is lenient
by accident, this is not: duplicate members are refused at any level, and so are the positional arrays and the
``{"m": null}`` that its deserialiser happens to accept. Expiry is checked in :mod:`tlsproxy.authz.tokens`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tlsproxy.authz.access import GLOBAL_MODES, GRANTS, GlobalMode, Grant, Grants, Rights
from tlsproxy.authz.globs import glob_error

DUPLICATE: Final = "access: Collection name should be unique"
PAYLOAD: Final = "access: The 'payload' constraint is deprecated and should not be used"

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_U64: Final = 1 << 64
_I64: Final = 1 << 63
_SHA256_BYTES: Final = 32
_OLD_FORM: Final = {frozenset(("read",)): "r", frozenset(("read", "write")): "rw"}


class MalformedToken(ValueError):
    """Not a token: Qdrant answers it as it answers a wrong key."""


@dataclass(frozen=True, slots=True)
class ValueExists:
    """The claim `value_exists`: a point that must exist for the token to be valid, as the body of a scroll request."""

    collection: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Claims:
    """``rights`` is None where there is no ``access`` claim. Times are whole seconds since the epoch.

    ``subject`` is for the audit log. ``certificate`` is the SHA-256 (hex) of the client certificate that the token is
    bound to (RFC 8705 §3.1), empty where it is bound to none. ``defect`` is the text of Qdrant's validator, which runs
    last. ``claims`` are all of them as they were read, for rules and for the filters of roles.
    """

    rights: Rights | None
    expires: int | None = None
    not_before: int | None = None
    subject: str = ""
    issuer: str = ""
    audience: tuple[str, ...] = ()
    exists: ValueExists | None = None
    certificate: str = ""
    defect: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)


def read_claims(payload: bytes) -> Claims:
    """Raises :class:`MalformedToken`."""
    claims = read_object(payload)
    _text(claims, "sub")
    rights, defect = _rights(claims["access"]) if "access" in claims else (None, "")
    return Claims(
        rights=rights,
        expires=_seconds(claims, "exp"),
        not_before=_seconds(claims, "nbf"),
        subject=_text(claims, "subject"),
        issuer=claims["iss"] if isinstance(claims.get("iss"), str) else "",
        audience=_audience(claims.get("aud")),
        exists=_value_exists(claims.get("value_exists")),
        certificate=_thumbprint(claims),
        defect=defect,
        claims=claims,
    )


def read_object(data: bytes) -> dict[str, Any]:
    """A JSON object without duplicate members or other ambiguities. Raises :class:`MalformedToken`."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_members, parse_constant=_refuse_constant)
    except MalformedToken:
        raise
    except (ValueError, RecursionError):
        raise MalformedToken("not JSON") from None
    if not isinstance(value, dict):
        raise MalformedToken("not a JSON object")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise MalformedToken("a member comes twice")
    for name, value in pairs:
        if _SURROGATE.search(name) or _has_surrogate(value):
            raise MalformedToken("half of a surrogate pair")
    return result


def _has_surrogate(value: Any) -> bool:
    """In a text, or in one of a list; objects are read by :func:`_members` of their own."""
    if isinstance(value, list):
        return any(map(_has_surrogate, value))
    return isinstance(value, str) and _SURROGATE.search(value) is not None


def _refuse_constant(name: str) -> Any:
    raise MalformedToken(f"{name} is not JSON")


def _seconds(claims: Mapping[str, Any], name: str) -> int | None:
    if name not in claims:
        return None
    value = claims[name]
    if type(value) is not int or not 0 <= value < _U64:
        raise MalformedToken(f"{name} is not an unsigned integer")
    return value


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedToken(f"{name} is not a string")
    return value


def _audience(value: Any) -> tuple[str, ...]:
    """The audiences; none for a claim of another type, which then matches no configured audience."""
    if isinstance(value, str):
        return (value,)
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def _rights(access: Any) -> tuple[Rights, str]:
    """(the rights, the text of the validator's first finding or "")."""
    if isinstance(access, str) and access in GLOBAL_MODES:
        return Rights(everywhere=GlobalMode(access)), ""
    if isinstance(access, dict):
        return _old_rights(access), ""
    if not isinstance(access, list):
        raise MalformedToken("access is neither r, m nor a list")
    grants: list[Grant] = []
    defect = ""
    seen: set[str] = set()
    for entry in access:
        if not isinstance(entry, dict):
            raise MalformedToken("an entry of access is not an object")
        grants.append(_grant(entry.get("collection"), entry.get("access")))
        if entry["collection"] in seen:
            defect = defect or DUPLICATE
        if entry.get("payload") is not None:
            defect = defect or PAYLOAD
        seen.add(entry["collection"])
    return Rights(grants=Grants(*grants)), defect


def _grant(collection: Any, access: Any) -> Grant:
    if not isinstance(collection, str) or not isinstance(access, str) or access not in GRANTS:
        raise MalformedToken("an entry of access is not a collection and r, rw or prw")
    if collection and glob_error(collection):
        raise MalformedToken("a collection of access is not a name or a glob")
    write, extras = GRANTS[access]
    return Grant(collection, write=write, extras=extras)


def _old_rights(access: Mapping[str, Any]) -> Rights:
    """``{"collections": {"docs": ["read", "write"]}}``. Qdrant has no grant that writes without reading."""
    collections = access.get("collections")
    if access.keys() != {"collections"} or not isinstance(collections, dict):
        raise MalformedToken("access is an object, but not of collections")
    grants = []
    for name, verbs in collections.items():
        if not isinstance(verbs, list) or not all(isinstance(verb, str) for verb in verbs):
            raise MalformedToken("a collection's access is not a list of read and write")
        mode = _OLD_FORM.get(frozenset(verbs))
        if mode is None:
            raise MalformedToken("a collection's access is neither read, nor read and write")
        grants.append(_grant(name, mode))
    return Rights(grants=Grants(*grants))


def _value_exists(value: Any) -> ValueExists | None:
    if value is None:
        return None
    collection = value.get("collection") if isinstance(value, dict) else None
    matches = value.get("matches") if isinstance(value, dict) else None
    if not isinstance(collection, str) or not isinstance(matches, list):
        raise MalformedToken("value_exists is not a collection and matches")
    must = [_condition(match) for match in matches]
    body = {"limit": 1, "with_payload": False, "with_vector": False, "filter": {"must": must}}
    return ValueExists(collection, json.dumps(body).encode())


def _condition(match: Any) -> dict[str, Any]:
    key, value = (match.get("key"), match.get("value")) if isinstance(match, dict) else (None, None)
    if not isinstance(key, str) or not key or not isinstance(value, str | int):
        raise MalformedToken("an entry of matches is not a key and a value")
    if isinstance(value, int) and not -_I64 <= value < _I64:
        raise MalformedToken("a number of matches is too large")
    return {"key": key, "match": {"value": value}}


def _thumbprint(claims: Mapping[str, Any]) -> str:
    """The certificate of `cnf`. Methods that we cannot check (RFC 7800 has several) are refused, not ignored."""
    if "cnf" not in claims:
        return ""
    confirmation = claims["cnf"]
    if not isinstance(confirmation, dict) or confirmation.keys() != {"x5t#S256"}:
        raise MalformedToken("cnf is not the thumbprint of a certificate")
    digest = unpadded(confirmation["x5t#S256"])
    if len(digest) != _SHA256_BYTES:
        raise MalformedToken("cnf is not a SHA-256 thumbprint")
    return digest.hex()


def unpadded(text: Any) -> bytes:
    """base64url without padding (RFC 7515 §2), in its one canonical spelling. Raises :class:`MalformedToken`."""
    if not isinstance(text, str) or not text.isascii():
        raise MalformedToken("not base64url")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedToken("not base64url") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise MalformedToken("not canonical base64url")
    return data
