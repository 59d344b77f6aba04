"""Facts of certificates and CRLs for the status, metrics and logs. No secrets, no decisions."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """Names are RFC 4514, ``serial`` and ``sha256`` lower-case hex, times seconds since the epoch."""

    subject: str
    issuer: str
    serial: str
    sha256: str
    not_before: float
    not_after: float
    dns_names: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CrlFacts:
    """``scope`` digests the signer's key and the distribution point: a CRL replaces only one of its own scope.

    ``path`` is its file.

    ``number`` is None where the CRL has none (RFC 5280 asks for one, `openssl ca` without a counter writes none).
    """

    issuer: str
    this_update: float
    next_update: float
    number: int | None
    count: int
    scope: str
    path: str


def facts_of(certificate: x509.Certificate) -> CertificateFacts:
    """Raises ValueError where the certificate's names cannot be read."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    return CertificateFacts(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial=f"{certificate.serial_number:x}",
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        dns_names=tuple(names.get_values_for_type(x509.DNSName)),
        ips=tuple(str(ip) for ip in names.get_values_for_type(x509.IPAddress)),
    )


def issuer_key(name: x509.Name) -> str:
    """An issuer's name for looking up revocations: RFC 4514, without case and runs of spaces.

    OpenSSL compares names that way (RFC 5280 section 7.1), and taking two names for one can only revoke more.
    """
    return " ".join(name.rfc4514_string().casefold().split())
