from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import warnings
from collections.abc import Callable, Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.identity import Identity, anchor_of, identity_of, identity_of_subject

KEY = ec.generate_private_key(ec.SECP256R1())
BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
END = dt.datetime(2036, 1, 1, tzinfo=dt.UTC)
CN, O, OU = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME  # noqa: E741 - RFC 4514's


def name(*pairs: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


def certificate(
    subject: x509.Name | None = None,
    sans: Sequence[x509.GeneralName] = (),
    *,
    ekus: Sequence[x509.ObjectIdentifier] = (),
    ca: bool | None = None,
    more: Sequence[x509.ExtensionType] = (),
    issuer: x509.Name | None = None,
    serial: int = 0x0ABC,
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name((CN, "alice")) if subject is None else subject)
        .issuer_name(issuer or name((CN, "Test CA")))
        .public_key(KEY.public_key())
        .serial_number(serial)
        .not_valid_before(BEGIN)
        .not_valid_after(END)
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    if ekus:
        builder = builder.add_extension(x509.ExtendedKeyUsage(ekus), critical=False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def test_everything_that_a_certificate_says() -> None:
    der = certificate(
        name((O, "Acme"), (OU, "platform"), (OU, "search"), (CN, "a,b")),
        [
            x509.DNSName("Api.Example.org"),
            x509.UniformResourceIdentifier("spiffe://example.org/Search/a"),
            x509.RFC822Name("Alice@example.org"),
            x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
            x509.IPAddress(ipaddress.ip_address("2001:0db8::0001")),
        ],
        ekus=[ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH],
        ca=False,
    )
    assert identity_of(der) == Identity(
        subject=r"CN=a\,b,OU=search,OU=platform,O=Acme",
        issuer="CN=Test CA",
        serial="abc",
        sha256=hashlib.sha256(der).hexdigest(),
        not_after=END.timestamp(),
        common_name="a,b",
        organizations=("Acme",),
        organizational_units=("platform", "search"),
        dns_names=("api.example.org",),
        uris=("spiffe://example.org/Search/a",),
        emails=("Alice@example.org",),
        ips=("10.0.0.1", "2001:db8::1"),
    )


def test_alternative_name_alone_is_enough() -> None:
    identity = identity_of(certificate(x509.Name([]), [x509.UniformResourceIdentifier("spiffe://example.org/a")]))
    assert identity.defect == ""
    assert identity.common_name == ""
    assert identity.uris == ("spiffe://example.org/a",)


def test_alternative_names_of_other_kinds_are_told_by_kind() -> None:
    names = [x509.DirectoryName(name((CN, "a"))), x509.DNSName("a.example.org"), x509.RegisteredID(CN)]
    identity = identity_of(certificate(sans=names))
    assert (identity.other_names, identity.dns_names) == (("DirectoryName", "RegisteredID"), ("a.example.org",))


def test_a_ca_is_known_by_its_name_and_key() -> None:
    one, other = (
        anchor_of(x509.load_der_x509_certificate(certificate(name((CN, "A\u200bB")), serial=serial)))
        for serial in (1, 2)
    )
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (one.subject, one.key) == (other.subject, other.key)
    assert (one.subject, one.key) == (r"CN=A\e2\80\8bB", hashlib.sha256(spki).hexdigest())
    assert one.sha256 != other.sha256


def test_unicode_name_is_no_defect() -> None:
    assert identity_of(certificate(name((CN, "Ünïcode-Søk")))).defect == ""


def typed(value: str, kind: _ASN1Type) -> x509.Name:
    return x509.Name([x509.NameAttribute(CN, value, kind)])


@pytest.mark.parametrize("kind", [_ASN1Type.UTF8String, _ASN1Type.PrintableString, _ASN1Type.IA5String])
def test_name_encodings_that_are_read(kind: _ASN1Type) -> None:
    identity = identity_of(certificate(typed("alice", kind)))
    assert (identity.common_name, identity.defect) == ("alice", "")


@pytest.mark.parametrize("kind", [_ASN1Type.BMPString, _ASN1Type.UniversalString, _ASN1Type.T61String])
@pytest.mark.parametrize("which", ["subject", "issuer"])
def test_name_encodings_that_are_not(kind: _ASN1Type, which: str) -> None:
    odd = typed("alice", kind)
    der = certificate(odd) if which == "subject" else certificate(issuer=odd)
    assert identity_of(der).defect.startswith((f"{which} in an encoding", "unparsable"))


URI = x509.UniformResourceIdentifier
INVISIBLE = "control or invisible character in the"
DEFECTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "two_cns": (lambda: certificate(name((CN, "alice"), (CN, "admin"))), "several common names"),
    "two_cns_in_one_rdn": (
        lambda: certificate(
            x509.Name(
                [x509.RelativeDistinguishedName([x509.NameAttribute(CN, "alice"), x509.NameAttribute(CN, "admin")])]
            )
        ),
        "several common names",
    ),
    "nul": (lambda: certificate(name((CN, "admin\x00.evil"))), f"{INVISIBLE} subject"),
    "newline": (lambda: certificate(name((OU, "a\nb"), (CN, "alice"))), f"{INVISIBLE} subject"),
    "right_to_left": (lambda: certificate(name((CN, "admin\u202e"))), f"{INVISIBLE} subject"),
    "zero_width": (lambda: certificate(name((CN, "ad\u200bmin"))), f"{INVISIBLE} subject"),
    "trailing_space": (lambda: certificate(name((CN, "admin "))), "leading or trailing space in the subject"),
    "leading_space": (
        lambda: certificate(name((O, " Acme"), (CN, "admin"))),
        "leading or trailing space in the subject",
    ),
    "issuer_nul": (lambda: certificate(issuer=name((CN, "CA\x00"))), f"{INVISIBLE} issuer"),
    "nothing": (lambda: certificate(x509.Name([])), "empty subject and no alternative name"),
    "server_only": (
        lambda: certificate(ekus=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "extended key usage without clientAuth",
    ),
    "any_eku": (
        lambda: certificate(ekus=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
        "extended key usage without clientAuth",
    ),
    "ca": (lambda: certificate(ca=True), "a CA certificate used as a client's"),
    "two_spiffe": (
        lambda: certificate(sans=[URI("spiffe://a/b"), URI("SPIFFE://a/c")]),
        "a SPIFFE URI beside another URI",
    ),
    "spiffe_and_https": (
        lambda: certificate(sans=[URI("https://a/b"), URI("spiffe://a/c")]),
        "a SPIFFE URI beside another URI",
    ),
    "dns_nul": (lambda: certificate(sans=[x509.DNSName("a\x00.example.org")]), f"{INVISIBLE} alternative name"),
    "dns_space": (lambda: certificate(sans=[x509.DNSName("a b")]), "space in an alternative name"),
    "uri_newline": (lambda: certificate(sans=[URI("spiffe://a/b\n")]), f"{INVISIBLE} alternative name"),
}


@rows("case", DEFECTS)
def test_defect(case: str) -> None:
    build, says = DEFECTS[case]
    assert identity_of(build()).defect == says


def test_non_ascii_dns_name_is_a_defect() -> None:
    der = certificate(sans=[x509.DNSName("abc.example")]).replace(b"abc.example", "äd.example".encode())
    assert identity_of(der).defect in {"unreadable extensions", "non-ASCII alternative name"}


@pytest.mark.parametrize("units", [1, 2, 5, 9])
def test_an_encoding_is_found_in_a_name_of_any_length(units: int) -> None:
    """Lengths of one byte, and in the long form, of names with 64 to some 700 bytes."""
    long = [x509.NameAttribute(OU, f"{number}" * 64) for number in range(units)]
    odd = x509.NameAttribute(O, "Acme", _ASN1Type.BMPString)
    assert identity_of(certificate(x509.Name([*long, x509.NameAttribute(CN, "alice")]))).defect == ""
    for attributes in ([odd, *long], [*long, odd], [*long[:1], odd, *long[1:]]):
        assert identity_of(certificate(x509.Name(attributes))).defect.startswith("subject in an encoding")


@pytest.mark.parametrize("value", [b"", b"\x30\x05", b"\x30\x03\x82\x05a"])
def test_extensions_that_cannot_be_read_are_a_defect(value: bytes) -> None:
    der = certificate(more=[x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, value)])
    identity = identity_of(der)
    assert (identity.subject, identity.common_name) == ("CN=alice", "alice")
    assert identity.defect == "unreadable extensions"


def test_subject_is_fit_for_a_log() -> None:
    subject = identity_of(certificate(name((CN, "a\r\nb\x1b\u2028\x00")))).subject
    assert subject == r"CN=a\0d\0ab\1b\e2\80\a8\00"


def test_a_subject_alone_is_an_identity_without_an_end() -> None:
    subject = name((O, "Acme"), (OU, "search"), (CN, "alice"))
    assert identity_of_subject(subject) == Identity(
        subject="CN=alice,OU=search,O=Acme", issuer="", serial="", sha256="", not_after=float("inf"),
        common_name="alice", organizations=("Acme",), organizational_units=("search",),
    )  # fmt: skip
    assert identity_of_subject(subject, sha256="ab").sha256 == "ab"
    assert identity_of_subject(name((CN, "a\nb"))).defect == f"{INVISIBLE} subject"
    assert identity_of_subject(name((CN, "a"), (CN, "b\n"))).defect == "several common names"


def test_bytes_that_are_no_certificate() -> None:
    sha256 = hashlib.sha256(b"not one").hexdigest()
    assert identity_of(b"not one") == Identity("", "", "", sha256, not_after=0.0, defect="unparsable")


WHOLE = certificate(
    name((O, "Acme"), (CN, "alice")),
    [x509.DNSName("a.example.org"), URI("spiffe://a/b"), x509.IPAddress(ipaddress.ip_address("::1"))],
    ekus=[ExtendedKeyUsageOID.CLIENT_AUTH],
    ca=False,
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 8))
def test_mutated_certificate_never_raises(changes: list[tuple[int, int]], cut: int) -> None:
    der = bytearray(WHOLE)
    for offset, value in changes:
        der[offset] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography warns of odd but readable certificates
        identity = identity_of(bytes(der[: len(der) - cut]))
    assert identity.sha256 == hashlib.sha256(der[: len(der) - cut]).hexdigest()
    assert identity.subject.isprintable()
    assert identity.issuer.isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_never_raise(data: bytes) -> None:
    assert identity_of(data).defect
