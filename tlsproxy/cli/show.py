"""Certificates in text form: the fields that rules match on."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tlsproxy.authz.identity import Identity, identity_of
from tlsproxy.errors import MaterialError
from tlsproxy.pem import blocks as pem
from tlsproxy.snapshot.reading import PEM_LIMIT, read_argument
from tlsproxy.text import printable, utc_time


def read_chain(path: Path) -> tuple[bytes, ...]:
    """Certificates (DER) of a PEM or DER file, at least one. Raises MaterialError."""
    data = read_argument(path, PEM_LIMIT)
    if identity_of(data).defect != "unparsable":
        return (data,)
    try:
        blocks = pem.blocks_of(str(path), data)
    except MaterialError as error:
        raise MaterialError(str(path), f"is not a certificate: {error.text}") from None
    chain = [block for block in blocks if block.label == pem.CERTIFICATE]
    if not chain:
        raise MaterialError(str(path), pem.hinted(str(path), "is not a certificate", blocks[0]))
    try:
        return tuple(x509.load_pem_x509_certificate(block.data).public_bytes(Encoding.DER) for block in chain)
    except ValueError:
        raise MaterialError(str(path), "holds no certificate that can be read") from None


def read_certificates(path: Path) -> tuple[Identity, ...]:
    """Identities of a PEM or DER file's certificates, at least one. Raises MaterialError."""
    return tuple(map(identity_of, read_chain(path)))


def described(identity: Identity, *, now: float) -> Iterator[str]:
    """Lines of label and value, with the names of a rule's `match`; absent fields are left out."""
    values = (
        ("subject", (identity.subject,)),
        ("issuer", (identity.issuer,)),
        ("ca", tuple(dict.fromkeys(identity.ca_subjects))),
        ("ca_sha256", identity.ca_digests),
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
                yield f"{label:<10} {printable(text)}"
    if identity.not_after < inf:  # else only its subject is known
        yield f"{'not after':<10} {utc_time(identity.not_after)}{' (expired)' if identity.not_after < now else ''}"
    if identity.defect:
        yield f"{'defect':<10} {identity.defect}: no role, as a client's certificate"
