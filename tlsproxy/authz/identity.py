"""A verified client certificate → Identity, the names and digests that rules match on.

The TLS layer has verified the chain before; :mod:`tlsproxy.authz.trust_anchors` adds the CA. Anything ambiguous is a
``defect``: two common names, control or invisible characters, an empty subject without any alternative name, a name in
an encoding that libraries read differently. A certificate with a defect has a subject for the log, and never a role.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_NAME_ENCODINGS: Final = frozenset({0x0C, 0x13, 0x16})
"""UTF8String, PrintableString, IA5String. RFC 5280 §4.1.2.4 keeps the others (BMPString, UniversalString,
TeletexString) for old certificates only, and libraries do not agree on how they read."""

_READ: Final = (x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name, x509.IPAddress)

_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of characters that one does not see: controls, NUL, direction marks, zero-width joiners."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A CA certificate: ``subject`` as RFC 4514 writes it, the SHA-256 (lower-case hex) of its DER, and of its public
    key's (SubjectPublicKeyInfo). Certificates of one subject and key are one CA, issued anew.
    """

    subject: str
    sha256: str
    key: str


@dataclass(frozen=True, slots=True)
class Identity:
    r"""The fields that rules match on. Strings are as in the certificate; ``subject`` and ``issuer`` are RFC 4514.

    ``serial`` is lower-case hex without leading zeros, ``sha256`` the lower-case hex digest of the DER certificate,
    ``not_after`` seconds since the epoch. DNS names are lower-cased (RFC 4343), addresses in their shortest form. In
    ``subject`` and ``issuer`` an invisible character is written as RFC 4514's ``\XX``, so that both are fit for a log.
    ``other_names`` are the types of alternative names that are not read. ``defect`` is empty, or the reason why no rule
    may match.

    ``anchors``: the trust anchor, if known, and behind it the other trusted CAs that vouch for it. ``doubted``: fields
    that this anchor is not believed about, unless a rule names the anchor too. ``foreign``: empty, or a name outside of
    the anchor's constraint, for which no rule may match either.
    """

    subject: str
    issuer: str
    serial: str
    sha256: str
    not_after: float
    common_name: str = ""
    organizations: tuple[str, ...] = ()
    organizational_units: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    defect: str = ""
    other_names: tuple[str, ...] = ()
    anchors: tuple[Anchor, ...] = ()
    doubted: frozenset[str] = frozenset()
    foreign: str = ""

    @property
    def name(self) -> str:
        """The subject, or an alternative name if that is empty, as in a SPIFFE certificate."""
        alternatives = () if self.defect else (*self.uris, *self.dns_names, *self.emails, *self.ips)
        return self.subject or next(iter(alternatives), f"SHA-256 {self.sha256}")

    @property
    def ca(self) -> str:
        """The trust anchor's subject."""
        return self.anchors[0].subject if self.anchors else ""

    @property
    def ca_sha256(self) -> str:
        """The digest of the trust anchor."""
        return self.anchors[0].sha256 if self.anchors else ""

    @property
    def ca_subjects(self) -> tuple[str, ...]:
        return tuple(one.subject for one in self.anchors)

    @property
    def ca_digests(self) -> tuple[str, ...]:
        return tuple(one.sha256 for one in self.anchors)

    @property
    def account(self) -> tuple[str, ...]:
        """The key of the holder in limits and shares: stable over renewals of the certificate and of its CA."""
        return ("identity", self.ca, self.anchors[0].key if self.anchors else "", self.issuer, self.name)


def identity_of(der: bytes) -> Identity:
    """Never raises: bytes that are not a certificate have the defect ``unparsable``, and no name at all."""
    sha256 = hashlib.sha256(der).hexdigest()
    try:
        return _read(x509.load_der_x509_certificate(der), sha256)
    except Exception:  # noqa: BLE001 - any error of parsing hostile bytes means: no role
        return Identity(subject="", issuer="", serial="", sha256=sha256, not_after=0.0, defect="unparsable")


def identity_of_subject(subject: x509.Name, *, sha256: str = "") -> Identity:
    """The identity as far as a subject tells: without alternative names, issuer and CA, and with no end."""
    base = Identity(subject="", issuer="", serial="", sha256=sha256, not_after=inf)
    identity = _with_subject(base, subject)
    return replace(identity, defect=identity.defect or _text_defect(map(_text, subject), "subject"))


