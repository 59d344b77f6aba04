"""What a reload made different, as it is told: by name, and never a secret."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from snapshot_site import OTHER, ROOT, SnapshotSite, site

from tlsproxy.snapshot.diff import MAX_CHANGES, Change, changes_between

KEY = "first-s3cret-k3y"


def reloaded(made: SnapshotSite, **changes: Any) -> tuple[Change, ...]:
    """The changes that sections of the configuration make; a list or a role replaces what was there."""
    before = made.build()
    config = yaml.safe_load(made.config.read_text())
    for name, section in changes.items():
        config[name] = config.get(name, {}) | section if isinstance(section, dict) else section
    made.config.write_text(yaml.safe_dump(config))
    return changes_between(before, made.build(before))


def public_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_nothing(tmp_path: Path) -> None:
    assert reloaded(site(tmp_path)) == ()


def test_a_certificate(tmp_path: Path) -> None:
    made = site(tmp_path)
    before = made.build()
    issued = ROOT.issue(dns=["localhost"], server=True, lifetime=timedelta(days=3))
    made.serve(issued)
    after = made.build(before)
    (change,) = changes_between(before, after)
    assert (change.what, change.how) == ("certificate", "changed")
    assert change.detail.startswith(f"serial {before.material.leaf.serial} until 20")
    assert f"→ serial {issued.serial:x} until {datetime.now(UTC) + timedelta(days=3):%Y-%m-%d}" in change.detail


def test_authorities_and_crls(tmp_path: Path) -> None:
    made = site(tmp_path)
    made.write("crl.pem", ROOT.crl_pem(number=1))
    before = made.build()
    made.write("ca.pem", ROOT.certificate_pem + OTHER.certificate_pem)
    made.configure(tls={"crl": ["crl.pem"]})
    middle = made.build(before)
    told = changes_between(before, middle)
    assert [(one.what, one.name, one.how) for one in told] == [
        ("CA", "CN=other root", "added"),
        ("CRL", "CN=test root", "added"),
        ("setting", "tls.crl", "changed"),
    ]
    made.write("crl.pem", ROOT.crl_pem([77], number=2))
    made.write("ca.pem", ROOT.certificate_pem)
    told = changes_between(middle, made.build(middle))
    assert [(one.what, one.how) for one in told] == [("CA", "removed"), ("CRL", "changed")]
    assert told[1].detail.startswith("number 1, 0 revoked, next update 2")
    assert "→ number 2, 1 revoked" in told[1].detail


def test_roles_and_rules(tmp_path: Path) -> None:
    made = site(tmp_path, roles={"old": {"access": "r"}, "kept": {"access": "r"}})
    rules = [
        {"name": "other", "match": {"cn": "x"}, "role": "kept"},
        {"name": "platform", "match": {"ou": "platform"}, "role": "kept"},
    ]
    before = made.build()
    made.configure(roles={"kept": {"access": "m"}, "fresh": {"access": "r"}})
    config = yaml.safe_load(made.config.read_text())
    config["identities"] = rules
    made.config.write_text(yaml.safe_dump(config))
    middle = made.build(before)
    assert changes_between(before, middle) == (
        Change("role", "fresh", "added", "access r"),
        Change("role", "kept", "changed", "access r → m"),
        Change("role", "old", "removed"),
        Change("rule", "other", "added", "match.cn x, role kept"),
        Change("rule", "platform", "changed", "role admin → kept"),
    )
    assert reloaded(made, identities=rules[::-1]) == (
        Change("rules", "", "changed", "in another order: the first that matches decides"),
    )


def test_keys_by_name_and_never_what_they_are(tmp_path: Path) -> None:
    made = site(tmp_path, service={"api_key": KEY})
    made.write("nightly.key", b"nightly-s3cret-k3y\n")
    told = reloaded(
        made,
        service={"api_key": "second-s3cret-k3y", "read_only_api_key": "third-s3cret-k3y"},
        keys=[{"name": "nightly", "file": "nightly.key", "role": "admin"}],
    )
    assert [(one.what, one.name, one.how, one.detail) for one in told] == [
        ("key", "api_key", "changed", "the key itself"),
        ("key", "read_only_api_key", "added", "access r"),
        ("key", "nightly", "added", f"file {tmp_path}/nightly.key, role admin"),
        ("setting", "service.api_key", "changed", ""),
        ("setting", "service.read_only_api_key", "changed", ""),
    ]
    assert "k3y" not in str([asdict(one) for one in told])
    expires = {"name": "nightly", "file": "nightly.key", "role": "admin", "expires": "2090-01-01T00:00:00Z"}
    assert reloaded(made, keys=[expires]) == (
        Change("key", "nightly", "changed", "expires none → 2090-01-01T00:00:00Z"),
    )
    before = made.build()
    made.write("nightly.key", b"another-s3cret-k3y\n")
    assert changes_between(before, made.build(before)) == (Change("key", "nightly", "changed", "the key itself"),)


def test_what_is_sent_upstream(tmp_path: Path) -> None:
    made = site(tmp_path, upstream={"api_key_file": "upstream.key"})
    made.write("upstream.key", b"one-s3cret")
    before = made.build()
    made.write("upstream.key", b"two-s3cret")
    assert changes_between(before, made.build(before)) == (
        Change("setting", "upstream.api_key_file", "changed", "its content"),
    )


def test_an_issuer_and_its_keys(tmp_path: Path) -> None:
    made = site(tmp_path)
    issuer = {"name": "idp", "issuer": "https://idp", "audience": "qdrant", "algorithm": "ES256", "pem": "idp.pem"}
    made.write("idp.pem", public_key())
    assert reloaded(made, jwt_issuers=[issuer]) == (
        Change(
            "issuer",
            "idp",
            "added",
            f"issuer https://idp, audience qdrant, algorithm ES256, pem {tmp_path}/idp.pem",
        ),
    )
    before = made.build()
    made.write("idp.pem", public_key())
    assert changes_between(before, made.build(before)) == (
        Change("issuer", "idp", "changed", "the keys that verify its tokens"),
    )


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("limits", {"expel_after": 3}, ("limits.expel_after", "1.0 → 3.0")),
        ("service", {"enable_cors": False}, ("service.enable_cors", "true → false")),
        (
            "upstream",
            {"grpc": "http://127.0.0.1:26334"},
            ("upstream.grpc", "http://127.0.0.1:16334 → http://127.0.0.1:26334"),
        ),
        ("admin", {"listen": "127.0.0.1:9333"}, ("admin.listen", "none → 127.0.0.1:9333")),
        (
            "limits",
            {"per_identity": {"requests_per_second": 9}},
            ("limits.per_identity.requests_per_second", "none → 9.0"),
        ),
        ("service", {"allowed_origins": ["https://a"]}, ("service.allowed_origins", "https://a added")),
    ],
)
def test_settings(tmp_path: Path, section: str, values: dict[str, Any], expected: tuple[str, str]) -> None:
    (change,) = reloaded(site(tmp_path), **{section: values})
    assert (change.what, change.name, change.how, change.detail) == ("setting", expected[0], "changed", expected[1])


def test_nodes(tmp_path: Path) -> None:
    a, b = (
        {"name": name, "rest": f"http://127.0.0.{last}:16333", "grpc": f"http://127.0.0.{last}:16334"}
        for last, name in enumerate("ab", 1)
    )
    made = site(tmp_path, upstream={"nodes": [a]})
    before = made.build()
    made.configure(upstream={"nodes": [b, a | {"drain": True}]})
    assert changes_between(before, made.build(before)) == (
        Change("node", "b", "added", "rest http://127.0.0.2:16333, grpc http://127.0.0.2:16334"),
        Change("node", "a", "changed", "drain false → true"),
    )


def test_however_many_there_are_a_verdict_is_bounded(tmp_path: Path) -> None:
    told = reloaded(site(tmp_path), roles={f"role-{number}": {"access": "r"} for number in range(1000)})
    assert len(told) == MAX_CHANGES + 1
    assert told[-1] == Change("others", "", "changed", f"{1000 - MAX_CHANGES} more")
