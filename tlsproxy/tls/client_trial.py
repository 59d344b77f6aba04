"""Trials of client certificates with a server's context, without their private keys or those of their CAs.

OpenSSL verifies a client's chain when its Certificate message arrives, and its possession of the key two messages later
(RFC 5246 section 7.3). So a TLS 1.2 handshake up to that message has the verdict of the very context that listeners
use: chain, purpose, dates, key and signature strength, CRLs.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, PublicKeyAlgorithmOID

from tlsproxy.tls.verification import shake_hands
from tlsproxy.tls.verify_errors import described

if TYPE_CHECKING:
    from collections.abc import Sequence

_Signer: TypeAlias = (
    "ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey"
)

_LIFETIME: Final = timedelta(days=1)
_EXPECTED: Final = frozenset({7, 9, 10})
"""X509_V_ERR_*: a wrong signature, and dates, of which there are warnings of their own."""
_RECORD: Final = 16_384
"""Most bytes in a record (RFC 5246 section 6.2.1)."""
_CERTIFICATE: Final = b"\x0b"
"""The type of a Certificate message (section 7.4)."""
_HANDSHAKE: Final = b"\x16\x03\x03"
"""Content type and version of a record of handshake messages."""


def present(server: ssl.SSLContext, chain: Sequence[bytes]) -> ssl.SSLObject:
    """The server's side of a handshake in which the client has sent these certificates (DER, leaf first; or none).

    The context must ask for a client certificate. Raises ssl.SSLError where it refuses the chain.
    """
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # in 1.3 the Certificate message is encrypted
    client_side = client.wrap_bio(downward, upward)
    server_side = server.wrap_bio(upward, downward, server_side=True)
    with suppress(ssl.SSLWantReadError):
        client_side.do_handshake()
    with suppress(ssl.SSLWantReadError):
        server_side.do_handshake()
    message = _CERTIFICATE + _sized(_sized(b"".join(map(_sized, chain))))
    for start in range(0, len(message), _RECORD):
        piece = message[start : start + _RECORD]
        upward.write(_HANDSHAKE + len(piece).to_bytes(2, "big") + piece)
    with suppress(ssl.SSLWantReadError):
        shake_hands(server_side, _admit)
    return server_side


def _admit(verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
    del verified, sent
    return ""  # the caller judges, as a connection's standing does


def forged_for(authority: x509.Certificate, now: float) -> bytes | None:
    """A client certificate (DER) as this CA would issue one, but for its signature; None for a key of another kind.

    It has the CA's name and key identifier, and is signed by an ephemeral key of the CA's kind.
    """
    signer = _signer(authority.public_key_algorithm_oid)
    if signer is None:
        return None
    pss = authority.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS
    start = datetime.fromtimestamp(now, UTC) - _LIFETIME
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tlsproxy trial")]))
        .issuer_name(authority.subject)
        .public_key(_client_key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + 2 * _LIFETIME)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    with suppress(x509.ExtensionNotFound):
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        named = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
        builder = builder.add_extension(named, critical=False)
    forged = builder.sign(
        signer,
        hashes.SHA256() if isinstance(signer, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) else None,
        rsa_padding=padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH) if pss else None,
    )
    return forged.public_bytes(Encoding.DER)


def refusal_of_authority(server: ssl.SSLContext, authority: x509.Certificate, now: float) -> str:
    """The reason why the context refuses all client certificates of this CA; "" if it is not known to.

    OpenSSL verifies signatures after chain, purpose, key and signature strength and extensions: a forged certificate
    that fails by its signature passed all those. Raises ssl.SSLError if it passed that too.
    """
    forged = forged_for(authority, now)
    if forged is None:
        return ""
    try:
        present(server, [forged])
    except ssl.SSLCertVerificationError as error:
        code = error.verify_code
        return "" if code in _EXPECTED else described(code, error.verify_message)[1]
    raise ssl.SSLError(0, "a forged client certificate was admitted")


@lru_cache(maxsize=1)
def _client_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@lru_cache(maxsize=8)
def _signer(kind: x509.ObjectIdentifier) -> _Signer | None:
    """An ephemeral key; that of RSA takes 50 ms."""
    match kind:
        case PublicKeyAlgorithmOID.EC_PUBLIC_KEY:
            return ec.generate_private_key(ec.SECP256R1())
        case PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5 | PublicKeyAlgorithmOID.RSASSA_PSS:
            return rsa.generate_private_key(65537, 2048)
        case PublicKeyAlgorithmOID.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case PublicKeyAlgorithmOID.ED448:
            return ed448.Ed448PrivateKey.generate()
    return None


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(3, "big") + data
