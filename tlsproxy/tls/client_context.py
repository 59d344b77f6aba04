"""The client's side of TLS: contexts, and the server that is expected at the other end.

A server is verified by the CAs it is given alone, never by the system's roots, and must be the one that is expected:
by the name that is dialled, by its SPIFFE ID, or by its public key. All of it is decided inside the handshake, before
the server gets a byte, or our certificate. Nothing is resumed. A context never changes once it is made: a renewed
certificate or CA makes another one.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tlsproxy.errors import MaterialError
from tlsproxy.tls.context import CIPHERS, OPTIONS, load_pair
from tlsproxy.tls.owncert import PARSE_ERRORS
from tlsproxy.tls.sessions import keep_no_sessions
from tlsproxy.tls.verification import CAN_JUDGE, ChainRefused, Unverified, judge_peers
from tlsproxy.tls.verify_errors import VERIFY_ERRORS

if TYPE_CHECKING:
    from tlsproxy.tls.owncert import OwnCertificate

MinVersion = Literal["1.2", "1.3"]
H2: Final = "h2"
MISMATCHES: Final[Mapping[str, str]] = {
    "spiffe_mismatch": "the server's certificate has another SPIFFE ID than expected, or none",
    "pin_mismatch": "the server's public key is none of spki_sha256",
}
_REFUSED: Final[Mapping[int, tuple[str, str]]] = {
    2: ("unknown_ca", "the issuer of the server's intermediate is not in ca_cert, and was not sent"),
    9: ("not_yet_valid", "the server's certificate, or one above it, is not valid yet; compare the clocks"),
    10: ("expired", "the server's certificate, or one above it, has expired; renew it"),
    18: ("unknown_ca", "the server's certificate is self-signed, and no CA of ca_cert issued it"),
    19: ("unknown_ca", "the root of the server's chain is not in ca_cert"),
    20: ("unknown_ca", "the issuer of the server's certificate is not in ca_cert, or its intermediate was not sent"),
    21: ("unknown_ca", "only the server's own certificate is there, and its issuer is not in ca_cert"),
    26: ("certificate_purpose", "the server's certificate is not for TLS servers (extended key usage serverAuth)"),
    62: ("name_mismatch", "the server's certificate is not for the name that is expected (server_name)"),
    64: ("name_mismatch", "the server's certificate is not for the IP address that is expected (server_name)"),
    66: ("certificate_weak", "the server's key is too short: RSA needs 2048 bits, ECDSA 224"),
    68: ("certificate_weak", "the server's chain has a signature with SHA-1 or MD5; issue it anew with SHA-256"),
}
"""X509_V_ERR_* (openssl/x509_vfy.h) in the words of a client."""
_ALERTS: Final[Mapping[str, tuple[str, str]]] = {
    "CERTIFICATE_REQUIRED": ("certificate_required", "the server wants a client certificate: set cert and key"),
    "UNKNOWN_CA": ("certificate_refused", "the server does not know the CA of our client certificate"),
    "CERTIFICATE_EXPIRED": ("certificate_refused", "the server says that our client certificate has expired"),
    "CERTIFICATE_REVOKED": ("certificate_refused", "the server says that our client certificate was revoked"),
    "BAD_CERTIFICATE": ("certificate_refused", "the server refuses our client certificate, or wants one"),
    "UNSUPPORTED_CERTIFICATE": ("certificate_refused", "the server does not take our kind of client certificate"),
    "CERTIFICATE_UNKNOWN": ("certificate_refused", "the server refuses our client certificate"),
    "HANDSHAKE_FAILURE": ("handshake_failure", "the server and we have nothing in common, or it wants cert and key"),
    "ACCESS_DENIED": ("certificate_refused", "the server knows our client certificate and denies it access"),
    "NO_APPLICATION_PROTOCOL": ("no_application_protocol", "the server does not speak the protocol (ALPN)"),
    "PROTOCOL_VERSION": ("protocol_version", "the server has no TLS version that is allowed here (min_version)"),
    "UNRECOGNIZED_NAME": ("name_mismatch", "the server knows no such name (server_name)"),
}
"""Ends of OpenSSL's names for alerts (RFC 8446 section 6) that a server sends."""
_ERRORS: Final[Mapping[str, tuple[str, str]]] = {
    "WRONG_VERSION_NUMBER": ("not_tls", "the server does not speak TLS there"),
    "HTTP_REQUEST": ("not_tls", "the server does not speak TLS there"),
    "UNSUPPORTED_PROTOCOL": ("protocol_version", "the server has no TLS version that is allowed here (min_version)"),
    "NO_PROTOCOLS_AVAILABLE": ("protocol_version", "the server has no TLS version that is allowed here (min_version)"),
}


