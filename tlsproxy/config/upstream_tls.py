"""The section `upstream.tls`, and its twin `listeners[].upstream_tls`: TLS with upstreams."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tlsproxy.config.callers import Section


class UpstreamTls(Section):
    """TLS with the upstream. Changed files are reloaded: new connections use them, and no request is lost."""

    ca_cert: Path
    """PEM file: the CAs that verify the server's certificate. The system's roots are never used. Required."""
    server_name: str | None = None
    """Name or IP address that the server's certificate must have, also sent to it (SNI). null: the host that is
    dialled, unless `spiffe_id` or `spki_sha256` says which server it must be."""
    cert: Path | None = None
    """PEM file: our client certificate for the server (mTLS), then its intermediates."""
    key: Path | None = None
    """PEM file: the private key of `cert`."""
    key_passphrase_file: Path | None = None
    """File that holds the passphrase of an encrypted `key`."""
    min_version: Literal["1.2", "1.3"] = "1.2"
    """Lowest TLS version, in quotes."""
    spiffe_id: str | None = None
    """SPIFFE ID that the server's certificate must have as its only URI: `spiffe://example.org/qdrant`."""
    spki_sha256: tuple[str, ...] = ()
    """SHA-256 digests (64 hex digits, or base64) of public keys, of which the server's certificate must have one,
    beside being issued by a CA of `ca_cert`. Put the next key's digest here before the key changes."""
