"""Certificates as a person reads them: the very fields that rules match on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tlsproxy.authz.identity import Identity, identity_of
from tlsproxy.errors import MaterialError
from tlsproxy.tls.facts import day
from tlsproxy.tls.files import PEM_LIMIT, read_file


def read_certificates(path: Path) -> tuple[Identity, ...]:
    """Those of a PEM file, in order, or the one of a DER file. Raises :class:`MaterialError`; never returns none."""
    data = read_file(path, PEM_LIMIT)
    if b"-----BEGIN " not in data:
        identities: tuple[Identity, ...] = (identity_of(data),)
    else:
        try:
            certificates = x509.load_pem_x509_certificates(data)
        except ValueError:
            raise MaterialError(str(path), "holds no certificate that can be read") from None
        identities = tuple(identity_of(certificate.public_bytes(Encoding.DER)) for certificate in certificates)
    if any(identity.defect == "unparsable" for identity in identities):
        raise MaterialError(str(path), "is not a certificate")
    return identities


def described(identity: Identity, *, now: float) -> Iterator[str]:
    """Lines of a label and a value, by the names that a rule's `match` uses; what is absent is left out."""
    values = (
        ("subject", (identity.subject,)),
        ("issuer", (identity.issuer,)),
        ("cn", (identity.common_name,)),
        ("o", identity.organizations),
        ("ou", identity.organizational_units),
        ("dns", identity.dns_names),
        ("uri", identity.uris),
        ("email", identity.emails),
        ("ip", identity.ips),
        ("serial", (identity.serial,)),
        ("sha256", (identity.sha256,)),
    )
    for label, texts in values:
        for text in texts:
            if text:
                yield f"{label:<10} {_printable(text)}"
    yield f"{'not after':<10} {day(identity.not_after)}{' (expired)' if identity.not_after < now else ''}"
    if identity.defect:
        yield f"{'defect':<10} {identity.defect}: no role, as a client's certificate"


def _printable(text: str) -> str:
    """A certificate of anybody's is shown on a terminal: its control characters must not reach it."""
    return text if text.isprintable() else ascii(text)