class ServerRefused(OSError):
    """A TLS connection that a server was refused for, or that it refused: ``reason`` is a slug, the text says more."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ExpectedServer:
    """The server that must answer. All that is given must hold, and something must be.

    ``name`` is a DNS name or IP address of its certificate, ``spiffe_id`` its only URI, ``pins`` are SHA-256 digests of
    public keys (SubjectPublicKeyInfo), of which its own must be one.
    """

    name: str = ""
    spiffe_id: str = ""
    pins: frozenset[bytes] = frozenset()

    def __post_init__(self) -> None:
        if not (self.name or self.spiffe_id or self.pins):
            raise ValueError("a server of which nothing is expected would be anybody")

    def judge(self, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
        """Refusal of a certificate whose chain and name were verified, of :data:`MISMATCHES`; "" for none."""
        del sent
        if not (self.spiffe_id or self.pins):
            return ""
        leaf = x509.load_der_x509_certificate(verified[0])
        if self.spiffe_id and _uris(leaf) != [self.spiffe_id]:
            return "spiffe_mismatch"
        return "" if not self.pins or spki_sha256(leaf) in self.pins else "pin_mismatch"


@dataclass(frozen=True, slots=True)
class ClientTls:
    """One way to speak TLS with a server.

    ``server_name`` is sent to the server (SNI), and verified as far as ``expected`` has a name. ``alpn`` is offered,
    and h2 must be agreed on. ``anchors`` are the CAs (DER). Equal ones have the same ``trust``: they expect the same
    server, and differ at most in our certificate and in CAs.
    """

    context: ssl.SSLContext = field(repr=False, compare=False)
    server_name: str = field(compare=False)
    expected: ExpectedServer = field(compare=False)
    alpn: str = field(default="", compare=False)
    anchors: frozenset[bytes] = field(default=frozenset(), repr=False, compare=False)
    trust: tuple[object, ...] = field(default=(), repr=False)

    def refusal(self, tls: ssl.SSLObject) -> ServerRefused | None:
        """Refusal of a finished handshake."""
        if not CAN_JUDGE:
            leaf = tls.getpeercert(binary_form=True) or b""
            if reason := self.expected.judge((leaf,), ()):
                return ServerRefused(reason, MISMATCHES[reason])
        if self.alpn == H2 != tls.selected_alpn_protocol():
            return ServerRefused("no_application_protocol", "the server does not speak HTTP/2 there (ALPN h2)")
        return None


def client_tls(  # noqa: PLR0913 - the parts of a client's TLS, by name
    authorities: Sequence[x509.Certificate],
    *,
    server_name: str,
    expected: ExpectedServer,
    certificate: OwnCertificate | None = None,
    key_path: str = "",
    min_version: MinVersion = "1.2",
    alpn: str = "",
    trust: tuple[object, ...] = (),
) -> ClientTls:
    """TLS with a server whose chain ends at one of ``authorities``; ``key_path`` is for errors.

    Raises MaterialError if OpenSSL does not take the material.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    context.options |= OPTIONS
    keep_no_sessions(context)
    context.set_ciphers(CIPHERS)
    context.hostname_checks_common_name = False
    context.check_hostname = bool(expected.name)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    if not authorities:
        raise MaterialError(key_path, "no CA is there to verify the server by")
    anchors = frozenset(each.public_bytes(Encoding.DER) for each in authorities)
    context.load_verify_locations(cadata=b"".join(anchors))
    judge_peers(context)
    if certificate is not None:
        _present(context, certificate, key_path)
    if alpn:
        context.set_alpn_protocols([alpn])
    return ClientTls(context, expected.name or server_name.rstrip("."), expected, alpn, anchors, trust)


def try_certificate(certificate: OwnCertificate, key_path: str) -> None:
    """Check that OpenSSL takes a client certificate. Raises MaterialError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers(CIPHERS)
    _present(context, certificate, key_path)


def _present(context: ssl.SSLContext, certificate: OwnCertificate, key_path: str) -> None:
    chain = b"".join(each.public_bytes(Encoding.PEM) for each in certificate.chain)
    load_pair(context, key_path, chain, certificate.key_pem, certificate.passphrase)


def server_refused(error: ssl.SSLError) -> ServerRefused:
    """The reason of a failed handshake with a server, in the words of a client."""
    if isinstance(error, ChainRefused):
        return ServerRefused(error.refusal, MISMATCHES[error.refusal])
    if isinstance(error, ssl.SSLCertVerificationError):
        code, message = error.verify_code, error.verify_message
        usual = VERIFY_ERRORS.get(code, ("certificate_invalid", ""))[0]
        reason, text = _REFUSED.get(code, (usual, "OpenSSL refuses the server's certificate"))
        if isinstance(error, Unverified) and error.authority:
            text += "; at fault is a CA above it"
        return ServerRefused(reason, f"{text} (OpenSSL error {code}: {message})")
    name = error.reason or ""
    if "ALERT" in name:
        for alert, said in _ALERTS.items():
            if name.endswith(alert):
                return ServerRefused(*said)
        return ServerRefused("server_alert", f"the server ended the handshake: {name.lower()}")
    return ServerRefused(*_ERRORS.get(name, ("tls_error", name.lower() or str(error))))


def spki_sha256(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's public key (SubjectPublicKeyInfo), as RFC 7469 section 2.4 pins one."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize()


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *PARSE_ERRORS):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
