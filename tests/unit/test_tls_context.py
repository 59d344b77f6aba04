from __future__ import annotations

import dataclasses
import ssl
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from snapshot_site import CLIENT, OTHER, ROOT, SERVER, SnapshotSite, client_context, handshake, hour

from tlsproxy.errors import MaterialError
from tlsproxy.tls import context as context_module
from tlsproxy.tls.context import build_context, self_handshake
from tlsproxy.tls.material import Material
from tlsproxy.tls.peer import client_of
from tlsproxy.tls.pki import Authority
from tlsproxy.tls.verification import ChainRefused

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
ALPN = ("http/1.1",)


def material_of(made: SnapshotSite) -> Material:
    return made.build().material


pytestmark = pytest.mark.usefixtures("hasty")


def server(made: SnapshotSite, *, required: bool = True) -> ssl.SSLContext:
    return build_context(material_of(made), require_client_certificate=required, alpn=ALPN)


def test_the_context_is_as_strict_as_it_is_meant_to_be(made: SnapshotSite) -> None:
    context = server(made)
    assert context.minimum_version is TLS12
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.num_tickets == 0
    for option in (ssl.OP_NO_TICKET, ssl.OP_NO_RENEGOTIATION, ssl.OP_NO_COMPRESSION):
        assert context.options & option
    assert [c["subject"] for c in context.get_ca_certs()] == [((("commonName", "test root"),),)]
    ciphers = context.get_ciphers()
    assert {cipher["aead"] for cipher in ciphers} == {True}
    assert {cipher["kea"] for cipher in ciphers} == {"kx-ecdhe", "kx-any"}


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_client_of_the_ca_is_admitted_and_others_are_not(
    made: SnapshotSite, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    context = server(made)
    answerer, _ = handshake(context, client_context(CLIENT, tmp_path, version))
    assert answerer.getpeercert()["subject"][-1] == (("commonName", "alice"),)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(context, client_context(None, tmp_path, version))
    for stranger in (
        OTHER.issue(common_name="alice", client=True),
        ROOT.issue(common_name="alice", server=True),
        Authority.create("test root").issue(common_name="alice", client=True),
        ROOT.issue(common_name="alice", client=True, not_before=datetime.now(UTC) - hour(3), lifetime=hour(1)),
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(context, client_context(stranger, tmp_path, version))


def test_a_cipher_without_aead_is_refused(made: SnapshotSite, tmp_path: Path) -> None:
    context = server(made)
    old = client_context(CLIENT, tmp_path, TLS12)
    old.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
    with pytest.raises(ssl.SSLError, match="NO_SHARED_CIPHER"):
        handshake(context, old)


def test_an_optional_certificate_is_verified_when_it_is_sent(made: SnapshotSite, tmp_path: Path) -> None:
    context = server(made, required=False)
    answerer, _ = handshake(context, client_context(None, tmp_path))
    assert answerer.getpeercert(binary_form=True) is None
    assert handshake(context, client_context(CLIENT, tmp_path))[0].getpeercert()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, client_context(OTHER.issue(common_name="x", client=True), tmp_path))


def test_without_a_ca_nothing_is_asked_for_and_who_must_have_a_certificate_is_refused(
    made: SnapshotSite, tmp_path: Path
) -> None:
    material = dataclasses.replace(material_of(made), configured=(), authorities_der=b"")
    context = build_context(material, require_client_certificate=False, alpn=ALPN)
    assert context.verify_mode is ssl.CERT_NONE
    assert context.get_ca_certs() == []
    closed = build_context(material, require_client_certificate=True, alpn=ALPN)
    for client in (None, CLIENT):
        with pytest.raises(ssl.SSLError, match=r"PEER_DID_NOT_RETURN_A_CERTIFICATE|CERTIFICATE_VERIFY_FAILED"):
            handshake(closed, client_context(client, tmp_path))


def test_an_intermediate_in_the_ca_file_is_an_anchor_of_its_own(made: SnapshotSite, tmp_path: Path) -> None:
    intermediate = ROOT.intermediate("middle")
    made.write("ca.pem", intermediate.certificate_pem)
    context = server(made)
    assert handshake(context, client_context(intermediate.issue(common_name="a", client=True), tmp_path))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, client_context(CLIENT, tmp_path))


