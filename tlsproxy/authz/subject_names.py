r"""Distinguished names as people write them: RFC 4514's form, OpenSSL's three, curl's, and either order of their parts.

`CN=alice,O=Acme\, Inc.`, `O = "Acme, Inc.", CN = alice`, `/O=Acme, Inc./CN=alice` and `O=Acme\, Inc.; CN=alice` are one
name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

_ATTRIBUTES: Final = {
    name.replace("_", "").lower(): oid for name, oid in vars(NameOID).items() if isinstance(oid, x509.ObjectIdentifier)
} | {
    "cn": NameOID.COMMON_NAME,
    "o": NameOID.ORGANIZATION_NAME,
    "ou": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "c": NameOID.COUNTRY_NAME,
    "l": NameOID.LOCALITY_NAME,
    "st": NameOID.STATE_OR_PROVINCE_NAME,
    "s": NameOID.STATE_OR_PROVINCE_NAME,
    "street": NameOID.STREET_ADDRESS,
    "dc": NameOID.DOMAIN_COMPONENT,
    "uid": NameOID.USER_ID,
    "e": NameOID.EMAIL_ADDRESS,
    "email": NameOID.EMAIL_ADDRESS,
    "sn": NameOID.SURNAME,
    "gn": NameOID.GIVEN_NAME,
    "jurisdictionc": NameOID.JURISDICTION_COUNTRY_NAME,
    "jurisdictionst": NameOID.JURISDICTION_STATE_OR_PROVINCE_NAME,
    "jurisdictionl": NameOID.JURISDICTION_LOCALITY_NAME,
}
"""Attributes by their names in lower case: X.520's, those of RFC 4514 §3, OpenSSL's and Microsoft's short ones."""

_TYPE: Final = r"[A-Za-z][A-Za-z0-9-]*|(?:OID\.)?\d+(?:\.\d+)+"
_PART: Final = re.compile(rf'\s*({_TYPE})\s*=\s*(?:"((?:[^"\\]|\\.)*)"\s*|((?:[^,+;\\]|\\.)*))([,+;]|$)', re.DOTALL)
_SLASH: Final = re.compile(rf"[/+](?=(?:{_TYPE})=)")
_ESCAPED: Final = re.compile(r"((?:\\x?[0-9A-Fa-f]{2})+)|\\(.)", re.DOTALL)
"""UTF-8 in hexadecimal, or a character that would mean something else."""
_NAMED_AS: Final = ("subject=", "issuer=")

Part = tuple[str, str]
"""The attribute's OID and the value."""


def parsed_subject(text: str) -> x509.Name:
    """The name of a subject or issuer. Raises ValueError."""
    parts = _parts(text)
    return x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in reversed(parts)])


def folded(text: str) -> str:
    """A name without differences of case, of Unicode composition and of surrounding space."""
    return unicodedata.normalize("NFC", text.strip().casefold())


def folded_subject(text: str) -> str:
    """Equal for all spellings of one distinguished name, whatever the order of its parts; of other text its folding.

    A name of nothing but a common name is that name: `CN=alice` is `alice`.
    """
    try:
        parts = sorted((oid, folded(value)) for oid, value in _parts(text))
    except ValueError:
        return folded(text)
    if len(parts) == 1 and parts[0][0] == NameOID.COMMON_NAME.dotted_string:
        return parts[0][1]
    return "\0".join("=".join(part) for part in parts)


def _parts(text: str) -> list[Part]:
    """Attributes in RFC 4514's order, the last of the certificate first. Raises ValueError."""
    bare = text.lstrip()
    for prefix in _NAMED_AS:
        bare = bare.removeprefix(prefix).lstrip()
    parts = _slashed(bare) if bare.startswith("/") else list(_separated(bare))
    if not parts or not all(value.strip() for _, value in parts):
        raise ValueError("no distinguished name")
    return parts


def _slashed(text: str) -> list[Part]:
    parts = (part.partition("=") for part in _SLASH.split(text)[1:])
    return [(_oid(name), _ESCAPED.sub(_unescaped, value)) for name, _, value in parts][::-1]


def _separated(text: str) -> Iterator[Part]:
    position, separator = 0, ","
    while separator:
        match = _PART.match(text, position)
        if match is None:
            raise ValueError("no attribute and value")
        name, quoted, plain, separator = match.groups()
        yield _oid(name), _ESCAPED.sub(_unescaped, quoted) if quoted is not None else _value(plain)
        position = match.end()


def _oid(name: str) -> str:
    bare = name.lower().removeprefix("oid.")
    if bare[0].isdigit():
        return bare
    if bare not in _ATTRIBUTES:
        raise ValueError(f"unknown attribute {name}")
    return _ATTRIBUTES[bare].dotted_string


def _value(text: str) -> str:
    """A value without quotes. Raises ValueError."""
    bare = text.rstrip()
    if bare.startswith("#"):
        return _encoded(bare[1:])
    if bare.endswith("\\"):
        bare = text[: len(bare) + 1]  # a space that is escaped
    return _ESCAPED.sub(_unescaped, bare)


def _unescaped(match: re.Match[str]) -> str:
    pairs, character = match.groups()
    return bytes.fromhex(pairs.replace("\\", "").replace("x", "")).decode() if pairs else character


def _encoded(digits: str) -> str:
    """A short text in hexadecimal BER (RFC 4514 §2.4), as OpenSSL writes it where it does not know the attribute."""
    data = bytes.fromhex(digits)
    if len(data) < 2 or data[1] != len(data) - 2:  # noqa: PLR2004 - tag and length
        raise ValueError("no text in BER")
    return data[2:].decode()
