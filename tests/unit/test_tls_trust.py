from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from tls_site import CLIENT, OTHER, ROOT, hour

from tlsproxy.errors import MaterialError
from tlsproxy.tls.pki import Authority
from tlsproxy.tls.trust import Trust, load_trust

if TYPE_CHECKING:
    from tlsproxy.tls.facts import CrlFacts

PEM = serialization.Encoding.PEM
NOW = datetime.now(UTC)


def load(authorities: bytes, *crls: bytes, now: float | None = None, previous: Any = ()) -> Trust:
    sources = [(f"{number}.crl", crl) for number, crl in enumerate(crls)]
    return load_trust(("ca.pem", authorities), sources, now=now or time.time(), previous=previous)


def reason(authorities: bytes, *crls: bytes, **more: Any) -> str:
    with pytest.raises(MaterialError) as error:
        load(authorities, *crls, **more)
    return str(error.value)


def facts(*crls: bytes) -> list[CrlFacts]:
    return [crl.facts for crl in load(ROOT.certificate_pem, *crls).crls]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "ca.pem: is empty"),
        (b"no PEM", "no PEM block"),
        (CLIENT.certificate_pem, "CN=alice,OU=platform is not a CA"),
        (ROOT.certificate_pem + CLIENT.certificate_pem, "is not a CA"),
        (ROOT.certificate_pem + ROOT.key_pem, "'PRIVATE KEY' block"),
        (ROOT.certificate_pem[:-30], "cut off"),
    ],
)
def test_a_ca_file_holds_cas_and_nothing_else(data: bytes, expected: str) -> None:
    assert expected in reason(data)


def test_a_certificate_without_basic_constraints_is_no_ca() -> None:
    key = serialization.load_pem_private_key(ROOT.key_pem, None)
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - hour(1), NOW + hour(1))
    assert "is not a CA" in reason(builder.sign(key, hashes.SHA256()).public_bytes(PEM))


def test_repeated_cas_count_once() -> None:
    assert len(load(ROOT.certificate_pem * 2 + OTHER.certificate_pem).authorities) == 2


def test_expired_cas_are_warned_of_and_refused_when_there_is_no_other() -> None:
    short = Authority.create("short", lifetime=hour(1))
    later = time.time() + 2 * 3600
    assert "every CA in it has expired" in reason(short.certificate_pem, now=later)
    assert "CN=short expired" in load(short.certificate_pem + ROOT.certificate_pem, now=later).warnings[0]


def test_crls_of_several_files_and_several_in_one() -> None:
    cas = ROOT.certificate_pem + OTHER.certificate_pem
    for crls in ([ROOT.crl_pem([5]), OTHER.crl_pem([6, 7])], [ROOT.crl_pem([5]) + OTHER.crl_pem([6, 7])]):
        trust = load(cas, *crls)
        assert trust.revoked == {"cn=test root": {5}, "cn=other root": {6, 7}}
        assert [crl.facts.count for crl in trust.crls] == [1, 2]
        assert trust.warnings == ()


def test_a_crl_names_its_dates_and_number() -> None:
    (crl,) = facts(ROOT.crl_pem([9], number=12, this_update=NOW - hour(1), next_update=NOW + hour(1)))
    assert (crl.issuer, crl.number, crl.count) == ("CN=test root", 12, 1)
    assert crl.this_update == int((NOW - hour(1)).timestamp())
    assert crl.next_update == int((NOW + hour(1)).timestamp())


@pytest.mark.parametrize(
    ("crl", "expected"),
    [
        (b"", "0.crl: is empty"),
        (ROOT.certificate_pem, "only CRLs belong here"),
        (ROOT.crl_pem().replace(b"MI", b"NI", 1), "cannot be parsed"),
        (OTHER.crl_pem(), "CN=other root is not signed by a CA of tls.ca_cert"),
        (Authority.create("test root").crl_pem(), "is not signed by a CA of tls.ca_cert"),
        (ROOT.crl_pem(this_update=NOW + hour(1)), "in the future"),
        (ROOT.crl_pem(this_update=NOW - hour(2), next_update=NOW - hour(1)), "was to be replaced by"),
    ],
)
def test_a_crl_that_does_not_count_is_refused(crl: bytes, expected: str) -> None:
    assert expected in reason(ROOT.certificate_pem, crl)


