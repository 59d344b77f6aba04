from __future__ import annotations

import operator
import time
import tracemalloc
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st
from snapshot_site import CLIENT, OTHER, ROOT, hour
from support.certificates import certified

from tlsproxy.errors import MaterialError
from tlsproxy.text import utc_time
from tlsproxy.tls.crls import CrlScope, Serials, load_crls, older_than
from tlsproxy.tls.pki import Authority
from tlsproxy.tls.trust import CrlPolicy, Trust, issuer_of, load_authorities

if TYPE_CHECKING:
    from tlsproxy.tls.certinfo import CrlFacts
    from tlsproxy.tls.crls import Crl

PEM = serialization.Encoding.PEM
NOW = datetime.now(UTC)


def load(authorities: bytes, *crls: bytes) -> Trust:
    loaded = [crl for number, data in enumerate(crls) for crl in load_crls(f"{number}.crl", data)]
    return Trust.of("ca.pem", load_authorities("ca.pem", authorities), loaded, CrlPolicy())


def revoked(trust: Trust) -> dict[str, set[int]]:
    """By issuer, of the serial numbers that the tests use."""
    return {
        name: {serial for serial in range(10) if any(serial in crl.serials for crl in crls)}
        for (name, _), crls in trust.crls.items()
    }


def warnings(trust: Trust, now: float | None = None) -> list[str]:
    return list(trust.warnings(now or time.time()))


def reason(authorities: bytes, *crls: bytes) -> str:
    with pytest.raises(MaterialError) as error:
        load(authorities, *crls)
    return str(error.value)


def facts(*crls: bytes) -> list[CrlFacts]:
    return list(load(ROOT.certificate_pem, *crls).facts)


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


def test_cas_that_are_of_no_use_now_are_warned_of() -> None:
    short = Authority.create("short", lifetime=hour(1))
    trust = load(short.certificate_pem + ROOT.certificate_pem)
    assert "CN=short expired" in warnings(trust, time.time() + 2 * 3600)[0]
    assert "CN=short is not valid before" in warnings(trust, time.time() - 3600)[0]


def test_crls_of_several_files_and_several_in_one() -> None:
    cas = ROOT.certificate_pem + OTHER.certificate_pem
    for crls in ([ROOT.crl_pem([5]), OTHER.crl_pem([6, 7])], [ROOT.crl_pem([5]) + OTHER.crl_pem([6, 7])]):
        trust = load(cas, *crls)
        assert revoked(trust) == {"cn=test root": {5}, "cn=other root": {6, 7}}
        assert [facts.count for facts in trust.facts] == [1, 2]
        assert warnings(trust) == []


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
    ],
)
def test_a_file_of_crls_holds_nothing_else(crl: bytes, expected: str) -> None:
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
        point(only_contains_attribute_certs=True),
        point(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})),
    ],
)
def test_a_crl_that_does_not_speak_for_all_is_refused(extension: x509.ExtensionType) -> None:
    assert "; configure " in reason(ROOT.certificate_pem, special_crl(extension))


def test_crls_for_several_distribution_points_all_count() -> None:
    points = [point(full_name=[x509.UniformResourceIdentifier(f"http://crl/{n}")]) for n in (1, 2)]
    trust = load(ROOT.certificate_pem, *map(special_crl, points))
    assert len(trust.facts) == 2


POINTS = st.frozensets(st.sampled_from("abc"))
SCOPES = st.builds(CrlScope, POINTS, st.booleans(), st.booleans())


@given(SCOPES, SCOPES)
def test_a_scope_holds_another_whose_certificates_it_covers_all(one: CrlScope, other: CrlScope) -> None:
    certificates = [
        (frozenset(each), authority) for each in ("", *"abc", "ab", "bc", "ac", "abc") for authority in (0, 1)
    ]
    covers = [
        [scope.covers(points, authority=bool(authority)) for points, authority in certificates]
        for scope in (one, other)
    ]
    assert one.holds(other) <= all(map(operator.ge, *covers))
    assert one.holds(one)
    assert CrlScope().holds(other)


def test_of_two_crls_of_one_ca_the_newest_counts() -> None:
    old = ROOT.crl_pem([1, 2], number=1, this_update=NOW - hour(2))
    new = ROOT.crl_pem([2, 3], number=2, this_update=NOW - hour(1))
    for pair in ((old, new), (new, old)):
        trust = load(ROOT.certificate_pem, *pair)
        assert revoked(trust) == {"cn=test root": {2, 3}}
        assert [facts.number for facts in trust.facts] == [2]
    same_day = ROOT.crl_pem([4], number=3, this_update=NOW - hour(1))
    assert revoked(load(ROOT.certificate_pem, new + same_day)) == {"cn=test root": {4}}


def test_a_crl_is_older_by_date_or_number() -> None:
    def one(number: int, hours: float) -> Crl:
        return load_crls("x.crl", ROOT.crl_pem(number=number, this_update=NOW - hour(hours)))[0]

    held = one(5, 1)
    assert older_than(one(6, 2), held)
    assert older_than(one(4, 0), held)
    assert not older_than(one(5, 1), held)
    assert not older_than(one(6, 1), held)


