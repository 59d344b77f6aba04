"""Distinguished names as people write them: RFC 4514's form, OpenSSL's, and either order of their parts."""

from __future__ import annotations

import unicodedata
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

_ATTRIBUTES: Final = {
    "emailAddress": NameOID.EMAIL_ADDRESS,
    "serialNumber": NameOID.SERIAL_NUMBER,
    "cn": NameOID.COMMON_NAME,
    "ou": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "o": NameOID.ORGANIZATION_NAME,
    "c": NameOID.COUNTRY_NAME,
}
"""OpenSSL's names of attributes, and common ones in lower case, beside those of RFC 4514."""


def parsed_subject(text: str) -> x509.Name:
    """A subject as RFC 4514 writes it, or as OpenSSL prints it: `subject=O = a, CN = b`. Raises ValueError."""
    bare = text.removeprefix("subject=").strip()
    return x509.Name.from_rfc4514_string(bare.replace(" = ", "=").replace(", ", ","), _ATTRIBUTES)


def folded(text: str) -> str:
    """A name without differences of case, of Unicode composition and of surrounding space."""
    return unicodedata.normalize("NFC", text.strip()).casefold()


def folded_subject(text: str) -> str:
    """Equal for all spellings of one distinguished name, whatever the order of its parts; of other text its folding.

    A name of nothing but a common name is that name: `CN=alice` is `alice`.
    """
    try:
        name = parsed_subject(text)
    except ValueError:
        return folded(text)
    parts = sorted((part.oid.dotted_string, folded(str(part.value))) for part in name)
    if not parts:
        return folded(text)
    if len(parts) == 1 and parts[0][0] == NameOID.COMMON_NAME.dotted_string:
        return parts[0][1]
    return "\0".join("=".join(part) for part in parts)
