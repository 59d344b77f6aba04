"""The listener's verdict on a client without a connection: a generation of the configuration, and a trial with it."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from tlsproxy.config.listeners import listening, titles
from tlsproxy.config.model import Config, HttpProtocol
from tlsproxy.config.tokens import KeySource, key_sources
from tlsproxy.config.upstream_tls_checks import client_pairs
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.core.authorization import Standing
from tlsproxy.proxy.transport.tls import handshake_failure
from tlsproxy.snapshot.files import Inputs, read_inputs
from tlsproxy.snapshot.generation import Generation, propose
from tlsproxy.snapshot.jwks import fetched_from
from tlsproxy.snapshot.lock_file import first_locks
from tlsproxy.snapshot.startup import prevents_start
from tlsproxy.snapshot.states import InputKind
from tlsproxy.snapshot.validation import InputReading
from tlsproxy.tls.client_trial import present
from tlsproxy.tls.peer import tried_peer
from tlsproxy.tls.pki import Authority
from tlsproxy.tls.trust import REFUSALS

_TRUST: Final[tuple[InputKind, ...]] = ("configuration", "authorities", "crl", "server_authorities")
_KEYS: Final[tuple[InputKind, ...]] = ("secret", "public_keys")
_PASSPHRASE: Final = b"-"


class NoConnection(TlsproxyError):
    """A client that the listener turns away. ``reason`` is the audit log's."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"{text} ({reason})")
        self.reason = reason


def inspected_generation(config_path: Path, *, with_keys: bool, fetch: bool = False) -> Generation:
    """The generation that `run` would start with, but for certificates of its own and unresolved names.

    So private keys need not be readable by who asks. Without ``with_keys`` those of clients need not either.
    Key sets by URL are empty, unless they are to be fetched. Raises TlsproxyError.
    """
    inputs = read_inputs(config_path, os.environ)
    config = inputs.loaded.config
    documents, locks = _documents(key_sources(config), fetch=fetch) if with_keys else {}, first_locks(config_path)
    reading = InputReading(config_path, os.environ, _with_own_certificate(inputs, config), {}, documents, locks=locks)
    proposal = propose(reading, None, time.time())
    kinds = (*_TRUST, *_KEYS) if with_keys else _TRUST
    faults = [fault for subject, fault in proposal.faults.items() if subject.kind in kinds]
    if proposal.generation is None or any(
        prevents_start(subject, fault) for subject, fault in proposal.faults.items() if fault in faults
    ):
        raise TlsproxyError("\n".join(fault.text for fault in faults))
    return proposal.generation


def _documents(sources: Iterable[KeySource], *, fetch: bool) -> dict[KeySource, bytes]:
    """Key sets that can be fetched, with a warning on each of the others."""
    found = {}
    fetched = asyncio.run(fetched_from(sources)) if fetch else dict.fromkeys(sources)
    for source, outcome in fetched.items():
        error = f"{source.shown} is not fetched without --fetch" if outcome is None else outcome.error
        if outcome is not None and outcome.document is not None:
            found[source] = outcome.document
        else:
            error += ": none of its tokens is accepted"
        if error:
            click.echo(f"warning: {error}", err=True)
    return found


def _with_own_certificate(inputs: Inputs, config: Config) -> Inputs:
    issued = Authority.create().issue(common_name="explain", server=True)
    pair = issued.certificate_pem + issued.key_pem
    own = {config.tls.cert: pair, config.tls.key: pair}
    if config.tls.key_passphrase_file is not None:
        own[config.tls.key_passphrase_file] = _PASSPHRASE
    client = Authority.create().issue(common_name="explain", client=True)
    for paths in client_pairs(config).values():
        contents = (client.certificate_pem, client.certificate_pem + client.key_pem, _PASSPHRASE)
        own |= dict(zip(paths, contents, strict=False))
    failures = {path: failure for path, failure in inputs.failures.items() if path not in own}
    return replace(inputs, files={**inputs.files, **own}, failures=failures)


def served(generation: Generation) -> HttpProtocol:
    """A protocol that is served: REST, if it is."""
    return "rest" if any("rest" in each.protocols for each in listening(generation.config)) else "grpc"


def connected(generation: Generation, protocol: HttpProtocol, chain: Sequence[bytes], now: float) -> Standing:
    """The standing of a client that sends these certificates (DER, leaf first; or none) on a new connection.

    Raises NoConnection.
    """
    where = next((each for each in listening(generation.config) if protocol in each.protocols), None)
    if where is None:
        raise NoConnection(f"nothing listens for {titles((protocol,))}", "no_listener")
    context, peer = generation.contexts[where.protocols], None
    if context.verify_mode is not ssl.CERT_NONE:
        try:
            peer = tried_peer(present(context, chain))
        except ssl.SSLError as error:
            reason, text = handshake_failure(error)
            if not chain:
                text = "a client certificate is required"
            elif reason == "unknown_ca":
                text += _namesakes(generation, x509.load_der_x509_certificate(chain[-1]))
            raise NoConnection(text, reason) from None
    standing = Standing(generation, peer, now)
    if standing.refusal is not None:
        reason = standing.refusal.reason
        raise NoConnection(REFUSALS.get(reason, standing.refusal.text), reason)
    return standing


def _namesakes(generation: Generation, last: x509.Certificate) -> str:
    """A hint where the issuer of a chain's last certificate is trusted by name, with another key: a CA made anew."""
    named = [each for each in generation.material.trust.authorities if each.subject == last.issuer]
    if not named or any(_may_have_issued(each, last) for each in named):
        return ""
    return "; the CA of this name in tls.ca_cert has another key"


def _may_have_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError):  # ValueError: the keys are of different types
        return False
    except (TypeError, UnsupportedAlgorithm):  # nothing is known then
        return True
    return True
