"""Certificates in text form: the fields that rules match on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tlsproxy.authz.identity import Identity, identity_of
from tlsproxy.config.model import Config
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot.files import PEM_LIMIT, read_file
from tlsproxy.text import printable, utc_time
from tlsproxy.tls.authorities import anchors_of, chain_above
from tlsproxy.tls.trust import load_authorities


def read_certificates(path: Path) -> tuple[Identity, ...]:
    """Certificates of a PEM or DER file, at least one. Raises MaterialError."""
    data = read_file(path, PEM_LIMIT)
    if b"-----BEGIN " not in data:
        identities: tuple[Identity, ...] = (identity_of(data),)
    else:
        identities = tuple(identity_of(each.public_bytes(Encoding.DER)) for each in _pem_certificates(path, data))
    if any(identity.defect == "unparsable" for identity in identities):
        raise MaterialError(str(path), "is not a certificate")
    return identities


def read_client(path: Path, config: Config) -> Identity:
    """Identity in a file's first certificate, with its trust anchor among those of the configuration.

    Its intermediates follow that certificate in the file. Raises MaterialError.
    """
    identity, data = read_certificates(path)[0], read_file(path, PEM_LIMIT)
    authorities: tuple[x509.Certificate, ...] = ()
    if config.tls.ca_cert is not None:
        authorities = load_authorities(str(config.tls.ca_cert), read_file(config.tls.ca_cert, PEM_LIMIT))
    sent = _pem_certificates(path, data) if b"-----BEGIN " in data else [x509.load_der_x509_certificate(data)]
    anchors = anchors_of(config.tls, authorities)
    issuers = chain_above(sent, authorities) or list(anchors.trusted.values())[: len(authorities) == 1]
    return anchors.identified(identity, issuers)


def _pem_certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise MaterialError(str(path), "holds no certificate that can be read") from None


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
    yield f"{'not after':<10} {utc_time(identity.not_after)}{' (expired)' if identity.not_after < now else ''}"
    if identity.defect:
        yield f"{'defect':<10} {identity.defect}: no role, as a client's certificate"
