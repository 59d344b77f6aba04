"""Sections of TLS with upstreams, and with the store of shared limits: the files that they name, and their checks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tlsproxy.config.endpoints import UNIX, check_host
from tlsproxy.config.findings import Finding
from tlsproxy.config.model import Config
from tlsproxy.config.pins import pin_of
from tlsproxy.config.positions import Path as KeyPath
from tlsproxy.config.positions import Tree
from tlsproxy.config.upstream_tls import UpstreamTls

_SPIFFE_ID: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*")
"""The SPIFFE ID standard, section 2."""


def tls_sections(config: Config) -> Iterator[tuple[KeyPath, UpstreamTls]]:
    """The sections of a configuration, with the keys that they stand under."""
    if config.upstream.tls is not None:
        yield ("upstream", "tls"), config.upstream.tls
    for index, listener in enumerate(config.listeners):
        if listener.upstream_tls is not None:
            yield ("listeners", index, "upstream_tls"), listener.upstream_tls
    if config.shared.used and config.shared.tls is not None:
        yield ("shared",), config.shared.tls


def authority_files(config: Config) -> tuple[Path, ...]:
    """Files of CAs that verify servers, each once."""
    return tuple(dict.fromkeys(section.ca_cert for _, section in tls_sections(config)))


def client_pairs(config: Config) -> dict[Path, tuple[Path, ...]]:
    """Files of each client certificate, by that of the certificate: it, its key, and the passphrase's if there is one.

    Two sections that name one certificate name one key (:func:`sections`).
    """
    return {
        section.cert: tuple(path for path in (section.cert, section.key, section.key_passphrase_file) if path)
        for _, section in tls_sections(config)
        if section.cert is not None and section.key is not None
    }


def used(config: Config, _tree: Tree) -> Iterator[Finding]:
    upstream = config.upstream
    given = [url for node in (upstream.nodes or (upstream,)) for url in (node.rest, node.grpc) if url is not None]
    if upstream.tls is not None and not any(url.startswith("https:") for url in given):
        text = "no URL of upstream is https://, so Qdrant would be reached in plaintext: write https:// there"
        yield Finding(("upstream", "tls"), text)


def sections(config: Config, _tree: Tree) -> Iterator[Finding]:
    for index, listener in enumerate(config.listeners):
        if listener.mode == "http" and listener.upstream_tls is not None:
            text = "is for mode: tcp; requests go where `upstream` says, by upstream.tls"
            yield Finding(("listeners", index, "upstream_tls"), text)
        elif listener.upstream_tls is not None and (listener.upstream or "").startswith(UNIX):
            text = "a unix socket is reached in plaintext: leave this out, or write upstream as host:port"
            yield Finding(("listeners", index, "upstream_tls"), text)
    seen: dict[Path, tuple[Path | None, Path | None]] = {}
    for path, section in tls_sections(config):
        yield from section_findings(path, section)
        if section.cert is not None:
            rest = section.key, section.key_passphrase_file
            if seen.setdefault(section.cert, rest) != rest:
                yield Finding((*path, "cert"), "another section names this certificate with another key: name one pair")


def section_findings(path: KeyPath, section: UpstreamTls) -> Iterator[Finding]:
    """Faults of one section in itself."""
    yield from _names(path, section)
    if (section.cert is None) != (section.key is None):
        given, missing = ("cert", "key") if section.key is None else ("key", "cert")
        yield Finding((*path, given), f"{missing} is missing: a client certificate has both")
    if section.key_passphrase_file is not None and section.key is None:
        yield Finding((*path, "key_passphrase_file"), "key is missing: there is nothing to decrypt")


def _names(path: KeyPath, section: UpstreamTls) -> Iterator[Finding]:
    if section.server_name is not None:
        try:
            check_host(section.server_name)
        except ValueError as error:
            yield Finding((*path, "server_name"), str(error))
    if section.spiffe_id is not None and not _SPIFFE_ID.fullmatch(section.spiffe_id):
        yield Finding((*path, "spiffe_id"), "not a SPIFFE ID: spiffe://trust-domain/path is expected")
    for index, pin in enumerate(section.spki_sha256):
        try:
            pin_of(pin)
        except ValueError as error:
            yield Finding((*path, "spki_sha256", index), str(error))
