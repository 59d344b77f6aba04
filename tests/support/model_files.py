"""The certificates, CRLs and files that :mod:`support.reload_model` speaks of, as bytes. Each is made once."""

from __future__ import annotations

import functools
import ssl
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from support.reload_model import SERVER, Cert, Client, Content, Pair, Policy, Revocations
from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.tls.peer import Peer, peer_of

ORIGIN = float(int(time.time()))
"""Hour 0, in seconds since the epoch."""
SLACK = timedelta(minutes=30)
"""What begins at an hour has begun well before it, and what ends at one ends well before it: no moment is a border."""
PEM = serialization.Encoding.PEM


def seconds(hour: int) -> float:
    return ORIGIN + 3600 * hour


def moment(hour: int) -> datetime:
    return datetime.fromtimestamp(seconds(hour), UTC) - SLACK


@functools.cache
def private_key(key: str) -> ec.EllipticCurvePrivateKey:
    """``key`` is its name."""
    del key
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def key_pem(key: str) -> bytes:
    return private_key(key).private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@functools.cache
def certificate(cert: Cert) -> x509.Certificate:
    """A leaf where its subject begins with a small letter, a CA otherwise; for servers where it is `localhost`."""
    authority = cert.subject[0].isupper()
    key, signer = private_key(cert.key), private_key(cert.signer)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(cert.subject))
        .issuer_name(_name(cert.issuer))
        .public_key(key.public_key())
        .serial_number(cert.serial)
        .not_valid_before(moment(cert.begins))
        .not_valid_after(moment(cert.ends))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(_usage(authority=authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not authority:
        server = cert.subject == "localhost"
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(cert.subject)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


@functools.cache
def pem(cert: Cert) -> bytes:
    return certificate(cert).public_bytes(PEM)


@functools.cache
def crl(revocations: Revocations) -> bytes:
    signer, begins = private_key(revocations.signer), moment(revocations.begins)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_name(revocations.issuer))
        .last_update(begins)
        .next_update(moment(revocations.ends))
        .add_extension(x509.CRLNumber(revocations.number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for serial in revocations.serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(begins).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@functools.cache
def crl_pem(revocations: Revocations) -> bytes:
    return ssl.DER_cert_to_PEM_cert(crl(revocations)).replace("CERTIFICATE", "X509 CRL").encode()


def written(path: str, content: Content) -> tuple[bytes, ...]:
    """The bytes of the file, or files, of an input. Raises MaterialError where it cannot be read."""
    match content:
        case Policy():
            return (_yaml(content),)
        case Pair():
            return pem(content.certificate), key_pem(content.certificate.key if content.belongs else "another")
        case (Revocations() as only,):
            return (crl(only),)
        case tuple():
            return (b"".join(crl_pem(each) if isinstance(each, Revocations) else pem(each) for each in content),)
    if content.how == "unreadable":
        raise MaterialError(path, "cannot be read: Input/output error", FailureKind.ENVIRONMENT)
    data = b"" if content.how == "empty" else b"-----BEGIN CERTIFICATE-----\nMIIB"
    return (data, data) if path == SERVER else (data,)


def configuration(policy: Policy) -> dict[str, Any]:
    tls: dict[str, Any] = {"cert": "server.pem", "key": "server.key", "ca_cert": "ca.pem", "crl": list(policy.crls)}
    if not policy.required:
        tls["crl_policy"] = "where_present"
    if not policy.deny_expired:
        tls["crl_expired"] = "warn"
    return {
        "service": {"host": "127.0.0.1", "http_port": 0, "grpc_port": None},
        "tls": tls,
        "upstream": {"rest": "http://127.0.0.1:1"},
        "roles": {"reader": {"access": "r"}},
        "identities": [{"name": name, "match": {"cn": name}, "role": "reader"} for name in sorted(policy.mapped)],
    }


@functools.cache
def client_context(client: Client) -> ssl.SSLContext:
    """It trusts any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(map(pem, (client.leaf, *client.sent))) + key_pem(client.leaf.key))
        file.flush()
        context.load_cert_chain(file.name)
    return context


def handshake(server: ssl.SSLContext, client: Client) -> Peer | None:
    """In memory, TLS 1.3. None where OpenSSL refuses it."""
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        client_context(client).wrap_bio(downward, upward),
        server.wrap_bio(upward, downward, server_side=True),
    )
    try:
        for _ in range(3):
            for side in sides:
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLError:
        return None
    return peer_of(sides[1])


@functools.cache
def _yaml(policy: Policy) -> bytes:
    return yaml.safe_dump(configuration(policy)).encode()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