def test_an_encrypted_key_and_a_combined_file_serve(made: SnapshotSite, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key(SERVER.key_pem, None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    made.configure(tls={"key": "server.pem", "key_passphrase_file": "p"})
    made.write("server.pem", encrypted + SERVER.chain_pem)
    made.write("p", b"secret\n")
    assert handshake(server(made), client_context(CLIENT, tmp_path))


def test_alpn_is_agreed_on_where_the_client_speaks_of_it(made: SnapshotSite, tmp_path: Path) -> None:
    client = client_context(CLIENT, tmp_path)
    assert handshake(server(made), client)[0].selected_alpn_protocol() is None
    client.set_alpn_protocols(["h2", "http/1.1"])
    assert handshake(server(made), client)[0].selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_nothing_is_left_on_disk_or_open(
    made: SnapshotSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, elsewhere: bool
) -> None:
    if elsewhere:
        monkeypatch.setattr(context_module.sys, "platform", "darwin")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(context_module.tempfile, "tempdir", str(tmp_path / "tmp"))
    made.configure(tls={"crl": ["a.crl"]})
    made.write("a.crl", ROOT.crl_pem())
    before = len(list(Path("/proc/self/fd").iterdir()))
    context = server(made)
    assert handshake(context, client_context(CLIENT, tmp_path))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_trial_handshake_passes_with_good_material(made: SnapshotSite) -> None:
    self_handshake(material_of(made), alpn=ALPN)
    self_handshake(material_of(made), alpn=())


def test_trial_handshakes_take_no_memory(made: SnapshotSite) -> None:
    """A rotation's is among what stays flat; reading a session for each took 11 KB."""
    material = material_of(made)

    def resident() -> int:
        return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])

    levels = []
    for _ in range(4):
        levels.append(resident())
        for _ in range(20):
            self_handshake(material, alpn=ALPN)
    # Python takes memory by the MiB, so once, now or then.
    assert min(after - before for before, after in pairwise(levels)) < 128


def test_a_trial_handshake_finds_what_checks_could_not(made: SnapshotSite, monkeypatch: pytest.MonkeyPatch) -> None:
    material = material_of(made)
    with pytest.raises(MaterialError, match="showed another certificate"):
        self_handshake(dataclasses.replace(material, leaf_der=b"x"), alpn=ALPN)
    mismatched = dataclasses.replace(material.server, key_pem=CLIENT.key_pem)
    with pytest.raises(MaterialError, match="OpenSSL does not take this key and certificate: KEY_VALUES_MISMATCH"):
        self_handshake(dataclasses.replace(material, server=mismatched), alpn=ALPN)
    monkeypatch.setattr(context_module, "CIPHERS", "ECDHE-RSA-AES128-GCM-SHA256")
    with pytest.raises(MaterialError, match="trial handshake with TLSv1_2 failed: NO_SHARED_CIPHER"):
        self_handshake(material, alpn=ALPN)
    monkeypatch.setattr(context_module, "CIPHERS", "ECDHE+AESGCM")
    with monkeypatch.context() as patched:
        patched.setattr(context_module, "keep_no_sessions", lambda _: None)
        with pytest.raises(MaterialError, match="trial handshake with TLSv1_2 left a session behind"):
            self_handshake(material, alpn=ALPN)
    monkeypatch.setattr(context_module, "FLIGHTS", 1)
    with pytest.raises(MaterialError, match=r"failed: .*the handshake did not end"):
        self_handshake(material, alpn=ALPN)


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_no_ticket_is_ever_sent_and_a_session_of_an_older_generation_proves_nothing(
    made: SnapshotSite, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """T5: the client is revoked, or its CA removed; what it kept of an older handshake must not help it."""
    old = server(made)
    client = client_context(CLIENT, tmp_path, version)
    _, caller = handshake(old, client)
    session = caller.session
    assert session is None or not session.has_ticket
    made.configure(tls={"crl": ["a.crl"]})
    made.write("a.crl", ROOT.crl_pem([CLIENT.serial]))
    trust = material_of(made).trust

    def judge(verified: tuple[bytes, ...], presented: tuple[bytes, ...]) -> str:
        return trust.verdict_of(client_of(verified, presented).chain, time.time()).refusal

    with pytest.raises(ChainRefused, match="revoked"):
        handshake(server(made), client, session, judge)
    made.configure()
    made.write("ca.pem", OTHER.certificate_pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server(made), client, session)
    made.write("ca.pem", ROOT.certificate_pem)
    answerer, _ = handshake(server(made), client, session)
    assert not answerer.session_reused


def sent(context: ssl.SSLContext, directory: Path) -> list[bytes]:
    """The certificates that a client is shown."""
    _, caller = handshake(context, client_context(CLIENT, directory))
    return [each.public_bytes(2) for each in caller._sslobj.get_unverified_chain()]  # type: ignore[attr-defined]


def test_the_chain_is_the_one_that_openssl_would_search_for_in_each_handshake(
    made: SnapshotSite, tmp_path: Path
) -> None:
    """A certificate that comes alone is followed by its issuer, where the CAs know it."""
    material = material_of(made)
    assert material.chain_pem.count(b"BEGIN") == 2
    alone = dataclasses.replace(material, chain_pem=SERVER.chain_pem)
    shown = sent(build_context(material, require_client_certificate=True, alpn=ALPN), tmp_path)
    assert shown == sent(build_context(alone, require_client_certificate=True, alpn=ALPN), tmp_path)
    assert len(shown) == 2


def test_a_chain_of_a_foreign_issuer_is_sent_as_it_is(made: SnapshotSite, tmp_path: Path) -> None:
    made.write("ca.pem", OTHER.certificate_pem + Authority.create("test root").certificate_pem)
    assert material_of(made).chain_pem.count(b"BEGIN") == 1
    intermediate = ROOT.intermediate("middle")
    made.write("ca.pem", ROOT.certificate_pem)
    made.serve(intermediate.issue(dns=["localhost"], server=True))
    assert len(sent(server(made), tmp_path)) == material_of(made).chain_pem.count(b"BEGIN") == 2
