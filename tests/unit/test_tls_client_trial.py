"""CAs whose clients OpenSSL refuses are found by a trial, for which no key of theirs is needed."""

from __future__ import annotations

import functools
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_site import ROOT, SERVER, SnapshotSite, client_context, handshake, hour
from support.certificates import certified

from tlsproxy.config import ca_checks
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot import generation
from tlsproxy.tls import client_trial
from tlsproxy.tls.peer import Peer, peer_of, tried_peer
from tlsproxy.tls.pki import Authority, Issued

EXPLICIT = """openssl ecparam -name prime256v1 -genkey -noout -param_enc explicit -out key.pem
openssl req -x509 -key key.pem -subj /CN=odd -days 90 -addext basicConstraints=critical,CA:true -out odd.pem"""
PSS = EXPLICIT.replace(
    "openssl ecparam -name prime256v1 -genkey -noout -param_enc explicit",
    "openssl genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048",
)


pytestmark = pytest.mark.usefixtures("hasty")


@functools.cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def authority(key: client_trial._Signer | dsa.DSAPrivateKey, *extensions: x509.ExtensionType) -> bytes:
    """A CA of this key, as PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    start = ROOT._certificate().not_valid_before_utc
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + hour(900))
    for extension in (x509.BasicConstraints(ca=True, path_length=0), *extensions):
        builder = builder.add_extension(extension, critical=True)
    plain = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    made = builder.sign(key, None if plain else hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def by_openssl(directory: Path, commands: str) -> bytes:
    subprocess.run(["sh", "-ec", commands], cwd=directory, check=True, capture_output=True)
    return (directory / "odd.pem").read_bytes()


def warned(made: SnapshotSite, *pems: bytes) -> list[str]:
    """Warnings about CAs beside the usual one."""
    made.write("ca.pem", b"".join([ROOT.certificate_pem, *pems]))
    built = made.build()
    found = [*built.warnings, *built.material.warnings(time.time())]
    return [each.partition("ca.pem: ")[2] for each in found if "ca.pem: " in each]


GOOD: dict[str, Callable[[], bytes]] = {
    "EC": lambda: authority(ec.generate_private_key(ec.SECP521R1())),
    "RSA": lambda: authority(rsa_key()),
    "Ed25519": lambda: authority(ed25519.Ed25519PrivateKey.generate()),
    "Ed448": lambda: authority(ed448.Ed448PrivateKey.generate()),
    "a key identifier": lambda: Authority.create("odd").certificate_pem,
    "clientAuth": lambda: authority(rsa_key(), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])),
}


def test_a_ca_that_vouches_for_clients_passes(made: SnapshotSite) -> None:
    for kind, pem in GOOD.items():
        assert warned(made, pem()) == [], kind


def test_a_key_for_pss_alone_passes(made: SnapshotSite) -> None:
    assert warned(made, by_openssl(made.directory, PSS)) == []


def test_a_ca_that_openssl_refuses_for_a_reason_of_its_own_is_told(made: SnapshotSite) -> None:
    (warning,) = warned(made, by_openssl(made.directory, EXPLICIT))
    assert warning.startswith("every client of CN=odd is refused: an EC key has explicit parameters")
    assert "(OpenSSL error 94: " in warning


def usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, sign, True, False, False)


def test_a_ca_with_a_known_defect_is_told_once(made: SnapshotSite) -> None:
    for pem, says in (
        (authority(rsa_key(), usage(sign=False)), "may not issue certificates: its key usage lacks keyCertSign"),
        (authority(rsa_key(), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])), "may not vouch for clients: "),
        (authority(rsa_key(1024)), "has a key of 1024 bits, which is too short"),
    ):
        (warning,) = warned(made, pem)
        assert warning.startswith(f"CN=odd {says}")
        assert warning.endswith("; its clients are refused")


def test_a_ca_that_is_signed_with_sha1_is_told(made: SnapshotSite) -> None:
    """Its own signature is not verified; those that it makes alike are refused."""
    certificate = x509.load_pem_x509_certificate(authority(rsa_key()))
    der = certificate.public_bytes(serialization.Encoding.DER)
    sha256, sha1 = bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")
    assert der.count(sha256) == 2
    (warning,) = warned(made, ssl.DER_cert_to_PEM_cert(der.replace(sha256, sha1)).encode())
    assert warning == "CN=odd is signed with SHA1; clients whose certificates it signs so are refused; use SHA-256"


def test_a_bundle_of_public_cas_is_told(made: SnapshotSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_checks, "BUNDLE", 3)
    others = [Authority.create(f"CA {number}").certificate_pem for number in range(2)]
    text = "tls.ca_cert: 3 CAs, as in a bundle of public ones: whoever has a certificate of any is let in"
    for count in (1, 2):
        warned(made, *others[:count])
        assert any(text in warning for warning in made.build().warnings) == (count == len(others))


def test_a_context_that_admits_a_forged_client_is_not_published(
    made: SnapshotSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_trial, "_signer", lambda _: ROOT._key())
    with pytest.raises(MaterialError, match="a forged client certificate was admitted"):
        made.build()


def test_trust_that_stays_is_not_tried_again(made: SnapshotSite, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made.build()
    monkeypatch.setattr(generation, "refusal_of_authority", None)
    made.configure(roles={"admin": {"access": "r"}})
    assert made.build(first).unfit == first.unfit


# Chains

STAFF, PARTNER = Authority.create("Staff CA"), Authority.create("Partner CA")
LOWER, FORGED = STAFF.intermediate("Issuing CA"), PARTNER.intermediate("Staff CA")
POOL = (STAFF, certified(STAFF, STAFF), PARTNER, LOWER, certified(LOWER, PARTNER), FORGED)
LEAVES = [one.issue(common_name="a", client=place % 3 != 2, server=place % 3 == 2) for place, one in enumerate(POOL)]


@given(
    st.lists(st.sampled_from(POOL), min_size=1, max_size=3, unique=True),
    st.sampled_from(LEAVES),
    st.lists(st.sampled_from(POOL), max_size=3, unique=True),
)
@settings(max_examples=15, deadline=None)
def test_a_presented_chain_has_the_verdict_of_a_handshake(
    tmp_path_factory: pytest.TempPathFactory, trusted: list[Authority], leaf: Issued, sent: list[Authority]
) -> None:
    directory = tmp_path_factory.getbasetemp()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server = directory / "server-of-trials.pem"
    server.write_bytes(SERVER.chain_pem + SERVER.key_pem)
    context.load_cert_chain(server)
    context.load_verify_locations(cadata="\n".join(one.certificate_pem.decode() for one in trusted))
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = ssl.CERT_REQUIRED
    pems = [leaf.certificate_pem, *(one.certificate_pem for one in sent)]
    issued = replace(leaf, chain_pem=b"".join(pems))
    chain = [ssl.PEM_cert_to_DER_cert(pem.decode()) for pem in pems]
    found = verdict(lambda: tried_peer(client_trial.present(context, chain)))
    assert found == verdict(lambda: peer_of(handshake(context, client_context(issued, directory))[0]))


def verdict(shaken: Callable[[], Peer | None]) -> object:
    """The code of the refusal, or identity and paths of the client."""
    try:
        return shaken()
    except ssl.SSLCertVerificationError as error:
        return error.verify_code
