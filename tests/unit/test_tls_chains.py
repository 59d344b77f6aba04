"""Who stays is who would be let in: the rule for chains comes to OpenSSL's verdict, whatever is trusted and sent."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from snapshot_site import SERVER, handshake
from support.rsa_numbers import RsaNumbers

from tlsproxy.tls.chains import Chain, chain_of, defect_of, kept_of
from tlsproxy.tls.context import CIPHERS
from tlsproxy.tls.crls import load_crls
from tlsproxy.tls.peer import peer_of
from tlsproxy.tls.trust import CrlPolicy, Trust, issuer_of

if TYPE_CHECKING:
    from pathlib import Path

DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
SERIALS = count(1)


@dataclass(frozen=True)
class Subject:
    """A name and a key, as several certificates may have them."""

    name: x509.Name
    key: Any
    label: str

    @classmethod
    def of(cls, label: str, key: Any = None) -> Subject:
        return cls(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label[0])]),
            key or ec.generate_private_key(ec.SECP256R1()),
            label,
        )

    @property
    def identifier(self) -> x509.SubjectKeyIdentifier:
        return x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())


def certified(
    subject: Subject,
    by: Subject,
    *more: x509.ExtensionType,
    ca: bool = True,
    length: int | None = None,
    days: tuple[float, float] = (-1, 9),
) -> x509.Certificate:
    start, end = (NOW + DAY * day for day in days)
    builder = x509.CertificateBuilder(by.name, subject.name, subject.key.public_key(), next(SERIALS), start, end)
    own = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(by.identifier)
    for extension in (x509.BasicConstraints(ca, length), subject.identifier, own, *more):
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(by.key, hashes.SHA256())


SERVERS_ONLY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
EXPIRED, EARLY = (-3, -1), (1, 9)
R, S, T, M, N = map(Subject.of, "RSTMN")
NAMESAKE = Subject.of("R'")
TRUSTED = [
    *(certified(R, R), certified(R, R), certified(R, R, days=EXPIRED), certified(R, R, days=EARLY), certified(R, S)),
    *(certified(NAMESAKE, NAMESAKE), certified(S, S, length=0), certified(S, S), certified(T, T, SERVERS_ONLY)),
    *(certified(M, R), certified(M, S), certified(N, M), certified(T, T, length=1)),
]
SENT = [
    *(certified(M, R), certified(M, R, days=EXPIRED), certified(M, S), certified(M, R, length=0), certified(M, T)),
    *(certified(N, M), certified(N, R), certified(R, S), certified(R, T), certified(M, R, SERVERS_ONLY)),
    *(certified(M, NAMESAKE), certified(N, M, days=EARLY), certified(R, R), certified(R, R, days=EXPIRED)),
]
ISSUERS = {one.label: one for one in (R, S, T, M, N, NAMESAKE)}


@cache
def leaf(label: str) -> tuple[x509.Certificate, bytes]:
    """One below this issuer, and its key (PEM)."""
    subject = Subject.of("L")
    key = subject.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certified(subject, ISSUERS[label], ca=False), key


@cache
def crl(label: str, revoked: tuple[int, ...], days: tuple[float, float] = (-1, 9)) -> bytes:
    by = ISSUERS[label]
    start, end = (NOW + DAY * day for day in days)
    entries = [
        x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build() for serial in revoked
    ]
    builder = x509.CertificateRevocationListBuilder(by.name, start, end, revoked_certificates=entries)
    own = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(by.identifier)
    return builder.add_extension(own, critical=False).sign(by.key, hashes.SHA256()).public_bytes(PEM)


class Oracle:
    """Handshakes of OpenSSL, as the gateway's contexts are set."""

    def __init__(self, directory: Path) -> None:
        self._server = directory / "server.pem"
        self._server.write_bytes(SERVER.chain_pem + SERVER.key_pem)
        self._client, self._crls = directory / "client.pem", directory / "crls.pem"

    def chain(
        self, trusted: list[x509.Certificate], issuer: str, sent: list[x509.Certificate], crls: tuple[bytes, ...] = ()
    ) -> Chain | None:
        """That of a client which is let in."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.set_ciphers(CIPHERS)
        server.load_cert_chain(self._server)
        server.load_verify_locations(cadata=b"".join(one.public_bytes(DER) for one in trusted))
        server.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        if crls:
            self._crls.write_bytes(b"".join(crls))
            server.load_verify_locations(self._crls)
            server.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        server.verify_mode = ssl.CERT_REQUIRED
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        certificate, key = leaf(issuer)
        self._client.write_bytes(b"".join([key, *(one.public_bytes(PEM) for one in (certificate, *sent))]))
        client.load_cert_chain(self._client)
        try:
            peer = peer_of(handshake(server, client)[0])
        except ssl.SSLCertVerificationError:
            return None
        assert peer is not None
        return peer.chain


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("oracle"))


def some(certificates: list[x509.Certificate], *, least: int = 0) -> st.SearchStrategy[list[x509.Certificate]]:
    return st.lists(st.sampled_from(certificates), min_size=least, max_size=4, unique=True)


def ambiguous(certificates: list[x509.Certificate]) -> bool:
    """OpenSSL takes one of several certificates of a name for good; another may be the one that leads on."""
    return any(len({_kind(one) for one in certificates if one.subject == other.subject}) > 1 for other in certificates)


def _kind(certificate: x509.Certificate) -> tuple[object, ...]:
    extensions = certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    above = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    return defect_of(certificate), constraints.path_length, above, issuer_of(certificate)


EVERYTHING = [*TRUSTED[:1], *TRUSTED[5:8], *SENT[:3], *TRUSTED[11:]]
"""By which every chain here is verified."""


def known(oracle: Oracle, issuer: str, sent: list[x509.Certificate]) -> Chain:
    chain = oracle.chain(EVERYTHING, issuer, sent)
    assume(chain is not None)
    assert chain is not None
    return chain


@given(st.sampled_from(sorted(ISSUERS)), some(SENT), some(TRUSTED, least=1))
@settings(max_examples=15, deadline=None)
def test_after_the_cas_have_changed_the_verdict_is_that_of_a_new_handshake(
    oracle: Oracle, issuer: str, sent: list[x509.Certificate], after: list[x509.Certificate]
) -> None:
    chain = known(oracle, issuer, sent)
    verdict = Trust.of("ca.pem", after, (), CrlPolicy()).verdict_of(chain, time.time())
    again = oracle.chain(after, issuer, sent)
    if again is not None:
        assert verdict.refusal == ""
        assert verdict.issuers[-1].certificate in after
    if not ambiguous(after):
        assert (again is None) == bool(verdict.refusal)
        assert verdict.issuers == (again.issuers if again is not None else ())


@given(
    st.sampled_from("RMNS"),
    st.lists(st.sampled_from(["R", "S", "M", "N"]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from("RMN"), max_size=1),
    st.sampled_from([(-1, 9), (-1, 9), EXPIRED, EARLY]),
)
@settings(max_examples=15, deadline=None)
def test_the_crls_refuse_whom_openssl_refuses_by_them(
    oracle: Oracle, issuer: str, with_crls: list[str], revoked: list[str], days: tuple[float, float]
) -> None:
    """OpenSSL looks at leaves alone; the rule is the same for those above them."""
    trusted = [TRUSTED[0], TRUSTED[7], TRUSTED[9], TRUSTED[11]]
    serials = tuple(leaf(label)[0].serial_number for label in revoked)
    crls = tuple(crl(label, serials, days) for label in with_crls)
    chain = known(oracle, issuer, [])
    loaded = [one for data in crls for one in load_crls("crl.pem", data)]
    trust = Trust.of("ca.pem", trusted, loaded, CrlPolicy())
    assert (oracle.chain(trusted, issuer, [], crls) is None) == bool(trust.verdict_of(chain, time.time()).refusal)


@given(st.sampled_from(sorted(ISSUERS)), some(SENT), some(TRUSTED), st.floats(-4, 11), st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_until_the_next_change_time_alone_changes_nothing(
    oracle: Oracle, issuer: str, sent: list[x509.Certificate], after: list[x509.Certificate], days: float, share: float
) -> None:
    chain, moment = known(oracle, issuer, sent), (NOW + DAY * days).timestamp()
    loaded = load_crls("crl.pem", crl("R", ()))
    for crls in ((), loaded):
        trust = Trust.of("ca.pem", after, crls, CrlPolicy())
        until = trust.verdict_of(chain, moment).until
        assert until > moment
        later = moment + (min(until, moment + 10_000_000) - moment) * share * 0.999
        assert trust.verdict_of(chain, later).refusal == trust.verdict_of(chain, moment).refusal


def chain_below(*path: x509.Certificate, sent: tuple[x509.Certificate, ...] = ()) -> Chain:
    ders = [one.public_bytes(DER) for one in path]
    return chain_of(ders, kept_of([ders[0], *(one.public_bytes(DER) for one in sent)]))


def refusal(chain: Chain, *trusted: x509.Certificate, now: float | None = None, **policy: Any) -> str:
    crls = [one for data in policy.pop("crls", ()) for one in load_crls("crl.pem", data)]
    return Trust.of("ca.pem", trusted, crls, CrlPolicy(**policy)).verdict_of(chain, now or time.time()).refusal


def test_a_ca_may_be_issued_anew_crossed_or_moved() -> None:
    root, again, crossed, other, middle = TRUSTED[0], TRUSTED[1], TRUSTED[4], TRUSTED[7], SENT[0]
    direct = chain_below(leaf("R")[0], root)
    assert refusal(direct, again) == refusal(direct, root, again) == refusal(direct, crossed) == ""
    assert refusal(direct, other) == refusal(direct, TRUSTED[5]) == "issuer_not_trusted"
    below = chain_below(leaf("M")[0], middle, root, sent=(middle,))
    assert refusal(below, middle) == refusal(below, again) == refusal(below, TRUSTED[9], other) == ""
    under_middle = chain_below(leaf("M")[0], middle, sent=(middle,))
    assert refusal(under_middle, root) == ""
    assert refusal(under_middle, TRUSTED[5]) == "issuer_not_trusted"
    twin = SENT[2]
    assert refusal(chain_below(leaf("M")[0], middle, root, sent=(twin, middle)), other) == ""
    assert refusal(chain_below(leaf("M")[0], middle, root, sent=(middle, twin)), other) == "issuer_not_trusted"
    assert refusal(chain_below(leaf("M")[0], twin, other, sent=(SENT[1], twin)), other) == ""
    assert refusal(below, other) == "issuer_not_trusted"


def test_a_client_that_sends_its_root_is_judged_by_what_is_trusted() -> None:
    """A root of its name and key that its leaf does not name is no issuer of that root either."""
    builder = x509.CertificateBuilder(R.name, R.name, R.key.public_key(), 7, NOW - DAY, NOW + DAY)
    by_serial = x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(R.name)], TRUSTED[0].serial_number)
    named = builder.add_extension(by_serial, critical=False).sign(R.key, hashes.SHA256())
    chain = chain_below(named, TRUSTED[0], sent=(TRUSTED[0],))
    assert refusal(chain, TRUSTED[0]) == ""
    assert refusal(chain, TRUSTED[1]) == "issuer_not_trusted"


def test_name_constraints_that_are_new_are_for_a_handshake_to_check() -> None:
    here, there = (x509.NameConstraints([x509.DNSName(name)], None) for name in ("here.example", "there.example"))
    root, same, other = certified(R, R, here), certified(R, R, here), certified(R, R, there)
    chain = chain_below(leaf("R")[0], root)
    assert refusal(chain, same) == refusal(chain, TRUSTED[0]) == ""
    assert refusal(chain, other) == "issuer_not_trusted"
    assert refusal(chain_below(leaf("R")[0], TRUSTED[0]), root) == "issuer_not_trusted"


def test_an_intermediate_that_the_client_did_not_send_counts_while_it_is_trusted() -> None:
    middle = TRUSTED[9]
    chain = chain_below(leaf("M")[0], middle)
    assert refusal(chain, middle) == ""
    assert refusal(chain, TRUSTED[0]) == "issuer_not_trusted"


def test_each_certificate_of_the_path_has_dates() -> None:
    middle = certified(M, R, days=(-1, 1))
    chain = chain_below(leaf("M")[0], middle, TRUSTED[0], sent=(middle,))
    end = (NOW + DAY).timestamp()
    trust = Trust.of("ca.pem", TRUSTED[:1], (), CrlPolicy())
    assert trust.verdict_of(chain, time.time()).until == end
    assert trust.verdict_of(chain, end - 1).refusal == ""
    assert trust.verdict_of(chain, end).refusal == "certificate_expired"
    assert refusal(chain, TRUSTED[0], now=(NOW - 2 * DAY).timestamp()) == "certificate_not_yet_valid"
    assert refusal(chain_below(leaf("R")[0], TRUSTED[0]), TRUSTED[2]) == "certificate_expired"
    assert refusal(chain_below(leaf("R")[0], TRUSTED[0]), TRUSTED[3]) == "certificate_not_yet_valid"
    assert refusal(chain_below(leaf("R")[0], TRUSTED[0]), TRUSTED[2], TRUSTED[1]) == ""


def test_a_serial_number_is_revoked_for_one_name_and_key() -> None:
    chain = chain_below(leaf("R'")[0], TRUSTED[5])
    serial = leaf("R'")[0].serial_number
    both = TRUSTED[0], TRUSTED[5]
    lists = crl("R", (serial,)), crl("R'", ())
    assert refusal(chain, *both, crls=lists) == ""
    assert refusal(chain, *both, crls=(crl("R'", (serial,)),)) == "certificate_revoked"
    with_root = chain_below(leaf("R'")[0], TRUSTED[5], sent=(TRUSTED[5],))
    assert refusal(with_root, TRUSTED[0], crls=lists[:1]) == "issuer_not_trusted"


def test_a_revoked_intermediate_takes_its_clients_with_it() -> None:
    middle = SENT[0]
    chain = chain_below(leaf("M")[0], middle, TRUSTED[0], sent=(middle,))
    lists = (crl("R", (middle.serial_number,)), crl("M", ()))
    assert (
        refusal(chain, TRUSTED[0], TRUSTED[9], crls=lists) == ""
    )  # another certificate of the intermediate is trusted
    assert refusal(chain, TRUSTED[0], crls=lists[:1], required=False) == "certificate_revoked"
    assert refusal(chain, TRUSTED[0], middle, crls=lists) == "certificate_revoked"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, ("crl_missing", "crl_expired", "crl_missing")),
        ({"required": False}, ("", "crl_expired", "")),
        ({"deny_expired": False}, ("crl_missing", "", "crl_missing")),
    ],
)
def test_the_policies_say_what_is_refused(policy: dict[str, bool], expected: tuple[str, str, str]) -> None:
    """Without a CRL of one's own issuer, with one that has run out, and with one of tomorrow."""
    chain = chain_below(leaf("R")[0], TRUSTED[0])
    lists = (crl("S", ()), crl("R", (), EXPIRED), crl("R", (), EARLY))
    trusted = TRUSTED[0], TRUSTED[7]
    assert tuple(refusal(chain, *trusted, crls=(one,), **policy) for one in lists) == expected
    assert refusal(chain, *trusted, **policy) == refusal(chain, *trusted, crls=(crl("R", ()),), **policy) == ""
    revoked = crl("R", (leaf("R")[0].serial_number,), EXPIRED)
    assert refusal(chain, *trusted, crls=(revoked,), **policy) == "certificate_revoked"


