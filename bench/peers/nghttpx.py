"""nghttpx (nghttp2-proxy) of Debian. It has no access rule by subject."""

from __future__ import annotations

import ssl

from bench.peers.peer import Peer, Place, Program, debian

# Its default has no hybrid group, where OpenSSL, which is the system's as Python's is, has one.
_GROUPS = ["--ecdh-curves=X25519MLKEM768:X25519:P-256"] if ssl.OPENSSL_VERSION_INFO >= (3, 5) else []


def _command(program: Program, place: Place) -> list[str]:
    site = place.site.directory
    return [
        program.path,
        "--conf=/dev/null",
        f"--frontend=127.0.0.1,{place.http}",
        f"--frontend=127.0.0.1,{place.grpc}",
        f"--backend=127.0.0.1,{place.upstream_http}",
        f"--backend=127.0.0.1,{place.upstream_grpc};/qdrant.Points/;proto=h2",
        "--verify-client",
        f"--verify-client-cacert={site}/ca.pem",
        "--tls-min-proto-version=TLSv1.3",
        "--frontend-keep-alive-timeout=3600",
        "--frontend-read-timeout=3600",
        f"--workers={place.workers}",
        *_GROUPS,
        "--no-ocsp",  # nobody else staples, and the script that fetches would be measured with it
        "--log-level=ERROR",
        f"--accesslog-file={place.directory}/access.log",
        f"--errorlog-file={place.directory}/error.log",
        f"--pid-file={place.directory}/nghttpx.pid",
        f"{site}/server.key",
        f"{site}/server.pem",
    ]


PEER = Peer(
    "nghttpx",
    frozenset({"http", "grpc"}),
    debian("nghttpx", "nghttp2-proxy", "--version"),
    _command,
    note="no access rule: nghttpx cannot decide by subject",
)
