"""TLS material of a generation: server certificate, key and trust, in the forms that OpenSSL takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tlsproxy.authz.identity import Anchor, anchor_of
from tlsproxy.authz.trust_anchors import Anchors
from tlsproxy.text import utc_time
from tlsproxy.tls.authorities import anchors_of
from tlsproxy.tls.certinfo import CertificateFacts, CrlFacts, facts_of
from tlsproxy.tls.chain_checks import gaps, needless_last
from tlsproxy.tls.owncert import OwnCertificate, as_sent
from tlsproxy.tls.trust import CrlPolicy, Trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tlsproxy.config.model import Tls


@dataclass(frozen=True, slots=True)
class Material:
    """``sent`` is the chain that clients are sent. The PEM and DER fields are for OpenSSL.

    ``gaps`` are warnings on intermediates that it lacks; ``needless`` is its last certificate, if no client needs that.
    ``anchors`` are the trust anchors of ``authorities``; ``configured`` has those of revoked CAs too.
    """

    leaf: CertificateFacts
    authorities: tuple[CertificateFacts, ...]
    crls: tuple[CrlFacts, ...]
    server: OwnCertificate
    cert_path: str
    key_path: str
    trust: Trust = field(repr=False)
    sent: tuple[x509.Certificate, ...] = field(repr=False)
    leaf_der: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    authorities_der: bytes = field(repr=False)
    anchors: Anchors = field(repr=False, compare=False)
    configured: tuple[Anchor, ...]
    gaps: tuple[str, ...]
    needless: CertificateFacts | None

    @property
    def key_pem(self) -> bytes:
        return self.server.key_pem

    @property
    def passphrase(self) -> bytes | None:
        return self.server.passphrase

    def same_tls(self, other: Material) -> bool:
        """Whether both make the same SSLContext."""
        names = ("chain_pem", "key_pem", "passphrase", "authorities_der")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def warnings(self, now: float) -> Iterator[str]:
        """Warnings at ``now`` (seconds since the epoch); :mod:`tlsproxy.snapshot.lifetimes` has those on expiry."""
        yield from self.server.warnings
        yield from self.trust.warnings(now)
        yield from self.gaps
        if self.needless is not None and self.needless.not_after <= now:
            ended = f"{self.needless.subject} expired at {utc_time(self.needless.not_after)}"
            yield f"{self.cert_path}: {ended}, and ends the chain needlessly: remove it, since old clients refuse it"
        for facts in map(facts_of, self.server.chain):
            if facts.not_before > now:
                name = facts.subject or facts.serial
                yield f"{self.cert_path}: {name} is not valid before {utc_time(facts.not_before)}: check the clock"


def crl_policy(tls: Tls) -> CrlPolicy:
    return CrlPolicy(tls.crl_policy == "require", tls.crl_expired == "deny")


def material_of(tls: Tls, server: OwnCertificate, trust: Trust) -> Material:
    sent = as_sent(server.chain, trust.authorities)
    last = needless_last(server.chain, trust.configured)
    return Material(
        leaf=facts_of(server.chain[0]),
        authorities=tuple(facts_of(certificate) for certificate in trust.authorities),
        crls=trust.facts,
        server=server,
        cert_path=str(tls.cert),
        key_path=str(tls.key),
        trust=trust,
        sent=sent,
        leaf_der=server.chain[0].public_bytes(serialization.Encoding.DER),
        chain_pem=b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in sent),
        authorities_der=b"".join(each.public_bytes(serialization.Encoding.DER) for each in trust.authorities),
        anchors=anchors_of(tls, trust.authorities),
        configured=tuple(map(anchor_of, trust.configured)),
        gaps=tuple(gaps(str(tls.cert), sent, trust.configured)),
        needless=None if last is None else facts_of(last),
    )
