"""A certificate of ours with its chain and key, a server's or a client's, checked before it is published.

Each check prevents failed handshakes of all connections at once.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.pem import blocks as pem
from tlsproxy.text import utc_time

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

SKEW: Final = 300.0
"""Seconds that a certificate may start in the future, since its issuer's clock may be ahead."""
RSA_BITS: Final = 2048
CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
PASSPHRASE_LIMIT: Final = 1024
"""OpenSSL's PEM_BUFSIZE, beyond which the ssl module refuses a passphrase."""

PARSE_ERRORS: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""Exceptions of `cryptography` for a certificate or CRL that it cannot parse."""


@dataclass(frozen=True, slots=True)
class Use:
    """Use of a certificate in TLS, with its extended key usage. ``passphrase``: the setting for that of its key."""

    title: str
    purpose: x509.ObjectIdentifier
    usage: str
    passphrase: str


SERVER: Final = Use("server", ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth", "tls.key_passphrase_file")
CLIENT: Final = Use("client", ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth", "key_passphrase_file beside it")


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """``key_pem`` is the key as configured; an encrypted one needs ``passphrase``."""

    chain: tuple[x509.Certificate, ...]
    key_pem: bytes = field(repr=False)
    passphrase: bytes | None = field(repr=False)
    warnings: tuple[str, ...]


def load_chain(path: str, data: bytes, use: Use = SERVER) -> tuple[x509.Certificate, ...]:
    """The leaf and its intermediates, leaf first. Raises MaterialError for the first fault."""
    chain, blocks = [], pem.blocks_of(path, data)
    for block in blocks:
        if block.label == pem.CERTIFICATE:
            chain.append(certificate_of(path, block.data))
        elif block.label not in pem.PRIVATE_KEYS | pem.PARAMETERS:
            raise pem.refused(path, block, "the certificate and its chain belong")
    if not chain:
        text = f"holds no certificate; put the {use.title} certificate first, then its intermediates"
        raise MaterialError(path, pem.hinted(path, text, blocks[0]))
    _check_leaf(path, chain[0], use)
    for issued, issuer in pairwise(chain):
        _check_link(path, issued, issuer)
    return tuple(chain)


def as_sent(
    chain: tuple[x509.Certificate, ...], authorities: Iterable[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """The chain for clients: a lone certificate is completed by its issuer, if that is among ``authorities``.

    OpenSSL would do the same, by a search and a verification in each handshake (a tenth of its time).
    """
    if len(chain) > 1:
        return chain
    issuers = (authority for authority in authorities if issued_by(chain[0], authority))
    return (*chain, *sorted(issuers, key=lambda issuer: issuer.not_valid_after_utc)[-1:])


def load_key(path: str, data: bytes, passphrase: bytes | None, use: Use = SERVER) -> tuple[PrivateKeyTypes, bytes]:
    """The only private key of a file, and its PEM for OpenSSL; certificates beside it are ignored."""
    found = pem.blocks_of(path, data)
    blocks = [block for block in found if block.label in pem.PRIVATE_KEYS]
    if len(blocks) != 1:
        text = f"holds {len(blocks)} private keys; exactly one is needed"
        raise MaterialError(path, text if blocks else pem.hinted(path, text, found[0]))
    block = blocks[0]
    if block.label == pem.OPENSSH_KEY:
        return _openssh_key(path, block.data)
    encrypted = block.label == "ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in block.data
    if encrypted and passphrase is None:
        raise MaterialError(path, f"the private key is encrypted; name its passphrase in {use.passphrase}")
    try:
        key = serialization.load_pem_private_key(block.data, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # The library's text may quote the key file, whose content must not be in any message.
        right = f"is the passphrase in {use.passphrase} the right one?"
        hint = right if encrypted else "write the file anew"
        text = f"the private key cannot be read ({type(error).__name__}); {hint}"
        raise MaterialError(path, text, unmatched=encrypted) from None
    _check_strength(path, key)
    return key, block.data


def _openssh_key(path: str, data: bytes) -> tuple[PrivateKeyTypes, bytes]:
    """An OpenSSH key, which OpenSSL does not read, and its PKCS#8."""
    try:
        key = serialization.load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        name = shlex.quote(path)
        command = f"cp {name} {name}.pem && ssh-keygen -p -N '' -m PKCS8 -f {name}.pem"
        text = "the OpenSSH key cannot be read, or is encrypted"
        raise MaterialError(path, f"{text}. Decrypt and convert it: `{command}`") from None
    _check_strength(path, key)
    form = serialization.PrivateFormat.PKCS8
    return key, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def load_certificate(
    cert: tuple[str, bytes], key: tuple[str, bytes], passphrase: bytes | None, use: Use = SERVER
) -> OwnCertificate:
    """Certificate, chain and key, each given as path and bytes. Dates are not checked. Raises MaterialError."""
    cert_path, cert_data = cert
    key_path, key_data = key
    chain = load_chain(cert_path, cert_data, use)
    private, block = load_key(key_path, key_data, passphrase, use)
    if private.public_key() != chain[0].public_key():
        raise MaterialError(
            key_path,
            f"does not belong to the first certificate of {cert_path}; if they are being replaced, both must be",
            unmatched=True,
        )
    warnings = []
    if cert_path != key_path and b"PRIVATE KEY-----" in cert_data:
        warnings.append(f"{cert_path}: holds a private key that is not used; the key is read from {key_path}")
    if use is SERVER and not _has_names(chain[0]):
        warnings.append(f"{cert_path}: names no host in subjectAltName; clients that verify host names refuse it")
    return OwnCertificate(chain, block, passphrase, tuple(warnings))


