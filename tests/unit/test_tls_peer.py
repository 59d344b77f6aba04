from __future__ import annotations

import hashlib
import ssl
from typing import TYPE_CHECKING

import pytest
from snapshot_site import CLIENT, OTHER, ROOT, client_context, handshake, site
from support.certificates import certified

from tlsproxy.tls.chains import authority_of, chain_of
from tlsproxy.tls.peer import peer_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tlsproxy.snapshot.generation import Generation
    from tlsproxy.tls.chains import ChainCertificate

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture
def generation(tmp_path: Path) -> Generation:
    return site(tmp_path).build()


def sha256(pem: bytes) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest()


def digests(chain: Iterable[ChainCertificate]) -> list[str]:
    return [one.sha256 for one in chain]


def test_a_peer_has_its_identity_and_its_verified_chain(generation: Generation, tmp_path: Path) -> None:
    middle = ROOT.intermediate("middle")
    issued = middle.issue(common_name="bob", client=True)
    peer = peer_of(handshake(generation.contexts["rest",], client_context(issued, tmp_path))[0])
    assert peer.identity.common_name == "bob"
    chain = [sha256(pem) for pem in (issued.certificate_pem, middle.certificate_pem, ROOT.certificate_pem)]
    assert digests(peer.chain.verified) == chain
    assert [one.anchor.subject for one in peer.chain.issuers] == ["CN=middle", "CN=test root"]
    assert peer.chain.verified[0].serial == issued.serial
    assert peer.chain.sent == peer.chain.issuers[:1]


def test_no_certificate_is_no_peer(tmp_path: Path) -> None:
    made = site(tmp_path, service={"verify_https_client_certificate": False})
    assert peer_of(handshake(made.build().contexts["rest",], client_context(None, tmp_path))[0]) is None


def test_what_the_client_sends_beside_its_chain_is_not_in_it(generation: Generation, tmp_path: Path) -> None:
    """It is kept where it leads on from the path: another CA may be at its end one day."""
    extra, cross = ROOT.intermediate("unused"), certified(ROOT, OTHER)
    client = client_context(CLIENT, tmp_path)
    path = tmp_path / "chain.pem"
    path.write_bytes(CLIENT.certificate_pem + extra.certificate_pem + cross.certificate_pem + CLIENT.key_pem)
    client.load_cert_chain(path)
    peer = peer_of(handshake(generation.contexts["rest",], client)[0])
    assert digests(peer.chain.verified) == [sha256(CLIENT.certificate_pem), sha256(ROOT.certificate_pem)]
    assert digests(peer.chain.sent) == [sha256(cross.certificate_pem)]


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_no_session_is_ever_resumed(generation: Generation, tmp_path: Path, version: ssl.TLSVersion) -> None:
    client = client_context(CLIENT, tmp_path, version)
    _, caller = handshake(generation.contexts["rest",], client)
    again, _ = handshake(generation.contexts["rest",], client, caller.session)
    assert not again.session_reused


def test_a_chain_that_cannot_be_read_is_empty() -> None:
    der = ssl.PEM_cert_to_DER_cert(CLIENT.certificate_pem.decode())
    assert chain_of([der, b"junk"], []).verified == ()
    assert chain_of([b"junk"], []).verified == ()
    assert chain_of([], []).verified == ()


def test_bytes_that_are_no_certificate_are_nobodys_issuer() -> None:
    assert authority_of(b"junk") is None


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

    def get_unverified_chain(self) -> list[bytes]:
        return self.chain[:1]


def test_the_public_way_of_newer_pythons_is_used_where_it_exists() -> None:
    peer = peer_of(Newer(CLIENT.certificate_pem, ROOT.certificate_pem))
    assert digests(peer.chain.verified) == [sha256(CLIENT.certificate_pem), sha256(ROOT.certificate_pem)]