URL = "http://crl.example/"


def scoped(revoked: int = 0, **fields: Any) -> bytes:
    """A CRL of R for a part of its certificates."""
    base = {
        "full_name": None, "relative_name": None, "only_contains_user_certs": False, "only_contains_ca_certs": False,
        "only_some_reasons": None, "indirect_crl": False, "only_contains_attribute_certs": False,
    }  # fmt: skip
    point = x509.IssuingDistributionPoint(**{**base, **fields})
    entry = x509.RevokedCertificateBuilder().serial_number(revoked or 1 << 60).revocation_date(NOW).build()
    builder = x509.CertificateRevocationListBuilder(R.name, NOW - DAY, NOW + DAY, revoked_certificates=[entry])
    return builder.add_extension(point, critical=True).sign(R.key, hashes.SHA256()).public_bytes(PEM)


def named(name: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(URL + name)]


def test_a_distribution_point_says_for_whom_a_crl_is_the_whole_list() -> None:
    subject = Subject.of("L")
    points = x509.CRLDistributionPoints([x509.DistributionPoint(named("a"), None, None, None)])
    at_a = chain_below(certified(subject, R, points, ca=False), TRUSTED[0])
    anywhere = chain_below(leaf("R")[0], TRUSTED[0])
    for crls, expected in (
        ([scoped(full_name=named("a"))], ("", "")),
        ([scoped(full_name=named("b"))], ("crl_missing", "")),
        ([scoped(full_name=named("b")), scoped(full_name=named("a"))], ("", "")),
        ([scoped(only_contains_user_certs=True)], ("", "")),
        ([scoped(only_contains_ca_certs=True)], ("crl_missing", "crl_missing")),
        ([scoped(leaf("R")[0].serial_number, full_name=named("b"))], ("crl_missing", "certificate_revoked")),
    ):
        assert (refusal(at_a, TRUSTED[0], crls=crls), refusal(anywhere, TRUSTED[0], crls=crls)) == expected


