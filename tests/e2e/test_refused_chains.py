"""A client certificate with a flaw is refused with the flaw's own reason and sentence, and named in the audit line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.certificates import CN, name
from support.gateway import Gateway
from support.raw_request import alert
from support.site import Site

from tlsproxy.tls.pki import Authority

NOW = datetime.now(UTC)


def signed(
    by: Authority,
    subject: str,
    *extensions: tuple[x509.ExtensionType, bool],
    key: Any = None,
) -> tuple[x509.Certificate, Any]:
    """A certificate below ``by``, with its key."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(by._certificate().subject, name((CN, subject)), key.public_key(), 4711)
    builder = builder.not_valid_before(NOW - timedelta(minutes=1)).not_valid_after(NOW + timedelta(days=1))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(by._key(), hashes.SHA256()), key


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Any) -> bytes:
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, *plain))


def below(site: Site, *extensions: tuple[x509.ExtensionType, bool]) -> Authority:
    """An intermediate with these extensions."""
    certificate, key = signed(site.authority, "middle", *extensions)
    pem = pem_of(certificate)
    return Authority(pem, key_pem(key), pem)


CA = (x509.BasicConstraints(ca=True, path_length=None), True)
LAST = (x509.BasicConstraints(ca=True, path_length=0), True)
HERE = (x509.NameConstraints([x509.DNSName("here.example")], None), True)
UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
THERE = (x509.SubjectAlternativeName([x509.DNSName("there.example")]), False)
WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is what is refused


@pytest.mark.parametrize(
    ("flaw", "reason", "told"),
    [
        ("a short key", "certificate_weak", "the client's key is too short"),
        ("an unknown critical extension", "certificate_invalid", "critical extension"),
        ("an issuer that is no CA", "certificate_chain", "that of CN=middle"),
        ("too long a path", "certificate_chain", "path length"),
        ("a name that its CA may not give", "certificate_constraint", "name constraints"),
        ("the signature of another key", "certificate_signature", "was not signed by the CA that it names"),
    ],
)
def test_a_flaw(site: Site, shared_gateway: Gateway, flaw: str, reason: str, told: str) -> None:
    root, sent = site.authority, b""
    match flaw:
        case "a short key":
            certificate, key = signed(root, flaw, key=WEAK)
        case "an unknown critical extension":
            certificate, key = signed(root, flaw, UNKNOWN)
        case "an issuer that is no CA":
            middle = below(site)
            (certificate, key), sent = signed(middle, flaw), middle.certificate_pem
        case "too long a path":
            upper = below(site, LAST)
            second, second_key = signed(upper, "lower", CA)
            lower = Authority(pem_of(second), key_pem(second_key))
            (certificate, key), sent = signed(lower, flaw), lower.certificate_pem + upper.certificate_pem
        case "a name that its CA may not give":
            middle = below(site, CA, HERE)
            (certificate, key), sent = signed(middle, flaw, THERE), middle.certificate_pem
        case _:
            namesake = Authority(root.certificate_pem, Authority.create().key_pem)
            certificate, key = signed(namesake, flaw)
    label = flaw.replace(" ", "-")
    site.write(f"{label}.pem", pem_of(certificate) + sent)
    site.write(f"{label}.key", key_pem(key))
    context = site.client(None)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.load_cert_chain(site.directory / f"{label}.pem", site.directory / f"{label}.key")
    assert "ALERT" in alert(shared_gateway, context)
    record = shared_gateway.audited(event="handshake")
    assert (record["reason"], told in record["error"]) == (reason, True), record["error"]
    assert (record["certificate_subject"], record["certificate_serial"]) == (f"CN={flaw}", f"{4711:x}")
    assert record["certificate_issuer"] == certificate.issuer.rfc4514_string()
    assert record["certificate_sha256"] == certificate.fingerprint(hashes.SHA256()).hex()