def test_a_ca_without_a_crl_is_warned_of_when_others_have_one() -> None:
    trust = load(ROOT.certificate_pem + OTHER.certificate_pem, ROOT.crl_pem())
    assert "CN=other root has no CRL while others have" in warnings(trust)[0]


def test_a_revoked_ca_of_the_file_is_not_trusted() -> None:
    intermediate = ROOT.intermediate("middle")
    serial = x509.load_pem_x509_certificate(intermediate.certificate_pem).serial_number
    trust = load(ROOT.certificate_pem + intermediate.certificate_pem, ROOT.crl_pem([serial]), intermediate.crl_pem())
    assert [ca.subject.rfc4514_string() for ca in trust.authorities] == ["CN=test root"]
    assert "CN=middle is revoked" in warnings(trust)[0]
    root_serial = x509.load_pem_x509_certificate(ROOT.certificate_pem).serial_number
    assert load(ROOT.certificate_pem, ROOT.crl_pem([root_serial])).authorities == ()


def test_a_crl_is_read_without_a_ca_and_without_a_clock() -> None:
    """Who signed it, and whether it is current, shows once it is bound."""
    far = ROOT.crl_pem([1], this_update=NOW + hour(1), next_update=NOW + hour(2))
    old = ROOT.crl_pem([2], this_update=NOW - hour(2), next_update=NOW - hour(1))
    trust, dated = load(ROOT.certificate_pem, far + old, OTHER.crl_pem([3])), utc_time(int((NOW + hour(1)).timestamp()))
    unless = "unless clients send an intermediate that did"
    assert revoked(trust) == {"cn=test root": {1}}
    assert [crl.issuer for crl in trust.unbound] == ["CN=other root"]
    assert warnings(trust) == [
        f"0.crl: the CRL of CN=test root is dated {dated}, in the future; check the clock",
        f"1.crl: the CRL of CN=other root is not used: no CA of ca.pem signed it, {unless}",
    ]
    assert "was to be replaced by" in warnings(load(ROOT.certificate_pem, old))[0]


def test_a_crl_may_be_der() -> None:
    pem = ROOT.crl_pem([5])
    der = x509.load_pem_x509_crl(pem).public_bytes(serialization.Encoding.DER)
    assert revoked(load(ROOT.certificate_pem, der)) == revoked(load(ROOT.certificate_pem, pem)) == {"cn=test root": {5}}
    with pytest.raises(MaterialError, match="cannot be parsed"):
        load_crls("x.crl", der[:-1])
    with pytest.raises(MaterialError, match="cannot be parsed"):
        load_crls("x.crl", der + b"x")


def test_another_ca_of_the_same_name_is_another_issuer() -> None:
    """The serial numbers of its clients are its own."""
    twin = Authority.create("test root")
    trust = load(ROOT.certificate_pem + twin.certificate_pem, ROOT.crl_pem([5]))
    root, other = trust.configured
    assert trust.crls.keys() == {issuer_of(root)} != {issuer_of(other)}
    assert len(warnings(trust)) == 1


def test_the_crl_of_a_ca_counts_for_all_its_certificates() -> None:
    again = certified(ROOT, ROOT)
    trust = load(again.certificate_pem + ROOT.certificate_pem, ROOT.crl_pem([5]))
    assert {issuer_of(one) for one in trust.configured} == set(trust.crls)
    assert warnings(trust) == []


def test_a_ca_that_may_not_sign_crls_has_none() -> None:
    """OpenSSL refuses every client where it finds such a one (RFC 5280 section 4.2.1.3)."""
    key = serialization.load_pem_private_key(ROOT.key_pem, None)
    own = x509.load_pem_x509_certificate(ROOT.certificate_pem)
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = x509.CertificateBuilder(own.subject, own.subject, own.public_key(), 1, NOW - hour(1), NOW + hour(1))
    builder = builder.add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
    trust = load(builder.sign(key, hashes.SHA256()).public_bytes(PEM), ROOT.crl_pem([5]))
    assert trust.crls == {}
    assert len(trust.unbound) == 1


@given(st.sets(st.integers(-(1 << 160), 1 << 160) | st.integers(0, 300)), st.integers(-(1 << 170), 1 << 170))
def test_serials_are_a_set_of_numbers(numbers: set[int], other: int) -> None:
    serials = Serials(numbers)
    assert len(serials) == len(numbers)
    assert all(number in serials for number in numbers)
    assert set(serials) == numbers
    assert (other in serials) == (other in numbers)


def test_serials_take_a_few_bytes_each() -> None:
    first = 1 << 158
    tracemalloc.start()
    try:
        serials = Serials(range(first, first + 10_000))
        assert tracemalloc.get_traced_memory()[0] < 10_000 * 25
    finally:
        tracemalloc.stop()
    assert first in serials
