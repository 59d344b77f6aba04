"""Distinguished names in the spellings of RFC 4514, OpenSSL and curl."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.subject_names import folded, folded_subject, parsed_subject

QUOTED = r"CN=alice,O=Acme\, Inc.,C=DE"


@rows(
    ("own", "spelling"),
    [
        (QUOTED, 'subject=C = DE, O = "Acme, Inc.", CN = alice'),
        (QUOTED, 'subject= C = DE, O = "Acme, Inc.", CN = alice'),
        (QUOTED, "/C=DE/O=Acme, Inc./CN=alice"),
        (QUOTED, r"c=de; o=acme\2c Inc.; cn=ALICE"),
        ("CN=q,2.5.4.4=B,2.5.4.42=A,2.5.4.12=Dr", "title = Dr, GN = A, SN = B, CN = q"),
        ("CN=a,STREET=Weg 1,L=Ort,ST=Bayern", "CN=a,street=Weg 1,L=Ort,S=Bayern"),
        ("1.2.840.113549.1.9.1=x@y.de,CN=a b", "E=x@y.de,cn=a b"),
        ("CN=c,O=a+OU=b", "O = a + OU = b, CN = c"),
        ("CN=c,O=a+OU=b", "/O=a+OU=b/CN=c"),
        ("CN=Müller,O=x", r"O = x, CN = M\C3\BCller"),
        ("CN=Müller,O=x", r"/O=x/CN=M\xC3\xBCller"),
        ("CN=Müller,O=x", "O=x,CN=Mu\u0308ller"),
        ("CN=a/b=c,O=x", "O=x,CN=a/b=c"),
        (r"CN=\#abc,O=x", 'O = x, CN = "#abc"'),
        (r"OU=a \"q\" b,CN=z", r'CN = z, OU = "a \"q\" b"'),
        ("1.2.3.4=foo,CN=e", "CN=e,1.2.3.4=#0c03666f6f"),
        (r"CN=a,O=b\ ", r"O=b\ ,CN=a"),
    ],
)
def test_one_name(own: str, spelling: str) -> None:
    assert folded_subject(own) == folded_subject(spelling)


@rows(
    "text",
    [
        "",
        "alice",
        "CN=",
        "CN=,O=a",
        "CN=a,",
        "CN=a,,O=b",
        "/",
        "/x",
        "nope=1",
        "CN=#0cff",
        r"CN=\C3",
        "CN=a\\",
        "=",
        "CN",
    ],
)
def test_no_distinguished_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parsed_subject(text)
    assert folded_subject(text) == folded(text)


def test_case_and_composition() -> None:
    assert folded("\u0390") == folded("\u03aa\u0301") == folded("\u03b9\u0308\u0301")


VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)
NAMES = st.lists(
    st.tuples(st.sampled_from([NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.TITLE]), VALUES),
    min_size=1,
    max_size=4,
)


@given(NAMES)
def test_a_written_name_is_read(parts: list[tuple[x509.ObjectIdentifier, str]]) -> None:
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])
    assert parsed_subject(name.rfc4514_string()) == name
    backwards = ",".join(reversed([part.rfc4514_string() for part in name.rdns]))
    assert folded_subject(backwards) == folded_subject(name.rfc4514_string())
