"""Certificates that no sound authority issues, and the curl arguments that use any."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from support.site import Site
from tlsproxy.tls.pki import Authority

CN, OU = NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME


def name(*pairs: tuple[x509.ObjectIdentifier, str], encoding: _ASN1Type | None = None) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value, encoding) for oid, value in pairs])


def certified(
    authority: Authority,
    by: Authority,
    *,
    not_after: datetime | None = None,
    extensions: Sequence[x509.ExtensionType] = (),
) -> Authority:
    """The same name and key, with a certificate of another CA: as CAs are cross-signed. By itself: issued anew.

    ``extensions`` are critical.
    """
    own, issuer = authority._certificate(), by._certificate()
    builder = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(issuer.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(not_after or issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    certificate = builder.sign(by._key(), hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return Authority(pem, authority.key_pem, pem + by.intermediates_pem)


def fingerprint(authority: Authority) -> str:
    """SHA-256 of a CA's certificate, lower-case hex."""
    return authority._certificate().fingerprint(hashes.SHA256()).hex()


def issue_odd(
    site: Site,
    label: str,
    subject: x509.Name,
    *,
    alternatives: Sequence[x509.GeneralName] = (),
    purposes: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH,),
    ca: bool = False,
) -> None:
    """Writes LABEL.pem and LABEL.key, signed by the site's authority."""
    issuer = site.authority._certificate()
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(site.authority._authority_key_identifier(), critical=False)
    )
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    certificate = builder.sign(site.authority._key(), hashes.SHA256())
    site.write(f"{label}.pem", certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    site.write(f"{label}.key", private)