def check_dates(path: str, chain: Iterable[x509.Certificate], now: float, skew: float) -> None:
    """Check that each certificate is valid at ``now``, or at most ``skew`` seconds later. Raises MaterialError."""
    for certificate in chain:
        name = certificate.subject.rfc4514_string()
        start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        if start > now + skew:
            text = f"{name} is not valid before {utc_time(start)}; it waits for that"
            raise MaterialError(path, text, FailureKind.TIME, start - skew)
        if end <= now:
            raise MaterialError(path, f"{name} expired at {utc_time(end)}; renew it", FailureKind.AGE)


def passphrase_of(path: str, data: bytes) -> bytes:
    """The content of a passphrase file without a final line end."""
    passphrase = pem.text_of(path, data).removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase:
        raise MaterialError(path, "is empty; put the passphrase of the private key there")
    if len(passphrase) > PASSPHRASE_LIMIT:
        raise MaterialError(path, f"is longer than the {PASSPHRASE_LIMIT} bytes that OpenSSL takes as a passphrase")
    return passphrase


def certificate_of(path: str, block: bytes) -> x509.Certificate:
    """A parsed block, extensions included. Raises MaterialError."""
    try:
        certificate = x509.load_pem_x509_certificate(block)
        # These are parsed lazily otherwise, and would raise later.
        certificate.public_key()
        _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.signature_hash_algorithm
    except PARSE_ERRORS as error:
        raise MaterialError(path, f"holds a certificate that cannot be parsed: {error}") from None
    return certificate


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether basic constraints say CA; without them a certificate issues nothing (RFC 5280 section 4.2.1.9)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _check_leaf(path: str, leaf: x509.Certificate, use: Use) -> None:
    name = leaf.subject.rfc4514_string() or "the first certificate"
    if is_authority(leaf):
        raise MaterialError(
            path, f"{name} is a CA; the {use.title} certificate must come first, and not be a CA itself"
        )
    if isinstance(leaf.signature_hash_algorithm, hashes.SHA1 | hashes.MD5):
        raise MaterialError(
            path, f"{name} is signed with {leaf.signature_hash_algorithm.name}; issue it anew with SHA-256"
        )
    _check_strength(path, leaf.public_key())
    try:
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        purposes = None
    if purposes is not None and use.purpose not in purposes:
        raise MaterialError(path, f"{name} is not for {use.title}s: its extended key usage lacks {use.usage}")
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is not None and not usage.digital_signature:
        raise MaterialError(
            path, f"{name} may not sign: its key usage lacks digitalSignature, which ECDHE and TLS 1.3 need"
        )


def _check_link(path: str, issued: x509.Certificate, issuer: x509.Certificate) -> None:
    below, above = issued.subject.rfc4514_string(), issuer.subject.rfc4514_string()
    if not is_authority(issuer):
        raise MaterialError(
            path, f"{above} follows {below} but is not a CA; only the chain's intermediates belong here"
        )
    if not issued_by(issued, issuer):
        raise MaterialError(
            path, f"{above} did not issue {below}, which stands before it; order the file from leaf to root"
        )


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer`` issued the certificate, by name and signature."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def self_signed(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer and issued_by(certificate, certificate)


def _check_strength(path: str, key: object) -> None:
    """Check a private or public key against OpenSSL's security level 2 and the clients in use. Raises MaterialError."""
    match key:
        case rsa.RSAPrivateKey() | rsa.RSAPublicKey():
            if key.key_size < RSA_BITS:
                raise MaterialError(path, f"an RSA key of {key.key_size} bits is too short; use {RSA_BITS} or more")
        case ec.EllipticCurvePrivateKey() | ec.EllipticCurvePublicKey():
            if key.curve.name not in CURVES:
                raise MaterialError(path, f"the curve {key.curve.name} is not used in TLS; use {', '.join(CURVES)}")
        case ed25519.Ed25519PrivateKey() | ed25519.Ed25519PublicKey():
            pass
        case _:
            raise MaterialError(path, "the key is neither RSA nor ECDSA nor Ed25519")


def _has_names(leaf: x509.Certificate) -> bool:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return bool(names.get_values_for_type(x509.DNSName) or names.get_values_for_type(x509.IPAddress))
