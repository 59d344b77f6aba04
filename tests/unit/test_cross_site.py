from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.cross_site import cross_site, is_cross_site
from tlsproxy.config.endpoints import check_origin
from tlsproxy.errors import Form

HOST = b"qdrant.example.org:6333"
OWN = b"https://qdrant.example.org:6333"
APP = b"https://app.example.org"
words = st.sampled_from(
    [b"same-origin", b"none", b"same-site", b"cross-site", b"null", b"", b"?1", OWN, APP, b"https://evil.example.org"]
) | st.binary(max_size=40)
named = st.tuples(st.sampled_from([b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"referer"]), words)


@given(st.lists(named, max_size=4), st.sampled_from([frozenset(), frozenset({APP})]))
def test_only_a_browser_that_names_our_own_pages_or_nothing_at_all_is_from_here(
    fields: list[tuple[bytes, bytes]], allowed: frozenset[bytes]
) -> None:
    origins = [value for name, value in fields if name == b"origin"]
    sites = [value for name, value in fields if name == b"sec-fetch-site"]
    listed = origins == [APP] and bool(allowed)
    own = (not origins or (len(origins) == 1 and origins[0].lower() == OWN)) and set(sites) <= {b"same-origin", b"none"}
    assert is_cross_site(fields, HOST, allowed) == (not listed and not own)


@given(st.from_regex(rb"\A[a-z][a-z0-9.\-]{0,20}(:[1-9][0-9]{0,3})?\Z"))
def test_our_own_origin_is_the_authority_of_the_request_whatever_its_case(authority: bytes) -> None:
    origin = b"https://" + authority
    for asked in (authority, authority.upper()):
        assert not is_cross_site([(b"origin", origin)], asked, frozenset())
    assert is_cross_site([(b"origin", origin + b"x")], authority, frozenset())
    assert is_cross_site([(b"origin", b"http://" + authority)], authority, frozenset())


@rows(
    ("origins", "authority", "cross"),
    [
        ([APP], HOST, False),  # trusted
        ([APP, APP], HOST, True),  # no browser sends two
        ([OWN, OWN], HOST, True),
        ([OWN, APP], HOST, True),
        ([b"https://qdrant.example.org"], b"qdrant.example.org:443", False),
        ([b"https://qdrant.example.org:443"], b"qdrant.example.org", False),
        ([b"https://qdrant.example.org:443"], b"qdrant.example.org:443", False),
        ([OWN], b"qdrant.example.org:443", True),
    ],
)
def test_one_origin_that_is_trusted_or_ours(origins: list[bytes], authority: bytes, *, cross: bool) -> None:
    assert is_cross_site([(b"origin", origin) for origin in origins], authority, frozenset({APP})) == cross


def test_a_refusal_has_the_form_of_what_was_asked() -> None:
    assert (cross_site().status, cross_site().reason, cross_site(Form.TEXT).form) == (403, "cross_site", Form.TEXT)
    assert cross_site().text == (
        "Forbidden: a web page of another origin may not use a client certificate; "
        "it must send a key or token of its own"
    )


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.org", "https://app.example.org:8443", "http://localhost:3000", "https://[2001:db8::1]:8443"],
)
def test_an_origin_as_a_browser_writes_it(origin: str) -> None:
    check_origin(origin)


@rows(
    ("origin", "says"),
    [
        ("*", "list each origin"),
        ("null", "list each origin"),
        ("https://App.example.org", "a browser writes 'https://app.example.org'"),
        ("https://app.example.org/", "a browser writes 'https://app.example.org'"),
        ("https://app.example.org/page?x#y", "a browser writes 'https://app.example.org'"),
        ("https://app.example.org:443", "a browser writes 'https://app.example.org'"),
        ("http://localhost:80", "a browser writes 'http://localhost'"),
        ("https://[2001:DB8:0::1]", "a browser writes 'https://[2001:db8::1]'"),
        ("app.example.org", "is expected"),
        ("https://user:s3cret@app.example.org", "is expected"),
        ("https://bücher.example", "xn--"),
        ("https://", "is expected"),
        ("https://a:99999", "is expected"),
        ("https://[::1", "is expected"),
        ("file:///x", "is expected"),
        ("", "is expected"),
        ("https://*.example.org/", "is expected"),
        ("https://a b", "is expected"),
    ],
)
def test_what_no_browser_would_send_is_an_error_that_says_what_it_would(origin: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        check_origin(origin)
    assert says in str(caught.value)
    assert "s3cret" not in str(caught.value)
