"""Certificates, keys and CRLs as editors, shells and other tools leave them: read, or refused with the command."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import jwt.algorithms
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs7,
    pkcs12,
)
from support.rows import rows

from tlsproxy.cli.show import read_chain
from tlsproxy.config.callers import JwtIssuer
from tlsproxy.config.secrets import secret_in
from tlsproxy.config.tokens import keys_in
from tlsproxy.errors import MaterialError
from tlsproxy.tls.crls import load_crls
from tlsproxy.tls.owncert import load_chain, load_key, passphrase_of
from tlsproxy.tls.pki import Authority
from tlsproxy.tls.trust import load_authorities

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROOT = Authority.create("root")
SERVER = ROOT.issue(common_name="server", dns=["localhost"], server=True)
LEAF = x509.load_pem_x509_certificate(SERVER.certificate_pem)
KEY: Any = serialization.load_pem_private_key(SERVER.key_pem, None)
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
CRL = x509.load_pem_x509_crl(ROOT.crl_pem([7]))
JWKS = json.dumps({"keys": [json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key()))]}, indent=1).encode()
ENCRYPTED = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret"))


def issuer(data: bytes, field: str) -> Any:
    (key,) = keys_in(JwtIssuer(name="i", algorithm="ES256", issuer="x", audience="a", **{field: "f.pem"}), data)
    return key.key.public_numbers()


READERS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "tls.cert": (SERVER.chain_pem, lambda data: load_chain("f.pem", data)),
    "tls.key": (SERVER.key_pem, lambda data: load_key("f.pem", data, None)[0].public_key()),
    "tls.ca_cert": (ROOT.certificate_pem, lambda data: load_authorities("f.pem", data)),
    "tls.crl": (ROOT.crl_pem([7]), lambda data: [list(crl.serials) for crl in load_crls("f.pem", data)]),
    "pem of an issuer": (PUBLIC, lambda data: issuer(data, "pem")),
}


def lines(data: bytes, each: Callable[[bytes], bytes]) -> bytes:
    return b"".join(map(each, data.splitlines(keepends=True)))


LEFT_BY_EDITORS: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "a mark in between": lambda data: b"text\n\xef\xbb\xbf" + data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "CR": lambda data: data.replace(b"\n", b"\r"),
    "UTF-16 of PowerShell": lambda data: data.decode().encode("utf-16"),
    "UTF-16, big end first": lambda data: b"\xfe\xff" + data.decode().encode("utf-16-be"),
    "UTF-16 without a mark": lambda data: data.decode().encode("utf-16-le"),
    "indented as in YAML": lambda data: lines(data, lambda line: b"    " + line),
    "tabs and blanks at the ends": lambda data: lines(data, lambda line: b"\t" + line[:-1] + b" \t\n"),
    "commented out before": lambda data: lines(data, lambda line: b"#" + line) + data,
    "commented out behind": lambda data: data + lines(data, lambda line: b"  # " + line),
    "empty lines": lambda data: lines(data, lambda line: line + b"\n"),
    "no line end": lambda data: data.rstrip(),
    "one long line": lambda data: re.sub(rb"(?<![-])\n(?![-])", b"", data),
}


@rows("form", LEFT_BY_EDITORS)
@rows("place", READERS)
def test_it_is_read(place: str, form: str) -> None:
    data, read = READERS[place]
    assert read(LEFT_BY_EDITORS[form](data)) == read(data)


@pytest.mark.parametrize("form", ["byte order mark", "CRLF", "UTF-16 of PowerShell", "UTF-16, big end first"])
def test_a_key_set_is_read(form: str) -> None:
    assert issuer(LEFT_BY_EDITORS[form](JWKS), "jwks") == KEY.public_key().public_numbers()


def test_an_encrypted_key_is_read_and_serves_openssl(tmp_path: Path) -> None:
    for change in LEFT_BY_EDITORS.values():
        _, block = load_key("f.pem", change(ENCRYPTED), b"secret")
        (tmp_path / "key.pem").write_bytes(block)
        (tmp_path / "cert.pem").write_bytes(SERVER.chain_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem", "secret")


@pytest.mark.parametrize("key", [KEY, ed25519.Ed25519PrivateKey.generate()], ids=["ECDSA", "Ed25519"])
def test_an_openssh_key_is_read_and_is_pkcs8_for_openssl(key: Any) -> None:
    data = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    assert b"OPENSSH" in data
    read, block = load_key("f.pem", data, None)
    assert read.public_key() == key.public_key()
    assert block == key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_parameters_beside_a_key_and_a_certificate_are_ignored() -> None:
    parameters = b"".join(
        b"-----BEGIN %s-----\nAAAA\n-----END %s-----\n" % (name, name) for name in (b"DH PARAMETERS", b"EC PARAMETERS")
    )
    assert load_key("f.pem", parameters + SERVER.key_pem, None)[0].public_key() == KEY.public_key()
    assert load_chain("f.pem", SERVER.chain_pem + parameters) == (LEAF,)


DER, UNPROTECTED = Encoding.DER, NoEncryption()
CSR = x509.CertificateSigningRequestBuilder().subject_name(LEAF.subject).sign(KEY, LEAF.signature_hash_algorithm)
P7 = [LEAF]
CONVERTED: dict[str, tuple[str, bytes]] = {
    "a certificate in DER": ("tls.cert", LEAF.public_bytes(DER)),
    "a CA in DER": ("tls.ca_cert", x509.load_pem_x509_certificate(ROOT.certificate_pem).public_bytes(DER)),
    "a key in DER": ("tls.key", KEY.private_bytes(DER, PrivateFormat.PKCS8, UNPROTECTED)),
    "an old key in DER": ("tls.key", KEY.private_bytes(DER, PrivateFormat.TraditionalOpenSSL, UNPROTECTED)),
    "a public key in DER": ("pem of an issuer", KEY.public_key().public_bytes(DER, PublicFormat.SubjectPublicKeyInfo)),
    "PKCS#12 for the certificate": (
        "tls.cert",
        pkcs12.serialize_key_and_certificates(b"n", KEY, LEAF, None, UNPROTECTED),
    ),
    "PKCS#12 for the key": ("tls.key", pkcs12.serialize_key_and_certificates(b"n", KEY, LEAF, None, UNPROTECTED)),
    "PKCS#7 in DER": ("tls.cert", pkcs7.serialize_certificates(P7, DER)),
    "PKCS#7": ("tls.cert", pkcs7.serialize_certificates(P7, Encoding.PEM)),
    "a certificate of an issuer": ("pem of an issuer", SERVER.certificate_pem),
    "the private key of an issuer": ("pem of an issuer", SERVER.key_pem),
    "base64 of PEM": ("tls.cert", base64.encodebytes(SERVER.certificate_pem)),
    "base64 alone": ("tls.cert", base64.b64encode(LEAF.public_bytes(DER))),
    "escaped line ends": ("tls.cert", SERVER.certificate_pem.replace(b"\n", b"\\n")),
    "blanks for line ends": ("tls.cert", SERVER.certificate_pem.replace(b"\n", b" ")),
    "a manifest": ("tls.cert", b"apiVersion: v1\ndata:\n  tls.crt: " + base64.b64encode(SERVER.certificate_pem)),
    "no line ends": ("tls.key", SERVER.key_pem.replace(b"\n", b"")),
}
WITH_SSH = {
    "an OpenSSH public key": (
        "pem of an issuer",
        KEY.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
    ),
}


def error_of(place: str, data: bytes, path: str = "f.pem") -> str:
    readers: dict[str, Callable[[], Any]] = {
        "tls.cert": lambda: load_chain(path, data),
        "tls.key": lambda: load_key(path, data, None),
        "tls.ca_cert": lambda: load_authorities(path, data),
        "tls.crl": lambda: load_crls(path, data),
        "pem of an issuer": lambda: keys_in(
            JwtIssuer(name="i", algorithm="ES256", issuer="x", audience="a", pem=path), data
        ),
        "jwks of an issuer": lambda: keys_in(
            JwtIssuer(name="i", algorithm="ES256", issuer="x", audience="a", jwks=path), data
        ),
    }
    with pytest.raises(MaterialError) as refused:
        readers[place]()
    return refused.value.text


@pytest.mark.parametrize("form", [*CONVERTED, *WITH_SSH])
def test_the_command_in_the_error_converts_it(tmp_path: Path, form: str) -> None:
    place, data = {**CONVERTED, **WITH_SSH}[form]
    if form in WITH_SSH and shutil.which("ssh-keygen") is None:
        pytest.skip("there is no ssh-keygen")
    path = tmp_path / "it's a file"
    path.write_bytes(data)
    text = error_of(place, data, str(path))
    commands = re.findall(r"`([^`]+)`", text)
    command = commands["escaped" in form]
    asked = "" if "pkcs12" not in command else " -passin pass:"
    done = subprocess.run(  # noqa: S602 - as a person would run it
        command + asked, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    converted = (tmp_path / "it's a file.pem").read_bytes()
    good, read = READERS[place]
    assert read(converted) == read(good)


def test_a_trusted_certificate_is_converted_too(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(ROOT.certificate_pem)
    openssl = shutil.which("openssl") or "openssl"
    run = [openssl, "x509", "-in", "f", "-trustout", "-addtrust", "clientAuth", "-out", "trusted"]
    subprocess.run(run, cwd=tmp_path, check=True, timeout=30)
    data = (tmp_path / "trusted").read_bytes()
    (command,) = re.findall(r"`([^`]+)`", error_of("tls.ca_cert", data, "trusted"))
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True, timeout=30)
    assert load_authorities("f", (tmp_path / "trusted.pem").read_bytes()) == load_authorities("f", ROOT.certificate_pem)


@rows(
    ("place", "data", "told"),
    [
        ("tls.cert", CSR.public_bytes(Encoding.PEM), "request for a certificate"),
        ("tls.cert", CSR.public_bytes(DER), "request for a certificate"),
        ("tls.cert", SERVER.key_pem, "belongs in tls.key"),
        ("tls.cert", PUBLIC, "a public key alone"),
        ("tls.cert", ROOT.crl_pem(), "belongs in tls.crl"),
        ("tls.key", PUBLIC, "a public key alone"),
        ("tls.key", SERVER.certificate_pem, "belongs in tls.cert"),
        ("tls.key", CSR.public_bytes(Encoding.PEM), "request for a certificate"),
        ("tls.key", ENCRYPTED, "tls.key_passphrase_file"),
        ("tls.ca_cert", SERVER.key_pem, "belongs in tls.key"),
        ("tls.ca_cert", CRL.public_bytes(DER), "it is a CRL in DER form"),
        ("tls.ca_cert", ROOT.crl_pem(), "belongs in tls.crl"),
        ("tls.crl", LEAF.public_bytes(DER), "it is a certificate in DER form"),
        ("tls.crl", SERVER.certificate_pem, "belongs in tls.cert or tls.ca_cert"),
        ("tls.crl", b"<!DOCTYPE html>\n<title>404</title>", "a web page"),
        ("tls.key", b"PuTTY-User-Key-File-3: ecdsa-sha2-nistp256\n", "puttygen"),
        ("tls.cert", b"\xfe\xed\xfe\xed" + bytes(40), "keytool"),
        ("pem of an issuer", JWKS, "named by `jwks`"),
        ("jwks of an issuer", PUBLIC, "named by `pem`"),
        ("tls.cert", b"\xff\xfe\x00", "begins as UTF-16"),
        ("tls.cert", b'{"certificate": "-----BEGIN CERTIFICATE-----"}', "jq -r .certificate f.pem > f.pem.pem"),
        ("jwks of an issuer", b'{"issuer": "https://a", "jwks_uri": "https://a/keys"}', "which `discovery` names"),
        ("jwks of an issuer", json.dumps(json.loads(JWKS)["keys"][0]).encode(), "it is one key"),
    ],
)
def test_what_is_in_the_wrong_place_is_named(place: str, data: bytes, told: str) -> None:
    text = error_of(place, data)
    assert told in text
    for secret in (SERVER.key_pem, ENCRYPTED):
        assert secret.splitlines()[1].decode() not in text


def test_a_dsa_key_and_an_encrypted_openssh_key_say_what_to_do() -> None:
    key = dsa.generate_private_key(1024)  # noqa: S505 - a weak one
    old = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert "make an ECDSA one" in error_of("tls.key", old)
    broken = b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
    assert "ssh-keygen -p -N '' -m PKCS8 -f f.pem.pem" in error_of("tls.key", broken)


@pytest.mark.parametrize("form", LEFT_BY_EDITORS)
def test_commands_read_a_client_certificate_alike(tmp_path: Path, form: str) -> None:
    path = tmp_path / "client.pem"
    path.write_bytes(LEFT_BY_EDITORS[form](SERVER.key_pem + SERVER.certificate_pem))
    assert read_chain(path) == (LEAF.public_bytes(DER),)


@pytest.mark.parametrize("form", ["PKCS#12 for the key", "PKCS#7 in DER", "a key in DER", "base64 alone"])
def test_commands_tell_how_to_convert_alike(tmp_path: Path, form: str) -> None:
    path = tmp_path / "client.p12"
    path.write_bytes(CONVERTED[form][1])
    with pytest.raises(MaterialError, match=r"is not a certificate: .* Convert it: `"):
        read_chain(path)


def test_an_ec_key_with_its_parameters() -> None:
    """As `openssl ecparam -genkey` writes it."""
    key = ec.generate_private_key(ec.SECP256R1())
    old = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert load_key("f.pem", parameters + old, None)[0].public_key() == key.public_key()


@pytest.mark.parametrize("form", ["byte order mark", "CRLF", "UTF-16 of PowerShell", "UTF-16, big end first"])
def test_secrets_are_read_as_they_were_meant(tmp_path: Path, form: str) -> None:
    data = LEFT_BY_EDITORS[form](b"correct-horse\n")
    assert secret_in(tmp_path / "key", data) == "correct-horse"
    assert passphrase_of("f", data) == b"correct-horse"