def special_crl(*extensions: x509.ExtensionType) -> bytes:
    key = serialization.load_pem_private_key(ROOT.key_pem, None)
    issuer = x509.load_pem_x509_certificate(ROOT.certificate_pem).subject
    builder = x509.CertificateRevocationListBuilder(issuer, NOW - hour(1), NOW + hour(1))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(PEM)


def point(**fields: Any) -> x509.IssuingDistributionPoint:
    base = {
        "full_name": None, "relative_name": None, "only_contains_user_certs": False, "only_contains_ca_certs": False,
        "only_some_reasons": None, "indirect_crl": False, "only_contains_attribute_certs": False,
    }  # fmt: skip
    return x509.IssuingDistributionPoint(**{**base, **fields})


@pytest.mark.parametrize(
    "extension",
    [
        x509.DeltaCRLIndicator(1),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
        point(indirect_crl=True),
        point(only_contains_ca_certs=True),
        point(only_contains_attribute_certs=True),
        point(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})),
    ],
)
def test_a_crl_that_does_not_speak_for_all_is_refused(extension: x509.ExtensionType) -> None:
    assert "use the complete one" in reason(ROOT.certificate_pem, special_crl(extension))


def test_crls_for_several_distribution_points_all_count() -> None:
    points = [point(full_name=[x509.UniformResourceIdentifier(f"http://crl/{n}")]) for n in (1, 2)]
    trust = load(ROOT.certificate_pem, *map(special_crl, points))
    assert len(trust.crls) == 2


def test_of_two_crls_of_one_ca_the_newest_counts() -> None:
    old = ROOT.crl_pem([1, 2], number=1, this_update=NOW - hour(2))
    new = ROOT.crl_pem([2, 3], number=2, this_update=NOW - hour(1))
    for pair in ((old, new), (new, old)):
        trust = load(ROOT.certificate_pem, *pair)
        assert trust.revoked == {"cn=test root": {2, 3}}
        assert [crl.facts.number for crl in trust.crls] == [2]
    same_day = ROOT.crl_pem([4], number=3, this_update=NOW - hour(1))
    assert load(ROOT.certificate_pem, new + same_day).revoked == {"cn=test root": {4}}


def test_a_crl_never_goes_back_in_time() -> None:
    in_use = facts(ROOT.crl_pem([1], number=5, this_update=NOW - hour(1)))
    by_date = ROOT.crl_pem(number=6, this_update=NOW - hour(2))
    by_number = ROOT.crl_pem(number=4, this_update=NOW)
    for older in (by_date, by_number):
        assert "is older than the one in use" in reason(ROOT.certificate_pem, older, previous=in_use)
    same = ROOT.crl_pem([1], number=5, this_update=NOW - hour(1))
    assert load(ROOT.certificate_pem, same, previous=in_use).crls
    assert load(ROOT.certificate_pem, ROOT.crl_pem(number=6), previous=in_use).crls


def test_a_ca_without_a_crl_is_warned_of_when_others_have_one() -> None:
    warnings = load(ROOT.certificate_pem + OTHER.certificate_pem, ROOT.crl_pem()).warnings
    assert "CN=other root has no CRL while others have" in warnings[0]


def test_a_revoked_ca_of_the_file_is_not_trusted() -> None:
    intermediate = ROOT.intermediate("middle")
    serial = x509.load_pem_x509_certificate(intermediate.certificate_pem).serial_number
    trust = load(ROOT.certificate_pem + intermediate.certificate_pem, ROOT.crl_pem([serial]), intermediate.crl_pem())
    assert [ca.subject.rfc4514_string() for ca in trust.authorities] == ["CN=test root"]
    assert "CN=middle is revoked" in trust.warnings[0]
    root_serial = x509.load_pem_x509_certificate(ROOT.certificate_pem).serial_number
    assert "every CA in it is revoked" in reason(ROOT.certificate_pem, ROOT.crl_pem([root_serial]))
