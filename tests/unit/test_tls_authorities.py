"""The anchor that is found for a chain is where OpenSSL's verification ended, whatever is trusted and sent."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshot_site import client_context, handshake, site
from support.certificates import certified

from tlsproxy.authz.identity import anchor_of
from tlsproxy.config.callers import CaConstraint
from tlsproxy.config.model import Tls
from tlsproxy.snapshot.generation import Generation
from tlsproxy.tls.authorities import anchors_of
from tlsproxy.tls.context import build_context
from tlsproxy.tls.peer import peer_of
from tlsproxy.tls.pki import Authority, Issued

STAFF, PARTNER = Authority.create("Staff CA"), Authority.create("Partner CA")
LOWER, FORGED = STAFF.intermediate("Issuing CA"), PARTNER.intermediate("Staff CA")
LOWEST = LOWER.intermediate("Lowest CA")
CROSSED, RENEWED = certified(LOWER, PARTNER), certified(STAFF, STAFF)
POOL = (STAFF, RENEWED, PARTNER, LOWER, CROSSED, LOWEST, FORGED, FORGED.intermediate("Issuing CA"))
LEAVES = [one.issue(common_name="a", client=True) for one in (STAFF, PARTNER, LOWER, LOWEST, FORGED, POOL[-1])]


def certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    return site(tmp_path_factory.mktemp("site")).build()


@given(
    st.lists(st.sampled_from(POOL), min_size=1, max_size=4, unique=True),
    st.sampled_from(LEAVES),
    st.lists(st.sampled_from(POOL), max_size=4, unique=True),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_anchor_is_openssls(
    generation: Generation, tmp_path: Path, trusted: list[Authority], leaf: Issued, sent: list[Authority]
) -> None:
    authorities = [certificate(one.certificate_pem) for one in trusted]
    issued = replace(leaf, chain_pem=b"".join([leaf.certificate_pem, *(one.certificate_pem for one in sent)]))
    der = b"".join(ssl.PEM_cert_to_DER_cert(one.certificate_pem.decode()) for one in trusted)
    material = replace(generation.material, authorities_der=der)
    context = build_context(material, require_client_certificate=True, alpn=())
    try:
        answerer, _ = handshake(context, client_context(issued, tmp_path))
    except ssl.SSLError:
        return  # it may be stricter: of two CAs of one name it tries one
    peer = peer_of(answerer)
    assert peer is not None
    issuers = [one.anchor for one in peer.chain.issuers]
    identity = anchors_of(Tls(cert="c", key="k"), authorities).identified(peer.identity, issuers)
    assert identity.ca_sha256 == peer.chain.verified[-1].sha256


def test_a_constraint_is_read_as_it_is_written() -> None:
    """Digests with colons, trust domains as SPIFFE IDs, suffixes with a dot in front."""
    partner = certificate(PARTNER.certificate_pem)
    digest = ":".join(f"{byte:02X}" for byte in partner.fingerprint(hashes.SHA256()))
    constraint = CaConstraint(ca_sha256=digest, trust_domain="spiffe://partner.example", dns=(".Partner.example",))
    anchors = anchors_of(Tls(cert="c", key="k", ca_constraints=(constraint,)), [partner])
    (confinement,) = anchors.confinements(anchor_of(partner))
    assert str(confinement) == "spiffe://partner.example, *.partner.example"
