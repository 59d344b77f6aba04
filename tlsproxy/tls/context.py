"""Material → a fresh SSLContext, and the proof that it can shake hands before anybody is served with it.

A context is made for one generation and never changed afterwards: `load_cert_chain` with a wrong key breaks a live
context for good. No session can be resumed with it. The system's roots are never loaded.
"""

from __future__ import annotations

import os
import ssl
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tlsproxy.errors import MaterialError
from tlsproxy.tls.sessions import CAN_SWITCH_OFF, keep_no_sessions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tlsproxy.tls.material import Material

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"
"""For TLS 1.2: forward secrecy and AEAD only (RFC 9325 section 4.2), keys of at least 112 bits of security.
TLS 1.3 has nothing else."""
OPTIONS: Final = ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
VERSIONS: Final = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
FLIGHTS: Final = 4
"""How often each side of a handshake may speak; TLS 1.2, the longer one, needs two."""


def build_context(material: Material, *, require_client_certificate: bool, alpn: Sequence[str]) -> ssl.SSLContext:
    """A server context that verifies clients against the material's CAs and CRLs, and nothing else.

    With ``require_client_certificate`` false a certificate is asked for, and verified if one is sent, where there is a
    CA. With it and no CA nobody is let in. Raises MaterialError where OpenSSL does not take the material.
    """
    context = _server_context(material, alpn)
    if not (material.configured or require_client_certificate):
        return context
    try:
        if material.authorities_der:  # else CRLs revoke them all: nobody is verified
            context.load_verify_locations(cadata=material.authorities_der)
        if material.crls_pem:
            with _as_file(material.crls_pem) as path:
                context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise MaterialError(material.cert_path, f"OpenSSL does not take its CAs or CRLs: {_reason(error)}") from None
    # A CA of the file is trusted for what it is, an intermediate too, as in Qdrant (rustls trust anchors). No leaf can
    # become an anchor by this: the file holds CAs only.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    if material.crls_pem:
        # The client's certificate, for the alert's sake. Trust.verdict_of looks at all of the chain, and at all CRLs.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    context.verify_mode = ssl.CERT_REQUIRED if require_client_certificate else ssl.CERT_OPTIONAL
    return context


def self_handshake(material: Material, *, alpn: Sequence[str]) -> None:
    """A real handshake in memory with each TLS version, as a client would do it, of which no session may be kept.

    No client key is at hand, so it runs on a twin of the context that differs only in asking for no certificate. Raises
    MaterialError.
    """
    server = _server_context(material, alpn)
    for version in VERSIONS:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The certificate is compared to the byte below, which no verification could better.
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
        client.minimum_version = client.maximum_version = version
        client.set_alpn_protocols(list(alpn))
        try:
            # OpenSSL forgets the session of a side that goes away without a close_notify: the answerer stays.
            caller, _answerer = _shake_hands(server, client)
        except ssl.SSLError as error:
            raise MaterialError(
                material.cert_path, f"a trial handshake with {version.name} failed: {_reason(error)}"
            ) from None
        if caller.getpeercert(binary_form=True) != material.leaf_der:
            raise MaterialError(material.cert_path, f"a trial handshake with {version.name} showed another certificate")
        if alpn and caller.selected_alpn_protocol() != alpn[0]:
            raise MaterialError(material.cert_path, f"a trial handshake with {version.name} agreed on no protocol")
        # Not by a client that resumes it: each look at `SSLObject.session` costs 5 KB for good (CPython 3.11).
        if server.session_stats()["number"] and CAN_SWITCH_OFF:
            raise MaterialError(material.cert_path, f"a trial handshake with {version.name} left a session behind")


def _server_context(material: Material, alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= OPTIONS
    context.num_tickets = 0  # TLS 1.3 would still send stateful ones
    keep_no_sessions(context)
    context.set_ciphers(CIPHERS)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    passphrase = material.passphrase
    try:
        with _as_file(material.chain_pem) as chain, _as_file(material.key_pem) as key:
            # Without a passphrase OpenSSL would ask for one on the terminal: a callable that gives none prevents it.
            context.load_cert_chain(chain, key, password=lambda: passphrase or b"")
    except (ssl.SSLError, ValueError) as error:
        raise MaterialError(
            material.key_path, f"OpenSSL does not take this key and certificate: {_reason(error)}"
        ) from None
    return context


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """The client's side and the server's, at the end of a handshake."""
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(downward, upward, server_side=False)
    answerer = server.wrap_bio(upward, downward, server_side=True)
    for _ in range(FLIGHTS):
        if _step(caller) & _step(answerer):
            return caller, answerer
    raise ssl.SSLError(0, "the handshake did not end")


def _reason(error: ssl.SSLError | ValueError) -> str:
    """OpenSSL's own word where there is one: an SSLError that Python raises has none."""
    return getattr(error, "reason", None) or str(error)


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path under which OpenSSL, which only reads files, finds these bytes; on Linux in memory alone."""
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