def anchor_of(certificate: x509.Certificate) -> Anchor:
    """Raises what `cryptography` raises for a name or key that it cannot read."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Anchor(
        _shown(certificate.subject.rfc4514_string()),
        certificate.fingerprint(hashes.SHA256()).hex(),
        hashlib.sha256(key).hexdigest(),
    )


def _read(certificate: x509.Certificate, sha256: str) -> Identity:
    subject = certificate.subject
    base = Identity(
        subject="",
        issuer=_shown(certificate.issuer.rfc4514_string()),
        serial=f"{certificate.serial_number:x}",
        sha256=sha256,
        not_after=certificate.not_valid_after_utc.timestamp(),
    )
    base = _with_subject(base, subject)
    try:
        extensions = certificate.extensions
    except Exception:  # noqa: BLE001 - as above, but with the subject for the log
        return replace(base, defect="unreadable extensions")
    identity = _with_alternative_names(base, extensions)
    if identity.defect:
        return identity
    defect = _name_defect(subject, "subject") or _name_defect(certificate.issuer, "issuer")
    return replace(identity, defect=defect or _alternative_defect(identity) or _usage_defect(extensions))


def _with_subject(base: Identity, subject: x509.Name) -> Identity:
    common_names = _values(subject, NameOID.COMMON_NAME)
    return replace(
        base,
        subject=_shown(subject.rfc4514_string()),
        common_name=common_names[0] if len(common_names) == 1 else "",
        organizations=_values(subject, NameOID.ORGANIZATION_NAME),
        organizational_units=_values(subject, NameOID.ORGANIZATIONAL_UNIT_NAME),
        defect="several common names" if len(common_names) > 1 else "",
    )


def _values(name: x509.Name, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(map(_text, name.get_attributes_for_oid(oid)))


def _text(attribute: x509.NameAttribute[str | bytes]) -> str:
    return str(attribute.value)


def _with_alternative_names(identity: Identity, extensions: x509.Extensions) -> Identity:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return identity
    return replace(
        identity,
        dns_names=tuple(name.lower() for name in names.get_values_for_type(x509.DNSName)),
        uris=tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
        emails=tuple(names.get_values_for_type(x509.RFC822Name)),
        ips=tuple(str(address) for address in names.get_values_for_type(x509.IPAddress)),
        other_names=tuple(type(name).__name__ for name in names if not isinstance(name, _READ)),
    )


def _name_defect(name: x509.Name, which: str) -> str:
    if not _NAME_ENCODINGS.issuperset(_encodings(name.public_bytes())):
        return f"{which} in an encoding other than UTF8String, PrintableString or IA5String"
    return _text_defect(map(_text, name), which)


def _alternative_defect(identity: Identity) -> str:
    # dNSName, URI and rfc822Name are IA5String (RFC 5280 §4.2.1.6): an internationalised name comes as punycode.
    names = (*identity.dns_names, *identity.uris, *identity.emails)
    if not all(name.isascii() for name in names):
        return "non-ASCII alternative name"
    if any(" " in name for name in names):
        return "space in an alternative name"
    if defect := _text_defect(names, "alternative name"):
        return defect
    if not identity.subject and not names and not identity.ips:
        return "empty subject and no alternative name"
    # An X.509-SVID has exactly one URI SAN (SPIFFE X.509-SVID §2); with two, readers differ in which one counts.
    if len(identity.uris) > 1 and any(uri.lower().startswith("spiffe:") for uri in identity.uris):
        return "a SPIFFE URI beside another URI"
    return ""


def _text_defect(values: Iterable[str], which: str) -> str:
    for value in values:
        if not value:
            return f"empty value in the {which}"
        if any(unicodedata.category(character) in _INVISIBLE for character in value):
            return f"control or invisible character in the {which}"
        if value != value.strip():
            return f"leading or trailing space in the {which}"
    return ""


def _usage_defect(extensions: x509.Extensions) -> str:
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            return "a CA certificate used as a client's"
        if isinstance(value, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CLIENT_AUTH not in value:
            return "extended key usage without clientAuth"
    return ""


def _shown(text: str) -> str:
    return "".join(
        "".join(f"\\{byte:02x}" for byte in character.encode())
        if unicodedata.category(character) in _INVISIBLE
        else character
        for character in text
    )


def _encodings(name: bytes) -> set[int]:
    """The ASN.1 tags of a Name's attribute values, which `cryptography` does not expose after decoding.

    ``name`` is DER that `cryptography` has written: RDNSequence ⊃ SET ⊃ AttributeTypeAndValue ⊃ OID, value.
    """
    return {
        list(_elements(pair))[1][0]
        for _, sequence in _elements(name)
        for _, attributes in _elements(sequence)
        for _, pair in _elements(attributes)
    }


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, contents) of consecutive DER elements with single-byte tags (X.690 §8.1)."""
    offset = 0
    while offset < len(der):
        tag, length = der[offset], der[offset + 1]
        offset += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[offset : offset + size], "big")
            offset += size
        yield tag, der[offset : offset + length]
        offset += length
