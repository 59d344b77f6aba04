"""`certs revoke`, `crl`, `p12`, and the kinds of keys."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from tlsproxy.cli import main

KEYS = {"ecdsa": ec.EllipticCurvePublicKey, "rsa": rsa.RSAPublicKey, "ed25519": ed25519.Ed25519PublicKey}


def call(directory: Path, command: str, *arguments: str, **more: str) -> Result:
    return CliRunner().invoke(main, ["certs", command, "--dir", str(directory), *arguments], **more)  # type: ignore[arg-type]


def done(directory: Path, command: str, *arguments: str, **more: str) -> str:
    result = call(directory, command, *arguments, **more)
    assert result.exit_code == 0, result.output
    return result.stdout


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def crl(directory: Path) -> tuple[int, set[int]]:
    """(its number, the serial numbers); signed by the CA."""
    read = x509.load_pem_x509_crl((directory / "ca.crl").read_bytes())
    assert read.is_signature_valid(certificate(directory / "ca.pem").public_key())  # type: ignore[arg-type]
    number = read.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    return number, {entry.serial_number for entry in read}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA with the certificate of alice. Not to be written to."""
    directory = tmp_path_factory.mktemp("certs")
    done(directory, "init")
    done(directory, "issue", "--name", "alice", "--client")
    return directory


@pytest.fixture
def certs(made: Path, tmp_path: Path) -> Path:
    """A copy that may be written to."""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("of_the_ca", KEYS)
def test_kinds_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_the_ca: str) -> None:
    monkeypatch.setattr("tlsproxy.tls.pki._RSA_BITS", 1024)  # longer ones take a while
    done(tmp_path, "init", "--key-type", of_the_ca)
    root = certificate(tmp_path / "ca.pem")
    assert isinstance(root.public_key(), KEYS[of_the_ca])
    for kind, expected in KEYS.items():
        done(tmp_path, "issue", "--name", kind, "--client", "--key-type", kind)
        issued = certificate(tmp_path / f"{kind}.pem")
        issued.verify_directly_issued_by(root)
        assert isinstance(issued.public_key(), expected)
    done(tmp_path, "revoke", of_the_ca)
    assert crl(tmp_path) == (1, {certificate(tmp_path / f"{of_the_ca}.pem").serial_number})


def test_each_list_has_what_the_one_before_had(certs: Path) -> None:
    assert f"tls.crl: [{certs}/ca.crl]" in done(certs, "crl")
    assert crl(certs) == (1, set())
    serial = certificate(certs / "alice.pem").serial_number
    assert done(certs, "revoke", "alice").splitlines()[0] == f"revoked {serial:x}"
    before = x509.load_pem_x509_crl((certs / "ca.crl").read_bytes())
    assert "number 3, 2 revoked" in done(certs, "revoke", "--serial", "00:AB:cd", "--days", "7")
    assert crl(certs) == (3, {serial, 0xABCD})
    after = x509.load_pem_x509_crl((certs / "ca.crl").read_bytes())
    dates = [one.get_revoked_certificate_by_serial_number(serial).revocation_date_utc for one in (before, after)]  # type: ignore[union-attr]
    assert dates[0] == dates[1]
    assert after.next_update_utc is not None
    assert (after.next_update_utc - after.last_update_utc).days == 7
    assert f"{serial:x} has been revoked since " in done(certs, "revoke", "alice")
    assert crl(certs)[0] == 3
    done(certs, "crl")
    assert crl(certs) == (4, {serial, 0xABCD})
    assert stat.S_IMODE((certs / "ca.crl").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "NAME, or --serial HEX"),
        (("alice", "--serial", "1"), "NAME, or --serial HEX"),
        (("--serial", "0"), "is hexadecimal"),
        (("--serial", "alice"), "is hexadecimal"),
        (("../alice",), "a file without its suffix"),
        (("ca",), "not that of the CA"),
        (("bob",), "bob.pem"),
        (("foreign",), "only its own CA can revoke it"),
    ],
)
def test_what_cannot_be_revoked(made: Path, certs: Path, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    other = tmp_path / "other"
    done(other, "init")
    done(other, "issue", "--name", "foreign", "--client")
    (certs / "foreign.pem").write_bytes((other / "foreign.pem").read_bytes())
    result = call(certs, "revoke", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (certs / "ca.crl").exists()
    assert not (made / "ca.crl").exists()


def test_a_list_of_another_ca_is_not_replaced(certs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    done(other, "init")
    done(other, "crl")
    for content in ((other / "ca.crl").read_bytes(), b"mine", (certs / "ca.pem").read_bytes()):
        (certs / "ca.crl").write_bytes(content)
        result = call(certs, "revoke", "alice")
        assert (result.exit_code, "is not the CA's list of revoked certificates" in result.stderr) == (2, True)
        assert (certs / "ca.crl").read_bytes() == content


def test_two_at_the_same_time(certs: Path) -> None:
    descriptor = os.open(certs, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert "another `tlsproxy certs` is at work" in call(certs, "crl").stderr
    os.close(descriptor)
    done(certs, "crl")
    assert "cannot be opened" in call(certs / "nowhere", "crl").stderr


@pytest.mark.parametrize("legacy", [(), ("--legacy",)])
def test_a_file_for_a_browser(certs: Path, tmp_path: Path, legacy: tuple[str, ...]) -> None:
    (tmp_path / "phrase").write_text("open sesame\n")
    done(certs, "p12", "alice", "--passphrase-file", str(tmp_path / "phrase"), *legacy)
    path = certs / "alice.p12"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    bundle = pkcs12.load_pkcs12(path.read_bytes(), b"open sesame")
    assert bundle.cert is not None
    assert (bundle.cert.certificate, bundle.cert.friendly_name) == (certificate(certs / "alice.pem"), b"alice")
    assert [one.certificate for one in bundle.additional_certs] == [certificate(certs / "ca.pem")]
    assert bundle.key is not None
    assert bundle.key.public_key() == bundle.cert.certificate.public_key()
    assert "--force overwrites it" in call(certs, "p12", "alice", "--passphrase-file", str(tmp_path / "phrase")).stderr


def test_a_passphrase_is_asked_for(certs: Path) -> None:
    told = done(certs, "p12", "alice", input="secret\nsecret\n")
    assert "secret" not in told
    pkcs12.load_pkcs12((certs / "alice.p12").read_bytes(), b"secret")


def test_what_makes_no_file_for_a_browser(certs: Path, tmp_path: Path) -> None:
    done(certs, "issue", "--name", "bob", "--client")
    (certs / "bob.key").write_bytes((certs / "alice.key").read_bytes())
    (tmp_path / "phrase").write_text("open sesame")
    (tmp_path / "empty").touch()
    for name, phrase, says in (
        ("bob", "phrase", "does not belong to"),
        ("eve", "phrase", "eve.pem"),
        ("alice", "empty", "empty"),
    ):
        result = call(certs, "p12", name, "--passphrase-file", str(tmp_path / phrase))
        assert (result.exit_code, says in result.stderr) == (2, True), result.stderr
    assert not list(certs.glob("*.p12"))
