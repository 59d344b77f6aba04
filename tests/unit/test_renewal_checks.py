"""Steps of a server certificate that are sound by themselves and break its clients."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from snapshot_site import OTHER, ROOT, hour, site
from support.certificates import certified
from support.rows import rows
from support.rsa_numbers import RsaNumbers

from tlsproxy.errors import MaterialError
from tlsproxy.tls.pki import Authority
from tlsproxy.tls.renewal_checks import suspicions

ONE, TWO = ROOT.intermediate("intermediate one"), ROOT.intermediate("intermediate two")
DEEP = ONE.intermediate("issuing")
NAMESAKE = Authority.create("test root")
CROSSED = certified(ROOT, OTHER)
NAMES = {"dns": ["db.example.org", "*.example.net"], "ips": ["10.0.0.1"], "server": True}

Chain = tuple[x509.Certificate, ...]


def chain(authority: Authority, *more: Authority, count: int = 9, **changes: Any) -> Chain:
    """``count`` certificates at most are sent."""
    issued = authority.issue(**(NAMES | changes))
    pem = issued.chain_pem + b"".join(one.certificate_pem for one in more)
    return tuple(x509.load_pem_x509_certificates(pem)[:count])


def keyed(key: Any, issuer: Authority = ROOT) -> Chain:
    """A leaf with this key."""
    leaf = chain(issuer)[0]
    builder = x509.CertificateBuilder(
        leaf.issuer, leaf.subject, key.public_key(), 7, leaf.not_valid_before_utc, leaf.not_valid_after_utc,
        list(leaf.extensions),
    )  # fmt: skip
    return (builder.sign(issuer._key(), hashes.SHA256()),)


def names(former: Chain, new: Chain) -> list[str]:
    found = suspicions(former, new)
    assert all(": " in one and "\n" not in one for one in found)
    return [one.partition(":")[0] for one in found]


RSA = {bits: RsaNumbers(bits) for bits in (1024, 2048)}
P256, P384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
WILD = {"dns": ["*.example.org", "*.example.net"]}
EARLIER = {"not_before": datetime.now(UTC) - hour(5)}


@rows(
    ("former", "new", "expected"),
    [
        (chain(ONE), chain(ONE), []),
        (chain(ONE), chain(TWO), []),  # as public CAs do, from one renewal to the next
        (chain(ONE, ROOT), chain(ONE), []),  # a root need not be sent
        (chain(ONE), chain(ONE, ROOT), []),
        (chain(ROOT), chain(ONE), []),
        (chain(DEEP), chain(ONE), []),
        (chain(ONE), chain(ONE, count=1), ["missing_intermediate"]),
        (chain(ONE), chain(TWO, count=1), ["missing_intermediate"]),
        (chain(ONE), chain(OTHER.intermediate("x"), count=1), ["missing_intermediate"]),
        (chain(DEEP), chain(DEEP, count=2), ["missing_intermediate"]),
        (chain(CROSSED), chain(ROOT), ["missing_intermediate"]),  # whose clients may know OTHER alone
        (chain(ROOT), chain(CROSSED), ["other_authority"]),
        (chain(ROOT), chain(OTHER), ["other_authority"]),
        (chain(ROOT), chain(NAMESAKE), ["other_authority"]),
        (chain(ROOT, ROOT), chain(NAMESAKE, NAMESAKE), ["other_authority"]),
        (chain(ONE), chain(OTHER.intermediate("intermediate one")), ["other_authority"]),
        (chain(ROOT), chain(ROOT, dns=["db.example.org"]), ["names_gone"]),
        (chain(ROOT), chain(ROOT, dns=["DB.example.org", "a.example.net"]), ["names_gone"]),
        (chain(ROOT), chain(ROOT, ips=["10.0.0.2"]), ["names_gone"]),
        (chain(ROOT), chain(ROOT, **WILD), []),
        (chain(ROOT, **WILD), chain(ROOT), ["names_gone"]),
        (chain(ROOT, dns=["a.db.example.org"]), chain(ROOT, dns=["*.example.org"]), ["names_gone"]),
        (chain(ROOT), chain(ROOT, **EARLIER), ["older_certificate"]),
        (keyed(RSA[2048]), keyed(RSA[1024]), ["shorter_key"]),
        (keyed(P384), keyed(P256), ["shorter_key"]),
        (keyed(RSA[1024]), keyed(RSA[2048]), []),
        (keyed(RSA[2048]), keyed(P256), []),
        (keyed(P256), keyed(RSA[1024]), []),
        ((), chain(ONE, count=1), []),
        ((), keyed(ed25519.Ed25519PrivateKey.generate()), ["ed25519_key"]),
        (keyed(P256), keyed(ed25519.Ed25519PrivateKey.generate()), ["ed25519_key"]),
        (chain(ONE), chain(OTHER, dns=["x"], **EARLIER), ["missing_intermediate", "names_gone", "older_certificate"]),
    ],
)  # fmt: skip
def test_steps(former: Chain, new: Chain, expected: list[str]) -> None:
    assert names(former, new) == expected


def test_each_says_what_is_different() -> None:
    assert "CN=intermediate one" in suspicions(chain(ONE), chain(ONE, count=1))[0]
    assert "fullchain.pem" in suspicions(chain(ONE), chain(ONE, count=1))[0]
    assert "*.example.net, 10.0.0.1" in suspicions(chain(ROOT), chain(ROOT, dns=["db.example.org"], ips=()))[0]
    assert "CN=other root, its predecessor of CN=test root" in suspicions(chain(ROOT), chain(OTHER))[0]
    assert "1024 bits in place of 2048" in suspicions(keyed(RSA[2048]), keyed(RSA[1024]))[0]


LABELS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3, unique=True)
OF_SERVER = LABELS.map(lambda labels: [f"{label}.example.org" for label in labels])


@given(OF_SERVER, OF_SERVER)
def test_names_are_gone_if_some_host_has_none_any_more(before: list[str], after: list[str]) -> None:
    def hosts(dns: list[str]) -> set[str]:
        return {"a", "b", "c"} if "*.example.org" in dns else {name[0] for name in dns}

    expected = ["names_gone"] if not hosts(before) <= hosts(after) else []
    assert names(chain(ROOT, dns=before), chain(ROOT, dns=after)) == expected


def test_warned_of_or_refused(tmp_path: Path) -> None:
    made = site(tmp_path)
    made.serve(ONE.issue(**NAMES))
    first = made.build()
    renewed = ONE.issue(**NAMES)
    made.write("server.pem", renewed.certificate_pem)
    made.write("server.key", renewed.key_pem)
    assert any("server.pem: missing_intermediate: " in warning for warning in made.build(first).material.warnings(0))
    made.configure(tls={"on_suspicious": "refuse"})
    with pytest.raises(MaterialError, match="missing_intermediate"):
        made.build(first)
    made.write("server.pem", renewed.chain_pem)
    assert made.build(first).material.leaf.serial == f"{renewed.serial:x}"
    assert made.build().number == 1


def test_refused_at_the_start(tmp_path: Path) -> None:
    made = site(tmp_path)
    key = ed25519.Ed25519PrivateKey.generate()
    made.write("server.pem", keyed(key)[0].public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    made.write("server.key", key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    assert any("ed25519_key" in warning for warning in made.build().material.warnings(0))
    made.configure(tls={"on_suspicious": "refuse"})
    with pytest.raises(MaterialError, match="ed25519_key"):
        made.build()
