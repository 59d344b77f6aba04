"""A chain that clients cannot verify is told, and one that ends in a needless certificate is served."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from snapshot_site import ROOT, SnapshotSite, site
from support.certificates import certified

from tlsproxy.snapshot.lifetimes import lifetimes_of
from tlsproxy.tls.chain_checks import gaps
from tlsproxy.tls.pki import Authority, Issued

OLD = Authority.create("old root")
MIDDLE = ROOT.intermediate("middle")
LOWER = MIDDLE.intermediate("lower")
FOREIGN = Authority.create("foreign root")
EXPIRED = certified(ROOT, OLD, not_after=datetime.now(UTC) - timedelta(seconds=20))


pytestmark = pytest.mark.usefixtures("hasty")


def loaded(*pems: bytes) -> list[x509.Certificate]:
    return [x509.load_pem_x509_certificate(pem) for pem in pems]


def leaf(authority: Authority) -> Issued:
    return authority.issue(dns=["localhost"], server=True)


ALONE, MISSING = (
    "s.pem: the certificate comes alone: if its issuer ",
    "s.pem: the intermediate CN=middle is not in the ",
)


@pytest.mark.parametrize(
    ("sent", "known", "says"),
    [
        ([leaf(ROOT)], [ROOT], ""),
        (
            [leaf(MIDDLE)],
            [ROOT],
            f"{ALONE}CN=middle is an intermediate, clients that know the root alone",
        ),
        ([leaf(FOREIGN)], [ROOT], ALONE),
        ([leaf(ROOT)], [], ALONE),
        ([leaf(MIDDLE), MIDDLE], [ROOT], ""),
        ([leaf(MIDDLE), MIDDLE], [], ""),
        ([leaf(MIDDLE), MIDDLE, ROOT], [], ""),
        ([leaf(LOWER), LOWER], [ROOT, MIDDLE], MISSING),
        ([leaf(LOWER), LOWER, MIDDLE], [ROOT, MIDDLE], ""),
    ],
)
def test_a_client_that_knows_the_root_alone(sent: list[Issued | Authority], known: list[Authority], says: str) -> None:
    chain = loaded(*(one.certificate_pem for one in sent))
    found = list(gaps("s.pem", chain, loaded(*(one.certificate_pem for one in known))))
    assert len(found) == bool(says)
    assert "".join(found).startswith(says)


def served(made: SnapshotSite, issued: Issued, *above: Authority) -> list[str]:
    """Warnings of a generation with this chain."""
    made.serve(issued)
    made.write("server.pem", issued.certificate_pem + b"".join(one.certificate_pem for one in above))
    return list(made.build().material.warnings(time.time()))


def test_a_leaf_that_an_intermediate_of_the_ca_file_completes(tmp_path: Path) -> None:
    made = site(tmp_path)
    assert served(made, leaf(MIDDLE))[0].startswith(f"{tmp_path / 'server.pem'}: the certificate comes alone")
    made.write("ca.pem", ROOT.certificate_pem + MIDDLE.certificate_pem)
    assert served(made, leaf(MIDDLE)) == []


def test_an_expired_cross_signed_certificate_at_the_end_is_needless(tmp_path: Path) -> None:
    made = site(tmp_path)
    for chain in ([MIDDLE, EXPIRED], [EXPIRED]):
        (warning,) = served(made, leaf(chain[0] if chain[0] is MIDDLE else ROOT), *chain)
        assert "CN=test root expired at " in warning
        assert warning.endswith(", and ends the chain needlessly: remove it, since old clients refuse it")
    # Without the root among the CAs an intermediate before it says that it is one.
    made.write("ca.pem", FOREIGN.certificate_pem)
    assert len(served(made, leaf(MIDDLE), MIDDLE, EXPIRED)) == 1


@pytest.mark.parametrize(
    ("extension", "says"),
    [
        (x509.NameConstraints([x509.DNSName("example.org")], None), "permitted subtree violation"),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), "unsuitable certificate purpose"),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), "unhandled critical extension"),
    ],
)
def test_a_chain_that_every_client_refuses(tmp_path: Path, extension: x509.ExtensionType, says: str) -> None:
    made, middle = site(tmp_path), certified(MIDDLE, ROOT, extensions=[extension])
    served(made, leaf(MIDDLE), middle)
    (warning,) = made.build().warnings
    assert warning.startswith(f"{tmp_path / 'server.pem'}: clients refuse the chain ({says}); ")


@pytest.mark.parametrize("case", ["the issuer", "a root"])
def test_any_other_expired_certificate_is_refused(tmp_path: Path, case: str) -> None:
    made = site(tmp_path)
    made.write("ca.pem", FOREIGN.certificate_pem)
    old = certified(ROOT, ROOT, not_after=datetime.now(UTC) - timedelta(seconds=20))
    issued, above = (leaf(ROOT), [EXPIRED]) if case == "the issuer" else (leaf(MIDDLE), [MIDDLE, old])
    made.serve(issued)
    made.write("server.pem", issued.certificate_pem + b"".join(one.certificate_pem for one in above))
    (fault,) = made.propose().faults.values()
    assert "CN=test root expired at" in fault.text


@pytest.mark.parametrize("ended", [True, False])
def test_only_an_expired_one_is_left_out_of_the_lifetimes(tmp_path: Path, *, ended: bool) -> None:
    """The last of three CAs may be needed: its end is told beforehand."""
    made = site(tmp_path)
    served(made, leaf(MIDDLE), MIDDLE, EXPIRED if ended else certified(ROOT, OLD))
    names = [one.name for one in lifetimes_of(made.build()) if one.kind == "intermediate"]
    assert names == ["CN=middle"] + ["CN=test root"] * (not ended)
