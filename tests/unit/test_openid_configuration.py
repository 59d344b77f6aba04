"""OpenID configurations: the URL of one, and what it has to say before its keys are fetched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.config.discovery import configuration_url, openid_configuration
from tlsproxy.errors import MaterialError

ISSUER = "https://idp.example/realms/acme"
WELL_KNOWN = "/.well-known/openid-configuration"
GOOD: dict[str, Any] = {"issuer": ISSUER, "jwks_uri": "https://keys.example/jwks?k=1"}


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://idp.example", f"https://idp.example{WELL_KNOWN}"),
        ("https://idp.example/", f"https://idp.example{WELL_KNOWN}"),
        ("https://idp.example:8443/realms/acme/", f"https://idp.example:8443/realms/acme{WELL_KNOWN}"),
        (f"https://idp.example/t/v2.0{WELL_KNOWN}?appid=1", f"https://idp.example/t/v2.0{WELL_KNOWN}?appid=1"),
        ("https://idp.example/t?appid=1#top", f"https://idp.example/t{WELL_KNOWN}?appid=1"),
        *[(url, url) for url in ("https://idp.example/.well-known/oauth-authorization-server/acme",)],
    ],
)
def test_the_url_of_a_configuration(given: str, url: str) -> None:
    assert configuration_url(given) == url
    assert configuration_url(url) == url


def test_what_it_says() -> None:
    found = openid_configuration("u", json.dumps(GOOD).encode(), ISSUER)
    assert (found.keys_url, found.algorithms) == (GOOD["jwks_uri"], ())
    assert "k=1" not in repr(found)
    named = GOOD | {"id_token_signing_alg_values_supported": ["ES256", 1, "RS256"]}
    assert openid_configuration("u", json.dumps(named).encode(), ISSUER).algorithms == ("ES256", "RS256")
    odd = GOOD | {"id_token_signing_alg_values_supported": "ES256"}
    assert openid_configuration("u", json.dumps(odd).encode(), ISSUER).algorithms == ()


@rows(
    ("document", "text"),
    [
        ("<html>", "is not an OpenID configuration: not JSON"),
        ([], "not a JSON object"),
        ('{"issuer": "a", "issuer": "b"}', "a member comes twice"),
        ({}, "`issuer` and `jwks_uri` must be text"),
        ({"keys": []}, "it is a set of keys, which `jwks` names"),
        (GOOD | {"issuer": None}, "must be text"),
        (GOOD | {"jwks_uri": ["https://keys.example/"]}, "must be text"),
        (GOOD | {"issuer": f"{ISSUER}/"}, "must be equal to the letter; one ends in a slash"),
        (GOOD | {"issuer": ISSUER.upper()}, "must be equal to the letter"),
        (GOOD | {"issuer": "https://idp.example/{tenantid}/v2.0"}, "it is for any tenant: name the URL of yours"),
        (GOOD | {"issuer": "\x1b[2J" + "x" * 9999}, "…"),
        (GOOD | {"jwks_uri": "http://keys.example/jwks"}, "its `jwks_uri` cannot be used: keys over plain http"),
        (GOOD | {"jwks_uri": "https://user:S3CRET@keys.example/"}, "a user or password"),
        (GOOD | {"jwks_uri": "file:///etc/passwd?S3CRET"}, "its `jwks_uri` cannot be used"),
        (GOOD | {"jwks_uri": "/jwks?S3CRET"}, "its `jwks_uri` cannot be used"),
    ],
)
def test_what_is_refused(document: Any, text: str) -> None:
    data = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(MaterialError) as caught:
        openid_configuration("https://idp.example/x", data.encode(), ISSUER)
    told = str(caught.value)
    assert told.startswith("https://idp.example/x: ")
    assert text in told
    assert "S3CRET" not in told
    assert told.isprintable()
    assert len(told) < 500


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_no_other_document_is_one(data: bytes | str) -> None:
    with pytest.raises(MaterialError):
        openid_configuration("u", data.encode() if isinstance(data, str) else data, ISSUER)


@given(st.text(), st.text())
def test_an_issuer_is_equal_to_the_letter_or_refused(named: str, configured: str) -> None:
    data = json.dumps(GOOD | {"issuer": named}).encode()
    try:
        openid_configuration("u", data, configured)
    except MaterialError:
        assert named != configured
    else:
        assert named == configured
