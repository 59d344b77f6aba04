from __future__ import annotations

import subprocess
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID
from snapshot_site import CLIENT, OTHER, ROOT, SERVER, SnapshotSite, hour

from tlsproxy.errors import MaterialError
from tlsproxy.tls.material import Material
from tlsproxy.tls.owncert import CLIENT as AS_CLIENT
from tlsproxy.tls.owncert import load_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = time.time()
PEM = serialization.Encoding.PEM


pytestmark = pytest.mark.usefixtures("hasty")


def load(made: SnapshotSite, *, now: float | None = None) -> Material:
    return made.build(now=now).material


def warnings(made: SnapshotSite, *, now: float | None = None) -> list[str]:
    moment = time.time() if now is None else now
    return list(load(made, now=moment).warnings(moment))


def reason(made: SnapshotSite, **more: Any) -> str:
    with pytest.raises(MaterialError) as error:
        load(made, **more)
    assert "PRIVATE" not in str(error.value)
    return str(error.value)


def self_signed(key: Any, *extensions: x509.ExtensionType, **fields: Any) -> bytes:
    """A server certificate of its own, for what an authority would not sign."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    start = datetime.now(UTC) - timedelta(minutes=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + hour(100))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    return builder.sign(key, fields.get("algorithm", algorithm)).public_bytes(PEM)


def pem_of(key: Any, encryption: serialization.KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption or serialization.NoEncryption())


def serve(made: SnapshotSite, key: Any, *extensions: x509.ExtensionType, **fields: Any) -> None:
    made.write("server.pem", self_signed(key, *extensions, **fields))
    made.write("server.key", pem_of(key))


def test_good_material_says_what_it_is_and_no_secret(made: SnapshotSite) -> None:
    material = load(made)
    leaf = x509.load_pem_x509_certificate(SERVER.certificate_pem)
    assert material.leaf.serial == f"{SERVER.serial:x}"
    assert material.leaf.sha256 == leaf.fingerprint(hashes.SHA256()).hex()
    assert material.leaf.dns_names == ("localhost",)
    assert material.leaf.ips == ("127.0.0.1",)
    assert material.leaf.not_after == leaf.not_valid_after_utc.timestamp()
    assert [ca.subject for ca in material.authorities] == ["CN=test root"]
    assert warnings(made) == []
    assert "PRIVATE" not in repr(material)
    assert "BEGIN" not in repr(material)


def test_a_key_of_another_certificate_is_refused(made: SnapshotSite) -> None:
    made.write("server.key", CLIENT.key_pem)
    assert "server.key: does not belong to" in reason(made)


def test_one_file_may_hold_key_and_chain_in_any_order(made: SnapshotSite) -> None:
    for combined in (SERVER.key_pem + SERVER.chain_pem, SERVER.chain_pem + SERVER.key_pem):
        made.configure(tls={"key": "server.pem"})
        made.write("server.pem", combined)
        assert load(made).leaf.serial == f"{SERVER.serial:x}"


def test_a_key_in_the_certificate_file_that_is_not_used_is_warned_of(made: SnapshotSite) -> None:
    made.write("server.pem", SERVER.chain_pem + SERVER.key_pem)
    assert "is not used" in warnings(made)[0]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("server.pem", b"", "server.pem: is empty"),
        ("server.key", b"", "server.key: is empty"),
        ("server.pem", SERVER.key_pem, "holds no certificate"),
        ("server.key", SERVER.certificate_pem, "holds 0 private keys"),
        ("server.key", SERVER.key_pem + CLIENT.key_pem, "holds 2 private keys"),
        ("server.pem", SERVER.chain_pem[:-40], "cut off"),
        ("server.pem", SERVER.chain_pem.replace(b"MII", b"MIJ", 1), "cannot be parsed"),
        ("server.key", SERVER.key_pem.replace(b"MIG", b"MIH", 1), "cannot be read"),
        ("server.pem", SERVER.chain_pem + ROOT.crl_pem(), "'X509 CRL' block"),
        ("server.pem", SERVER.chain_pem + OTHER.certificate_pem, "CN=other root did not issue"),
        ("server.pem", SERVER.chain_pem * 2, "is not a CA"),
        ("server.pem", ROOT.certificate_pem + SERVER.chain_pem, "CN=test root is a CA"),
        ("server.pem", CLIENT.chain_pem, "lacks serverAuth"),
    ],
)
def test_what_is_not_a_chain_with_its_key_is_refused(made: SnapshotSite, name: str, data: bytes, expected: str) -> None:
    made.write(name, data)
    assert expected in reason(made)


def test_a_chain_goes_from_leaf_to_root(made: SnapshotSite) -> None:
    bottom = ROOT.intermediate("middle").intermediate("bottom")
    issued = bottom.issue(dns=["localhost"], server=True)
    made.serve(issued)
    assert load(made).chain_pem == issued.chain_pem
    made.write("server.pem", issued.chain_pem + ROOT.certificate_pem)
    assert load(made).chain_pem.endswith(ROOT.certificate_pem)
    parts = [issued.certificate_pem, *_split(bottom.intermediates_pem)]
    made.write("server.pem", parts[0] + parts[2] + parts[1])
    assert "order the file from leaf to root" in reason(made)


def _split(pem: bytes) -> list[bytes]:
    return [part + b"-----END CERTIFICATE-----\n" for part in pem.split(b"-----END CERTIFICATE-----\n") if part]


def test_a_wrong_signature_under_the_right_name_is_refused(made: SnapshotSite) -> None:
    impostor = type(ROOT).create("test root")
    issued = ROOT.issue(dns=["localhost"], server=True)
    made.serve(issued)
    made.write("server.pem", issued.certificate_pem + impostor.certificate_pem)
    assert "did not issue" in reason(made)


def test_dates_allow_five_minutes_of_skew_at_the_start_and_no_expiry(made: SnapshotSite) -> None:
    first = made.build()
    start = datetime.now(UTC) + timedelta(minutes=10)
    made.serve(ROOT.issue(dns=["localhost"], server=True, not_before=start))
    ahead = start.timestamp()
    assert "is not valid before" in reason(made, now=ahead - 400)
    facts = load(made, now=ahead - 200).leaf
    assert f"server.pem: {facts.serial} is not valid before" in warnings(made, now=ahead - 200)[0]
    proposal = made.propose(first, now=ahead - 200)
    assert proposal.generation is first
    assert [fault.moment for fault in proposal.faults.values()] == [facts.not_before]
    assert "expired at" in reason(made, now=facts.not_after)


def test_an_expired_intermediate_is_refused(made: SnapshotSite) -> None:
    intermediate = type(ROOT).create("short", lifetime=hour(1)).intermediate("expiring")
    made.serve(intermediate.issue(dns=["localhost"], server=True, lifetime=hour(5)))
    assert "CN=expiring expired" in reason(made, now=NOW + 2 * 3600)


@pytest.mark.parametrize(
    "generate",
    [
        ed25519.Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["ed25519", "p384", "rsa2048"],
)
def test_strong_keys_are_taken(made: SnapshotSite, generate: Callable[[], Any]) -> None:
    serve(made, generate())
    assert "names no host" in warnings(made)[0]


@pytest.mark.parametrize(
    ("generate", "expected"),
    [
        (lambda: rsa.generate_private_key(65537, 1024), "1024 bits is too short"),  # noqa: S505 - what must be refused
        (lambda: ec.generate_private_key(ec.SECP256K1()), "secp256k1 is not used in TLS"),
        (ed448.Ed448PrivateKey.generate, "neither RSA nor ECDSA"),
        (lambda: dsa.generate_private_key(1024), "neither RSA nor ECDSA"),  # noqa: S505 - of any size
    ],
    ids=["rsa1024", "secp256k1", "ed448", "dsa"],
)
def test_weak_and_odd_keys_are_refused(made: SnapshotSite, generate: Callable[[], Any], expected: str) -> None:
    serve(made, generate())
    assert expected in reason(made)


def test_a_leaf_that_may_not_sign_is_refused(made: SnapshotSite) -> None:
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=True, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    serve(made, ec.generate_private_key(ec.SECP256R1()), usage)
    assert "lacks digitalSignature" in reason(made)


def test_a_sha1_signature_is_refused(made: SnapshotSite, tmp_path: Path) -> None:
    key, config = tmp_path / "k", tmp_path / "odd.pem"
    request = ["openssl", "req", "-x509", "-sha1", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", "3"]
    no_ca = ["-addext", "basicConstraints=CA:FALSE"]
    subprocess.run([*request, *no_ca, "-keyout", key, "-out", config], check=True, capture_output=True)
    made.write("server.pem", config.read_bytes())
    made.write("server.key", key.read_bytes())
    assert "signed with sha1" in reason(made)


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key_opens_with_its_passphrase_file(made: SnapshotSite, form: serialization.PrivateFormat) -> None:
    key = serialization.load_pem_private_key(SERVER.key_pem, None)
    made.write("server.key", key.private_bytes(PEM, form, serialization.BestAvailableEncryption(b"pass phrase")))
    assert "tls.key_passphrase_file" in reason(made)
    made.configure(tls={"key_passphrase_file": "passphrase"})
    made.write("passphrase", b"pass phrase\n")
    material = load(made)
    assert b"ENCRYPTED" in material.key_pem
    assert "pass phrase" not in repr(material)
    made.write("passphrase", b"wrong")
    assert "is the passphrase in tls.key_passphrase_file the right one?" in reason(made)
    made.write("passphrase", b"\n")
    assert "passphrase: is empty" in reason(made)
    with pytest.raises(MaterialError, match="name its passphrase in key_passphrase_file beside it"):
        load_key("client.key", material.key_pem, None, AS_CLIENT)  # of upstream.tls, upstream_tls or client mode
    made.write("passphrase", b"x" * 2000)
    assert "longer than the 1024 bytes" in reason(made)


def test_a_passphrase_beside_a_plain_key_does_no_harm(made: SnapshotSite) -> None:
    made.configure(tls={"key_passphrase_file": "passphrase"})
    made.write("passphrase", b"unused")
    assert load(made).leaf.serial == f"{SERVER.serial:x}"


def test_ec_parameters_before_the_key_are_passed_over(made: SnapshotSite) -> None:
    made.write(
        "server.key", b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + SERVER.key_pem
    )
    assert load(made).leaf.serial == f"{SERVER.serial:x}"