def test_an_intermediate_needs_a_crl_where_its_issuer_has_those_of_cas() -> None:
    middle = SENT[0]
    chain = chain_below(leaf("M")[0], middle, TRUSTED[0], sent=(middle,))
    trusted, own = (TRUSTED[0], *TRUSTED[7:8]), crl("M", ())
    path = chain_below(leaf("N")[0], SENT[5], middle, TRUSTED[0], sent=(SENT[5], middle))
    assert refusal(chain, *trusted, crls=(own, crl("R", ()))) == ""
    assert refusal(chain, *trusted, crls=(own, scoped(only_contains_ca_certs=True, full_name=named("a")))) == ""
    assert refusal(chain, *trusted, crls=(own, crl("R", (), EXPIRED))) == "crl_expired"
    crls = (crl("N", ()), scoped(only_contains_user_certs=True))
    assert refusal(path, TRUSTED[11], TRUSTED[0], crls=crls) == ""


@pytest.mark.parametrize("revoked", [False, True])
def test_a_crl_counts_for_an_intermediate_that_comes_with_the_client(oracle: Oracle, *, revoked: bool) -> None:
    """As step-ca has it: the file holds the root alone, and the intermediate signs certificates and their CRL."""
    middle = SENT[0]
    data = crl("M", (leaf("M")[0].serial_number,) if revoked else ())
    chain = chain_below(leaf("M")[0], middle, TRUSTED[0], sent=(middle,))
    assert refusal(chain, TRUSTED[0], crls=(data,)) == ("certificate_revoked" if revoked else "")
    assert refusal(chain, TRUSTED[0], crls=(data,), required=False) == ("certificate_revoked" if revoked else "")
    assert refusal(chain_below(leaf("R")[0], TRUSTED[0]), TRUSTED[0], crls=(data,)) == "crl_missing"
    assert (oracle.chain(TRUSTED[:1], "M", [middle], (data,)) is None) == revoked


