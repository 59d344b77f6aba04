from __future__ import annotations

import gc
import hashlib
import ssl
import time
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from tls_site import CLIENT, OTHER, ROOT, client_context, handshake, site

from tlsproxy.tls import files
from tlsproxy.tls import peer as peer_module
from tlsproxy.tls.peer import peer_of

if TYPE_CHECKING:
    from pathlib import Path

    from tlsproxy.tls.generation import Generation

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PAUSE", 0.0)


@pytest.fixture
def generation(tmp_path: Path) -> Generation:
    return site(tmp_path).build()


def sha256(pem: bytes) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest()


def test_a_peer_has_its_identity_and_its_verified_chain(generation: Generation, tmp_path: Path) -> None:
    middle = ROOT.intermediate("middle")
    issued = middle.issue(common_name="bob", client=True)
    peer = peer_of(handshake(generation.contexts["rest",], client_context(issued, tmp_path))[0])
    assert peer.identity.common_name == "bob"
    assert peer.chain == tuple(map(sha256, (issued.certificate_pem, middle.certificate_pem, ROOT.certificate_pem)))
    middle_serial = x509.load_pem_x509_certificate(middle.certificate_pem).serial_number
    assert [(one.subject, one.sha256) for one in peer.issuers] == [
        ("CN=middle", peer.chain[1]),
        ("CN=test root", peer.chain[2]),
    ]
    assert [(name, serial) for (name, _), serial in peer.serials[:2]] == [
        ("cn=middle", issued.serial),
        ("cn=test root", middle_serial),
    ]


def test_no_certificate_is_no_peer(tmp_path: Path) -> None:
    made = site(tmp_path, service={"verify_https_client_certificate": False})
    assert peer_of(handshake(made.build().contexts["rest",], client_context(None, tmp_path))[0]) is None


def test_what_the_client_sends_beside_its_chain_is_not_in_it(generation: Generation, tmp_path: Path) -> None:
    extra = ROOT.intermediate("unused")
    client = client_context(CLIENT, tmp_path)
    path = tmp_path / "chain.pem"
    path.write_bytes(CLIENT.certificate_pem + extra.certificate_pem + CLIENT.key_pem)
    client.load_cert_chain(path)
    peer = peer_of(handshake(generation.contexts["rest",], client)[0])
    assert sha256(extra.certificate_pem) not in peer.chain


def test_a_session_that_tls_1_2_resumes_has_the_chain_of_its_first_handshake(
    generation: Generation, tmp_path: Path
) -> None:
    client = client_context(CLIENT, tmp_path, TLS12)
    first, caller = handshake(generation.contexts["rest",], client)
    peer = peer_of(first)
    again, _ = handshake(generation.contexts["rest",], client, caller.session)
    assert again.session_reused
    assert peer_of(again) == peer
    assert generation.refusal_of(peer_of(again), time.time()) == ""


def test_a_resumed_session_of_an_unknown_chain_is_trusted_by_no_generation(
    generation: Generation, tmp_path: Path
) -> None:
    client = client_context(CLIENT, tmp_path, TLS12)
    _, caller = handshake(generation.contexts["rest",], client)  # nobody called peer_of
    again, _ = handshake(generation.contexts["rest",], client, caller.session)
    assert again.session_reused
    peer = peer_of(again)
    assert peer.identity.common_name == "alice"
    assert generation.refusal_of(peer, time.time()) == "issuer_not_trusted"


def test_tls_1_3_never_resumes(generation: Generation, tmp_path: Path) -> None:
    client = client_context(CLIENT, tmp_path, TLS13)
    _, caller = handshake(generation.contexts["rest",], client)
    again, _ = handshake(generation.contexts["rest",], client, caller.session)
    assert not again.session_reused


def test_memory_is_bounded_and_ends_with_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "REMEMBERED", 2)
    context = site(tmp_path).build().contexts["rest",]
    for _ in range(3):
        issued = ROOT.issue(common_name="x", client=True)
        peer_of(handshake(context, client_context(issued, tmp_path))[0])
    assert len(peer_module._remembered[context]) == 2
    before = len(peer_module._remembered)
    del context
    gc.collect()
    assert len(peer_module._remembered) < before


def test_a_chain_that_cannot_be_looked_up_in_a_crl_has_no_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "_issued", lambda _: None)
    der = ssl.PEM_cert_to_DER_cert(CLIENT.certificate_pem.decode())
    assert peer_module._peer([der]).identity.defect == "unparsable issuer"


def test_an_issuer_that_cannot_be_read_is_no_anchor() -> None:
    der = ssl.PEM_cert_to_DER_cert(CLIENT.certificate_pem.decode())
    peer = peer_module._peer([der, b"junk"])
    assert (peer.identity.defect, peer.issuers) == ("unparsable issuer", ())


def test_bytes_that_are_no_certificate_have_no_issuer() -> None:
    assert peer_module._issued(b"junk") is None


class Newer:
    """An SSLObject of Python 3.13, where the verified chain is public."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, *chain: bytes) -> None:
        self.chain = [ssl.PEM_cert_to_DER_cert(pem.decode()) for pem in chain]

    def getpeercert(self, *, binary_form: bool) -> bytes:
        assert binary_form
        return self.chain[0]

    def get_verified_chain(self) -> list[bytes]:
        return self.chain


def test_the_public_way_of_newer_pythons_is_used_where_it_exists() -> None:
    peer = peer_of(Newer(CLIENT.certificate_pem, ROOT.certificate_pem))
    assert peer.chain == (sha256(CLIENT.certificate_pem), sha256(ROOT.certificate_pem))


def test_another_chain_of_the_same_leaf_is_not_taken_for_the_first() -> None:
    peer_of(Newer(CLIENT.certificate_pem, ROOT.certificate_pem))
    peer = peer_of(Newer(CLIENT.certificate_pem, OTHER.certificate_pem))
    assert peer.chain[1:] == (sha256(OTHER.certificate_pem),)
    assert [one.subject for one in peer.issuers] == ["CN=other root"]
