"""Client certificate chains as small values, and the rules for a possible issuer.

The rules are those of OpenSSL at security level 2, so that a connection stays exactly if a new handshake would succeed.
A chain keeps the certificates that the client sent beside the path that OpenSSL verified: after a change of CAs another
path may be valid. For example, the client sends leaf and intermediate; its root is replaced by a cross-signed one of
the same name and key, and the path ends there.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from tlsproxy.authz.identity import Anchor, anchor_of
from tlsproxy.tls.certinfo import issuer_key
from tlsproxy.tls.crls import extension_of, point_names
from tlsproxy.tls.owncert import is_authority, issued_by

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_SENT: Final = 16
"""Most certificates of a client that are kept beside the verified path: no chain is as long."""
MAX_SIZE: Final = 8192
"""Most bytes of such a certificate, since they are kept."""
CACHED: Final = 1024

_MIN_BITS: Final = 1984
"""Least bits of an RSA or DSA key for the 112 bits of security that OpenSSL's level 2 requires."""
_MIN_CURVE_BITS: Final = 224
_KNOWN_CRITICAL: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.INHIBIT_ANY_POLICY,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.POLICY_CONSTRAINTS,
        ExtensionOID.POLICY_MAPPINGS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
"""Critical extensions that OpenSSL handles."""

