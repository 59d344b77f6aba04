"""Files → material: certificate, key, CAs and CRLs, each checked, and fit to be published together.

All or nothing: the first thing that is wrong raises MaterialError with the file's path and what to do about it, and the
generation in use goes on. Pure but for its arguments: bytes and the time come in, nothing is read here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tlsproxy.authz.anchors import Anchors
from tlsproxy.authz.identity import Anchor, anchor_of
from tlsproxy.errors import MaterialError
from tlsproxy.tls.authorities import anchors_of
from tlsproxy.tls.facts import CertificateFacts, CrlFacts, day, facts_of
from tlsproxy.tls.servercert import as_sent, load_server_certificate, passphrase_of
from tlsproxy.tls.suspicions import suspicions
from tlsproxy.tls.trust import NO_TRUST, CrlPolicy, Trust, load_trust

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tlsproxy.config.model import Config

SOON: Final = 86_400.0
"""Seconds before an expiry from which it is warned of."""


@dataclass(frozen=True, slots=True)
class Material:
    """What serves. The PEM and DER fields are what OpenSSL is given.

    ``anchors`` are the ``authorities`` as identities rest on them, ``configured`` those of the file, revoked ones too.
    """

    leaf: CertificateFacts
    authorities: tuple[CertificateFacts, ...]
    crls: tuple[CrlFacts, ...]
    warnings: tuple[str, ...]
    cert_path: str
    key_path: str
    trust: Trust = field(repr=False)
    leaf_der: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    passphrase: bytes | None = field(repr=False)
    authorities_der: bytes = field(repr=False)
    crls_pem: bytes = field(repr=False)
    anchors: Anchors = field(repr=False, compare=False)
    configured: tuple[Anchor, ...]


def load_material(config: Config, files: Mapping[Path, bytes], *, now: float, previous: Material | None) -> Material:
    """Check everything that ``config.tls`` names, as found in ``files``.

    ``now`` is seconds since the epoch; ``previous`` is what serves at present, so that no CRL goes back in time.
    Raises MaterialError.
    """
    tls = config.tls
    passphrase = None
    if tls.key_passphrase_file is not None:
        passphrase = passphrase_of(str(tls.key_passphrase_file), files[tls.key_passphrase_file])
    server = load_server_certificate(
        (str(tls.cert), files[tls.cert]), (str(tls.key), files[tls.key]), passphrase, now=now
    )
    trust = _trust(config, files, now=now, previous=previous)
    leaf = facts_of(server.chain[0])
    sent = as_sent(server.chain, trust.authorities)
    suspicious = _suspicious(config, sent, previous)
    authorities = tuple(facts_of(certificate) for certificate in trust.authorities)
    crls = trust.facts
    return Material(
        leaf=leaf,
        authorities=authorities,
        crls=crls,
        warnings=(
            *server.warnings,
            *suspicious,
            *trust.warnings(now),
            *_expiries(str(tls.cert), [facts_of(certificate) for certificate in server.chain], now),
            *_expiries(str(tls.ca_cert), [each for each in authorities if each.not_after > now], now),
            *(
                f"the CRL of {crl.issuer} is valid only until {day(crl.next_update)}"
                for crl in crls
                if crl.next_update < now + SOON
            ),
            *_changes(crls, previous),
        ),
        cert_path=str(tls.cert),
        key_path=str(tls.key),
        trust=trust,
        leaf_der=server.chain[0].public_bytes(serialization.Encoding.DER),
        chain_pem=b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in sent),
        key_pem=server.key_pem,
        passphrase=server.passphrase,
        authorities_der=b"".join(each.public_bytes(serialization.Encoding.DER) for each in trust.authorities),
        crls_pem=b"".join(
            x509.load_der_x509_crl(crl.der).public_bytes(serialization.Encoding.PEM) for crl in trust.alerting(now)
        ),
        anchors=anchors_of(tls, trust.authorities),
        configured=tuple(map(anchor_of, trust.configured)),
    )


def _trust(config: Config, files: Mapping[Path, bytes], *, now: float, previous: Material | None) -> Trust:
    tls = config.tls
    if tls.ca_cert is not None:
        return load_trust(
            (str(tls.ca_cert), files[tls.ca_cert]),
            [(str(path), files[path]) for path in tls.crl],
            now=now,
            previous=previous.trust if previous is not None else NO_TRUST,
            policy=CrlPolicy(tls.crl_policy == "require", tls.crl_expired == "deny"),
        )
    if tls.crl:
        raise MaterialError(str(tls.crl[0]), "a CRL without tls.ca_cert revokes nothing; name the CA that signed it")
    if config.service.verify_https_client_certificate:
        raise MaterialError(
            str(tls.cert), "client certificates are required, but tls.ca_cert names no CA to verify them"
        )
    return NO_TRUST


def _expiries(path: str, certificates: list[CertificateFacts], now: float) -> Iterator[str]:
    for facts in certificates:
        if facts.not_after < now + SOON:
            yield f"{path}: {facts.subject or facts.serial} is valid only until {day(facts.not_after)}"


def _suspicious(config: Config, sent: tuple[x509.Certificate, ...], previous: Material | None) -> tuple[str, ...]:
    """Warnings, or the MaterialError that they are under `tls.on_suspicious: refuse`."""
    former = x509.load_pem_x509_certificates(previous.chain_pem) if previous is not None else ()
    path, found = str(config.tls.cert), suspicions(former, sent)
    if found and config.tls.on_suspicious == "refuse":
        raise MaterialError(path, f"{'; '.join(found)} (refused by tls.on_suspicious)")
    return tuple(f"{path}: {one}" for one in found)


def _changes(crls: tuple[CrlFacts, ...], previous: Material | None) -> Iterator[str]:
    """What looks like a step back. It may be meant, so it is said and not refused."""
    if previous is None:
        return
    still = {crl.issuer for crl in crls}
    for issuer in dict.fromkeys(crl.issuer for crl in previous.crls):
        if issuer not in still:
            yield f"there is no CRL of {issuer} any more"
