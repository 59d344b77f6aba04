"""A TLS server of Python's ssl module, for the client's side of TLS: one thread, one connection after the other."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509

from tlsproxy.tls.owncert import CLIENT, OwnCertificate, load_certificate
from tlsproxy.tls.pki import Authority, Issued

DEADLINE = 10.0


def own(issued: Issued) -> OwnCertificate:
    """A client's certificate, as it is loaded from files."""
    return load_certificate(("client.pem", issued.chain_pem), ("client.key", issued.key_pem), None, CLIENT)


def authority_of(authority: Authority) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.certificate_pem)


def server_context(
    directory: Path, issued: Issued, clients: Authority | None = None, alpn: tuple[str, ...] = ()
) -> ssl.SSLContext:
    """A server's context; ``clients`` is the CA of client certificates, which are required then."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = directory / f"{issued.serial:x}.pem"
    path.write_bytes(issued.chain_pem + issued.key_pem)
    context.load_cert_chain(path)
    if clients is not None:
        context.load_verify_locations(cadata=clients.certificate_pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def echo(sock: ssl.SSLSocket) -> None:
    """Returns what comes until it ends, and ends too."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.unwrap()


@contextmanager
def serving(
    context: ssl.SSLContext | None, serve: Callable[[ssl.SSLSocket], None] = echo
) -> Iterator[tuple[socket.AddressFamily, tuple[str, int]]]:
    """Its address. A failed handshake or connection is followed by the next; without a context each is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(DEADLINE)

        def run() -> None:
            while True:
                try:
                    accepted, _ = listening.accept()
                except OSError:
                    return
                with accepted, suppress(OSError):
                    accepted.settimeout(DEADLINE)
                    if context is not None:
                        with context.wrap_socket(accepted, server_side=True) as sock:
                            serve(sock)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield socket.AF_INET, listening.getsockname()
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE)