Peers: TypeAlias = Literal["clients", "servers"]
_PURPOSES: Final[Mapping[Peers, tuple[x509.ObjectIdentifier, str]]] = {
    "clients": (ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth"),
    "servers": (ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth"),
}


@dataclass(frozen=True, slots=True)
class KeyIdentifier:
    """An authority key identifier (RFC 5280 section 4.2.1.1); None for absent fields."""

    key: bytes | None = None
    serial: int | None = None
    issuer: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ChainCertificate:
    """One certificate. Names are :func:`~tlsproxy.tls.certinfo.issuer_key`, digests lower-case hex, times in seconds.

    ``points`` are the names of its CRL distribution points. The fields below ``named`` are of CAs only: ``key``
    digests the public key, ``constraints`` are name constraints (DER), ``defect`` is the reason why it verifies no
    client, ``certificate`` is for verifying signatures.
    """

    sha256: str
    issuer: str
    serial: int
    not_before: float
    not_after: float
    points: frozenset[str]
    named: KeyIdentifier
    subject: str = ""
    key: str = ""
    key_identifier: bytes | None = None
    path_length: int | None = None
    weakly_signed: bool = False
    constraints: bytes = b""
    defect: str = ""
    anchor: Anchor | None = None
    certificate: x509.Certificate | None = field(default=None, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChainCertificate) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def may_be_below(self, above: ChainCertificate) -> bool:
        """Whether OpenSSL considers ``above`` a possible issuer: by names and key identifiers, not by key."""
        named = self.named
        return (
            above.subject == self.issuer
            and (named.key is None or above.key_identifier is None or named.key == above.key_identifier)
            and named.serial in {None, above.serial}
            and named.issuer in {None, above.issuer}
        )

    @property
    def has_issuer(self) -> bool:
        """Whether OpenSSL looks for an issuer: not above a self-issued certificate."""
        return not (self.weakly_signed or self.may_be_below(self))


@dataclass(frozen=True, slots=True)
class Chain:
    """``verified`` is OpenSSL's path, leaf first; empty if it is unknown or cannot be read.

    ``sent`` are the CA certificates that the client sent, in its order, as far as they are possible issuers: it will
    send them again. Certificates of ``verified`` may have come from the CA file instead.
    """

    verified: tuple[ChainCertificate, ...]
    sent: tuple[ChainCertificate, ...] = ()

    @property
    def issuers(self) -> tuple[ChainCertificate, ...]:
        return self.verified[1:]

    def signed(self, below: ChainCertificate, above: ChainCertificate) -> bool:
        """Whether ``above`` signed ``below``, by name and key.

        Signatures off OpenSSL's path are verified here, once.
        """
        if not below.may_be_below(above):
            return False
        signer = next((upper for lower, upper in pairwise(self.verified) if lower == below), None)
        return signer.key == above.key if signer is not None else _signed(below, above)

    def adds_constraints(self, above: ChainCertificate) -> bool:
        """Whether ``above`` has name constraints that the handshake did not check for this chain."""
        return bool(above.constraints) and all(above.constraints != one.constraints for one in self.verified)


def kept_of(sent: Sequence[bytes]) -> tuple[bytes, ...]:
    """Sent certificates that a chain keeps: without the leaf, which comes first, and without too large ones."""
    return tuple(der for der in sent[1 : 1 + MAX_SENT] if len(der) <= MAX_SIZE)


def chain_of(verified: Sequence[bytes], sent: Sequence[bytes]) -> Chain:
    """The chain of a handshake: the verified path, leaf first, and the CA certificates that were sent (both DER)."""
    read = [authority_of(der) if place else _leaf(der) for place, der in enumerate(verified)]
    path = tuple(one for one in read if one is not None)
    if len(path) < len(verified):
        return Chain(())
    others = dict.fromkeys(one for one in map(authority_of, sent) if one is not None)
    leading: list[ChainCertificate] = []
    for below in itertools.chain(path, leading):  # ``leading`` grows meanwhile
        leading += [one for one in others if one not in leading and below.may_be_below(one)]
    return Chain(path, tuple(one for one in others if one in leading))


@lru_cache(maxsize=CACHED)
def authority_of(der: bytes) -> ChainCertificate | None:
    """A CA certificate, cached by its bytes; None if it cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        constraints = extension_of(certificate.extensions, x509.BasicConstraints)
        identifier = extension_of(certificate.extensions, x509.SubjectKeyIdentifier)
        constrained = extension_of(certificate.extensions, x509.NameConstraints)
        anchor = anchor_of(certificate)
        return replace(
            _read(certificate, der, certificate.extensions),
            subject=issuer_key(certificate.subject),
            key=anchor.key,
            key_identifier=None if identifier is None else identifier.digest,
            path_length=None if constraints is None else constraints.path_length,
            weakly_signed=isinstance(certificate.signature_hash_algorithm, hashes.SHA1 | hashes.MD5),
            constraints=b"" if constrained is None else constrained.public_bytes(),
            defect=defect_of(certificate),
            anchor=anchor,
            certificate=certificate,
        )
    except Exception:  # noqa: BLE001 - hostile bytes, whatever the parser raises: no possible issuer
        return None


def defect_of(authority: x509.Certificate, peers: Peers = "clients") -> str:
    """The reason why OpenSSL at security level 2 verifies no ``peers`` below this CA; "" for none."""
    extensions, key = authority.extensions, authority.public_key()
    usage = extension_of(extensions, x509.KeyUsage)
    purposes = extension_of(extensions, x509.ExtendedKeyUsage)
    unknown = [one.oid.dotted_string for one in extensions if one.critical and one.oid not in _KNOWN_CRITICAL]
    if not is_authority(authority):
        return "is not a CA (its basic constraints do not say so)"
    if usage is not None and not usage.key_cert_sign:
        return "may not issue certificates: its key usage lacks keyCertSign"
    purpose, name = _PURPOSES[peers]
    if purposes is not None and purpose not in purposes:
        return f"may not vouch for {peers}: its extended key usage lacks {name}"
    if isinstance(key, rsa.RSAPublicKey | dsa.DSAPublicKey) and key.key_size < _MIN_BITS:
        return f"has a key of {key.key_size} bits, which is too short"
    if isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < _MIN_CURVE_BITS:
        return f"has a key on {key.curve.name}, which is too weak"
    if unknown:
        return f"has a critical extension that OpenSSL does not know ({unknown[0]})"
    return ""


def _leaf(der: bytes) -> ChainCertificate | None:
    try:
        certificate = x509.load_der_x509_certificate(der)
        try:
            extensions = certificate.extensions
        except Exception:  # noqa: BLE001 - as identity_of, which gives it no role
            extensions = x509.Extensions([])
        return _read(certificate, der, extensions)
    except Exception:  # noqa: BLE001 - as above
        return None


def _read(certificate: x509.Certificate, der: bytes, extensions: x509.Extensions) -> ChainCertificate:
    points = extension_of(extensions, x509.CRLDistributionPoints)
    return ChainCertificate(
        sha256=hashlib.sha256(der).hexdigest(),
        issuer=issuer_key(certificate.issuer),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        points=frozenset[str]().union(*(point_names(one) for one in points or ())),
        named=_named(extension_of(extensions, x509.AuthorityKeyIdentifier)),
    )


def _named(found: x509.AuthorityKeyIdentifier | None) -> KeyIdentifier:
    if found is None:
        return KeyIdentifier()
    names = [name.value for name in found.authority_cert_issuer or () if isinstance(name, x509.DirectoryName)]
    return KeyIdentifier(
        found.key_identifier, found.authority_cert_serial_number, issuer_key(names[0]) if names else None
    )


@lru_cache(maxsize=4 * CACHED)
def _signed(below: ChainCertificate, above: ChainCertificate) -> bool:
    if below.certificate is None or above.certificate is None:
        return False
    return issued_by(below.certificate, above.certificate)
