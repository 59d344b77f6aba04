"""The format of configuration bundles, and the commands that make and verify them."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.cli.bundle import bundle
from tlsproxy.config.bundle import key_id, opened, signed, unverified
from tlsproxy.errors import MaterialError

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
DER = Ed25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)


def public(*keys: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return b"".join(key.public_key().public_bytes(*form) for key in keys)


TRUSTED = [("bundle.pub", public(KEY))]


def refused(data: bytes, keys: list[tuple[str, bytes]] = TRUSTED) -> str:
    with pytest.raises(MaterialError) as caught:
        opened("b", data, keys)
    return str(caught.value)


def document(**changes: object) -> bytes:
    """A signed bundle whose document has other members."""
    whole = {"version": 1, "created": "2026-01-01T00:00:00Z", "expires": None, "files": {}} | changes
    data = json.dumps(whole).encode()
    signature = b64encode(KEY.sign(b"tlsproxy-bundle 1\n" + data))
    return b"tlsproxy-bundle 1 %s %s\n%s" % (key_id(KEY.public_key()).encode(), signature, data)


@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=5), st.integers(1, 1 << 53))
def test_what_is_signed_is_opened(files: dict[str, bytes], version: int) -> None:
    found = opened("b", signed(KEY, version, 1e9, 2e9, files), TRUSTED)
    assert (found.version, found.created, found.expires, found.files) == (version, 1e9, 2e9, files)


SIGNED = signed(KEY, 7, 1e9, None, {"a.yaml": b"workers: 2", "ca.pem": b"-"})


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_no_other_byte_is_opened(place: int, change: int) -> None:
    altered = SIGNED[:place] + bytes([SIGNED[place] ^ change]) + SIGNED[place + 1 :]
    assert refused(altered).startswith("b: ")
    assert refused(SIGNED[:place]).startswith("b: ")


def test_keys_are_told_apart() -> None:
    assert opened("b", SIGNED, [("old.pub", public(OTHER)), ("new.pub", public(KEY))]).version == 7
    assert opened("b", SIGNED, [("both.pub", public(OTHER, KEY))]).version == 7
    assert f"signed with the key {key_id(KEY.public_key())}" in refused(SIGNED, [("o", public(OTHER))])
    assert "o: has no public key" in refused(SIGNED, [("o", b"")])
    assert "o: has a public key that is not Ed25519" in refused(
        SIGNED, [("o", public(ec.generate_private_key(ec.SECP256R1())))]
    )
    assert "more than 8 MiB" in refused(SIGNED + bytes(8 << 20))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": "1"},
        {"version": True},
        {"version": 1 << 60},
        {"created": "yesterday"},
        {"created": "0001-01-01T00:00:00+14:00"},
        {"expires": "9999-12-31T23:59:59-14:00"},
        {"expires": 7},
        {"files": []},
        {"files": {"../a": ""}},
        {"files": {"a/b": ""}},
        {"files": {".hidden": ""}},
        {"files": {"": ""}},
        {"files": {"a": "***"}},
        {"files": {"a": 7}},
        {"files": {str(number): "" for number in range(1001)}},
    ],
)
def test_a_document_of_another_form_is_refused_though_it_is_signed(changes: dict[str, object]) -> None:
    assert "is signed, and its document cannot be read" in refused(document(**changes))


def test_a_newer_bundle_alone_takes_the_place_of_another() -> None:
    former = unverified("b", signed(KEY, 7, 1e9, None, {}))
    unverified("b", signed(KEY, 8, 1e9, 101.0, {})).check_newer("b", 100.0, former)
    former.check_newer("b", 100.0, former)
    for version, expires, files, text in (
        (6, None, {}, "is older than 7"),
        (7, None, {"a": b""}, "another bundle has the same version, 7"),
        (8, 100.0, {}, "version 8 expired on 1970-01-01T00:01:40Z"),
    ):
        with pytest.raises(MaterialError, match=text):
            unverified("b", signed(KEY, version, 1e9, expires, files)).check_newer("b", 100.0, former)


# Commands


def run(directory: Path, *arguments: str, code: int = 0) -> str:
    named = [str(directory / one) if (directory / one).exists() or one.endswith(".out") else one for one in arguments]
    done = CliRunner().invoke(bundle, named)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def place(tmp_path: Path) -> Path:
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "signer.key").write_bytes(KEY.private_bytes(*form))
    (tmp_path / "signer.pub").write_bytes(public(KEY))
    (tmp_path / "roles.yaml").write_text("roles: {search: {access: r}}")
    (tmp_path / "ca.pem").write_bytes(b"ca")
    return tmp_path


def test_a_bundle_is_signed_verified_and_shown(place: Path) -> None:
    run(place, "sign", "--key", "signer.key", "--out", "a.out", "--days", "2", "roles.yaml", "ca.pem")
    first = run(place, "verify", "--public-key", "signer.pub", "a.out")
    assert "roles.yaml: 28 bytes, configuration" in first
    assert "ca.pem: 2 bytes" in first
    assert first.endswith("a.out: ok\n")
    assert run(place, "show", "a.out").startswith("not verified\nversion ")
    done = CliRunner().invoke(bundle, ["show", "--file", "ca.pem", str(place / "a.out")])
    assert done.output == "ca"
    assert unverified("a", (place / "a.out").read_bytes()).version > 1_700_000_000


def test_keygen_makes_a_pair_and_overwrites_none(tmp_path: Path) -> None:
    made = CliRunner().invoke(bundle, ["keygen", "--out", str(tmp_path / "k")])
    assert made.exit_code == 0
    assert (tmp_path / "k.key").stat().st_mode & 0o777 == 0o600
    assert "exists" in CliRunner().invoke(bundle, ["keygen", "--out", str(tmp_path / "k")]).output
    assert "must end with a name" in CliRunner().invoke(bundle, ["keygen", "--out", "/"]).output


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.pem", "-----BEGIN EC PRIVATE KEY-----\n", "holds a private key"),
        ("a.yaml", "roles: |\n  -----BEGIN PRIVATE KEY-----\n", "holds a private key"),
        ("keys.json", '{"keys": [{"kty": "EC", "d": "x"}]}', "holds a private key"),
        ("key.json", '{"kty": "oct", "k": "x"}', "holds a private key"),
        ("keys.json", '[{"kty": "oct", "k": "x"}]', "holds a private key"),
        ("key.der", DER.decode("latin-1"), "holds a private key"),
        (
            "a.pem",
            "\xff\xfe" + "-----BEGIN PRIVATE KEY-----".encode("utf-16-le").decode("latin-1"),
            "holds a private key",
        ),
        ("a.yaml", "service:\n  api_key: s3cret", "a.yaml:2:3 service.api_key: an API key"),
        ("a.yaml", "upstream: {api_key_file: ca.pem}", "a.yaml:1:12 upstream.api_key_file: a file of this bundle"),
        ("a.yaml", "keys:\n- {name: k, role: r, file: ./ca.pem}", "a.yaml:2:22 keys[0].file: a file of this bundle"),
    ],
)
def test_secrets_are_signed_only_if_asked(place: Path, name: str, content: str, text: str) -> None:
    (place / name).write_bytes(content.encode("latin-1"))
    told = run(place, "sign", "--key", "signer.key", "--out", "a.out", name, "ca.pem", code=2)
    assert text in told
    assert "s3cret" not in told
    assert not (place / "a.out").exists()
    run(place, "sign", "--key", "signer.key", "--out", "a.out", "--with-secrets", name)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.yaml", "roles: [", "not YAML"),
        ("a.yaml", "include: b.yaml", "a.yaml:1:1 include: a piece includes no other"),
        ("a.yaml", "bundle: {}", "a.yaml:1:1 bundle: a piece names no bundle"),
        ("ä.pem", "", "must have a name of letters"),
        (".a.yaml", "", "must have a name of letters"),
    ],
)
def test_a_file_that_no_gateway_takes_is_not_signed(place: Path, name: str, content: str, text: str) -> None:
    (place / name).write_text(content)
    assert text in run(place, "sign", "--key", "signer.key", "--out", "a.out", name, code=2)