def test_no_more_certificates_are_looked_at_than_a_chain_has() -> None:
    """Whoever sends many that lead nowhere makes no signature be verified, and none be kept."""
    middle = SENT[0]
    strangers = *(certified(Subject.of(name), R) for name in "XM"), certified(Subject.of("R"), S)
    chain = chain_below(leaf("M")[0], middle, TRUSTED[0], sent=(*strangers, middle))
    assert [one.certificate for one in chain.sent] == [middle]
    many = chain_below(leaf("M")[0], middle, TRUSTED[0], sent=(*strangers * 6, middle))
    assert many.sent == ()
    assert kept_of([b"leaf", bytes(10_000), b"small"]) == (b"small",)


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [
        (certified(R, R, ca=False), "is not a CA"),
        (certified(T, T, SERVERS_ONLY), "lacks clientAuth"),
        (certified(Subject.of("W", RsaNumbers(1024)), R), "1024 bits"),
        (certified(Subject.of("W", ec.generate_private_key(ec.SECP192R1())), R), "secp192r1"),
        (certified(R, R, length=0), ""),
        (certified(Subject.of("W", RsaNumbers(2048)), R), ""),
    ],
)
def test_a_ca_that_vouches_for_nobody_is_told(certificate: x509.Certificate, expected: str) -> None:
    assert expected in defect_of(certificate)
    assert bool(defect_of(certificate)) == bool(expected)
