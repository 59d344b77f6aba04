"""SSLContext of a generation, and a trial handshake with it.

A context is never changed once it serves: `load_cert_chain` with a wrong key breaks a live context for good. It resumes
no sessions, and never loads the system's roots.
"""

from __future__ import annotations

import os
import ssl
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import serialization

from tlsproxy.errors import MaterialError
from tlsproxy.tls.sessions import CAN_SWITCH_OFF, keep_no_sessions
from tlsproxy.tls.verification import judge_peers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tlsproxy.tls.material import Material

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"
"""For TLS 1.2: forward secrecy and AEAD only (RFC 9325 section 4.2), keys of at least 112 bits of security.
TLS 1.3 has nothing else."""
OPTIONS: Final = ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
VERSIONS: Final = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
_NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME (openssl/x509_vfy.h)."""
FLIGHTS: Final = 4
"""Most flights of each side of a trial handshake; TLS 1.2, the longer one, needs two."""


def build_context(material: Material, *, require_client_certificate: bool, alpn: Sequence[str]) -> ssl.SSLContext:
    """A server context that verifies clients by the material's CAs alone.

    Without ``require_client_certificate`` a certificate is requested if there is a CA, and verified if one is sent.
    With it, and without a CA, every client is refused. Raises MaterialError if OpenSSL does not accept the material.
    """
    context = server_context(material, alpn)
    if not (material.configured or require_client_certificate):
        return context
    try:
        if material.authorities_der:  # else CRLs revoke all of them, and no client is verified
            context.load_verify_locations(cadata=material.authorities_der)
    except ssl.SSLError as error:
        raise MaterialError(material.cert_path, f"OpenSSL does not take its CAs: {_reason(error)}") from None
    # An intermediate in the CA file is a trust anchor too, as in Qdrant (rustls). The file holds CAs only, so no leaf
    # becomes one.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    judge_peers(context)  # OpenSSL gets no CRLs: Trust.verdict_of checks the whole chain by all of them
    context.verify_mode = ssl.CERT_REQUIRED if require_client_certificate else ssl.CERT_OPTIONAL
    return context


def self_handshake(material: Material, *, alpn: Sequence[str]) -> None:
    """A trial handshake in memory with each TLS version; no session may be left behind.

    There is no client key for it, so it uses a twin of the context that requests no certificate. Raises MaterialError.
    """
    server = server_context(material, alpn)
    for version in VERSIONS:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Instead of a verification, the certificate is compared byte by byte below.
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
        client.minimum_version = client.maximum_version = version
        client.set_alpn_protocols(list(alpn))
        try:
            # OpenSSL drops the session of a side that is freed without close_notify, so the server's side stays.
            client_side, _server_side = _shake_hands(server, client)
        except ssl.SSLError as error:
            raise MaterialError(
                material.cert_path, f"a trial handshake with {version.name} failed: {_reason(error)}"
            ) from None
        if client_side.getpeercert(binary_form=True) != material.leaf_der:
            raise MaterialError(material.cert_path, f"a trial handshake with {version.name} showed another certificate")
        if alpn and client_side.selected_alpn_protocol() != alpn[0]:
            raise MaterialError(material.cert_path, f"a trial handshake with {version.name} agreed on no protocol")
        # Not tried by resuming: each access to `SSLObject.session` leaks 5 KB (CPython 3.11).
        if server.session_stats()["number"] and CAN_SWITCH_OFF:
            raise MaterialError(material.cert_path, f"a trial handshake with {version.name} left a session behind")


def refusal_by_clients(material: Material) -> str:
    """OpenSSL's words for a chain as sent that no client verifies, whatever root it knows; "" for a good one.

    A client that trusts the last certificate is the most lenient one: it misses path lengths, name constraints, usages
    and critical extensions of no certificate that is sent. Dates and the host's name are not checked.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    client.load_verify_locations(cadata=material.sent[-1].public_bytes(serialization.Encoding.DER))
    try:
        _shake_hands(server_context(material, ()), client)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    return ""


def server_context(material: Material, alpn: Sequence[str]) -> ssl.SSLContext:
    """A context that asks for no client certificate. Raises MaterialError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= OPTIONS
    context.num_tickets = 0  # else TLS 1.3 sends stateful ones
    keep_no_sessions(context)
    context.set_ciphers(CIPHERS)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    load_pair(context, material.key_path, material.chain_pem, material.key_pem, material.passphrase)
    return context


def load_pair(context: ssl.SSLContext, key_path: str, chain_pem: bytes, key_pem: bytes, secret: bytes | None) -> None:
    """Give a new context its certificate and key; ``secret`` is the key's passphrase. Raises MaterialError."""
    try:
        with _as_file(chain_pem) as chain, _as_file(key_pem) as key:
            # Without a passphrase OpenSSL would ask on the terminal: a callable prevents that.
            context.load_cert_chain(chain, key, password=lambda: secret or b"")
    except (ssl.SSLError, ValueError) as error:
        raise MaterialError(key_path, f"OpenSSL does not take this key and certificate: {_reason(error)}") from None


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both sides after a handshake: the client's, then the server's."""
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(downward, upward, server_side=False)
    server_side_object = server.wrap_bio(upward, downward, server_side=True)
    for _ in range(FLIGHTS):
        if _step(client_side) & _step(server_side_object):
            return client_side, server_side_object
    raise ssl.SSLError(0, "the handshake did not end")


def _reason(error: ssl.SSLError | ValueError) -> str:
    """OpenSSL's reason; the text for an error of Python's own, which has none."""
    return getattr(error, "reason", None) or str(error)


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path to these bytes, since OpenSSL's functions take files only; on Linux in memory."""
    if sys.platform == "linux" and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("tlsproxy", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="tlsproxy-") as directory:  # its mode is 0700
        path = Path(directory, "pem")
        path.write_bytes(data)
        yield str(path)
