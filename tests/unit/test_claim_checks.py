"""Rules with claims that can never match, that any issuer could meet, or that are written in another form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.rows import rows

from tlsproxy.config.loader import parse
from tlsproxy.config.problems import ConfigError

LOGIN, OTHER = "https://login/", "https://other/"


def issuer(issuer: str = LOGIN, **fields: Any) -> dict[str, Any]:
    return {"name": issuer[8:-1], "issuer": issuer, "audience": "qdrant", "algorithm": "ES256", "pem": "p"} | fields


def rule(match: dict[str, Any], name: str = "a", role: str = "search") -> dict[str, Any]:
    return {"name": name, "match": match, "role": role}


BASE = rule({"ou": "search"}, "base")


def found(*rules: dict[str, Any], issuers: int = 1, **sections: Any) -> list[str]:
    """Problems, or else warnings, of rules behind one by certificate."""
    tree: dict[str, Any] = {
        "tls": {"cert": "c", "key": "k", "ca_cert": "ca"},
        "roles": {"search": {"access": "r"}},
        "identities": [BASE, *rules],
        "jwt_issuers": [issuer(), issuer(OTHER)][:issuers],
    }
    try:
        problems = parse(json.dumps(tree | sections).encode(), Path("/etc/f.yaml"), {}).warnings
    except ConfigError as error:
        return [f"E {one.key}: {one.text}" for one in error.problems]
    return [f"W {one.key}: {one.text}" for one in problems]


@rows(
    ("match", "says"),
    [
        ({"claims": {}}, "E {match}: an empty match would match everybody"),
        ({"claims": {"groups": ["a", "b"]}}, "E {match}.claims.groups: must be text: quote it, or an integer"),
        ({"claims": {"groups": None}}, "E {match}.claims.groups: must be text"),
        ({"claims": {"level": 1.5}}, "E {match}.claims.level: must be text"),
        ({"claims": {"realm_access": {"roles": "ops"}}}, "E {match}.claims.realm_access: must be text: quote it; a"),
        ({"claims": ["groups"]}, "E {match}.claims: must be a mapping: {{groups: sre"),
        ({"groups": "sre"}, "E {match}.groups: unknown key: claims of a token stand under `claims`"),
        ({"iss": LOGIN}, "E {match}.iss: unknown key: claims of a token stand under `claims`"),
        ({"claimz": {"groups": "sre"}}, "E {match}.claimz: unknown key (did you mean 'claims'?)"),
        ({"cnn": "a"}, "E {match}.cnn: unknown key (did you mean 'cn'?)"),
        ({"claims": {"": "a"}}, "E {match}.claims."),
        ({"claims": {"a" * 257: "a"}}, "E {match}.claims."),
        ({"claims": {"groups ": "a"}}, "E {match}.claims.groups : a space at an end"),
        ({"claims": {"groups": ""}}, "E {match}.claims.groups: an empty pattern"),
        ({"claims": {"groups": "a***"}}, "E {match}.claims.groups: '***' is neither"),
        ({"claims": {"iss": "https://logins/"}}, "W {match}.claims.iss: matches nobody: no `issuer` of"),
        ({"claims": {"iss": 1}}, "W {match}.claims.iss: matches nobody"),
        ({"claims": {"groups": "a"}, "cn": "a***"}, "E {match}.cn: '***' is neither"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_meant(match: dict[str, Any], says: str) -> None:
    (told,) = found(rule(match))
    assert told.startswith(says.format(match="identities[1].match"))


@pytest.mark.parametrize(
    "claims",
    [
        {"groups": "sre"},
        {"iss": LOGIN, "https://acme.example/groups": "s*", "kubernetes.io": "x", "level": 3, "admin": True},
        {"iss": "https://**"},
        {"sub": " spaces are claims' own "},
    ],
)
def test_a_rule_that_can_match(claims: dict[str, Any]) -> None:
    assert found(rule({"claims": claims}), rule({"cn": "x", "claims": claims}, "b")) in (
        [],
        ["W identities[2]: never reached: rule 'a' comes first, and matches all that this one does"],
    )


def test_without_issuers_no_token_is_matched() -> None:
    (told,) = found(rule({"claims": {"groups": "a"}}), issuers=0)
    assert (
        told
        == "W identities[1].match.claims: matches nobody: there are no jwt_issuers, and no other tokens are matched"
    )


@pytest.mark.parametrize("iss", [None, "https://**", "https://*/", True])
def test_with_several_issuers_one_is_named_exactly(iss: object) -> None:
    claims = {"groups": "a"} | ({} if iss is None else {"iss": iss})
    (told,) = found(rule({"claims": claims}), issuers=2)
    assert told.startswith("W" if iss is True else "E")
    assert ("iss is needed, without wildcards" in told) is (iss is not True)
    assert not found(rule({"claims": claims | {"iss": OTHER}}), issuers=2)
    twice = [issuer(), issuer(name="again", audience="another")]
    assert not [one for one in found(rule({"claims": claims}), jwt_issuers=twice) if one.startswith("E")], "one issuer"


def test_a_rule_behind_a_wider_one_is_never_reached() -> None:
    wide, both = {"groups": "sre"}, {"groups": "sre", "level": 1}
    never = "never reached: rule 'a' comes first, and matches all that this one does"
    for first, second in (
        ({"claims": wide}, {"claims": wide}),
        ({"claims": wide}, {"claims": both}),
        ({"claims": wide}, {"claims": both, "cn": "agent"}),
        ({"claims": wide, "cn": "agent"}, {"claims": both, "cn": "agent"}),
        ({"claims": {"groups": "**"}}, {"claims": both}),
        ({"claims": {"groups": "s?e"}}, {"claims": {"groups": "sre", "level": "*"}}),
        ({"claims": {"groups": "s*"}}, {"claims": {"groups": "s*", "level": "*"}, "cn": "agent"}),
    ):
        assert found(rule(first), rule(second, "b")) == [f"W identities[2]: {never}"]
        assert found(rule(second), rule(first, "b")) == ([f"W identities[2]: {never}"] if first == second else [])
    for first, second in (
        ({"claims": {"level": 1}}, {"claims": {"level": True}}),
        ({"claims": {"level": 1}}, {"claims": {"level": "1"}}),
        ({"claims": wide, "cn": "agent"}, {"claims": both, "cn": "agent", "ca": "CN=a"}),
        ({"claims": wide, "cn": "agent"}, {"claims": wide}),
        ({"cn": "agent"}, {"claims": wide, "cn": "agent"}),
        ({"claims": {"groups": "s?e"}}, {"claims": {"groups": "s*e"}}),
        ({"claims": {"groups": "s*"}}, {"claims": {"groups": "s**"}}),
        ({"claims": {"groups": "*"}}, {"claims": {"groups": "a/b"}}),
        ({"claims": {"a.b": "x"}}, {"claims": {"a": "x"}}),
    ):
        assert found(rule(first), rule(second, "b")) == []


def test_where_every_client_needs_a_certificate_with_a_role_some_rule_gives_it() -> None:
    by_claims, both = rule({"claims": {"groups": "a"}}), rule({"claims": {"groups": "b"}, "cn": "agent"}, "b")
    told = found(identities=[by_claims, both])
    assert [one.partition(": a cert")[0] for one in told] == ["W identities[0].match.claims: matches nobody"]
    for service in ({"unmapped_certificate": "token"}, {"verify_https_client_certificate": False}):
        assert found(identities=[by_claims, both], service=service) == []
    without = {"tls": {"cert": "c", "key": "k"}, "service": {"verify_https_client_certificate": False}}
    assert found(identities=[by_claims], **without) == []
    (told_of_ca,) = found(identities=[both], **without)
    assert told_of_ca.startswith("E identities: tls.ca_cert is needed")


def test_a_key_has_no_claims() -> None:
    key = {"name": "ci", "sha256": "0" * 64, "role": "search", "require_certificate": {"cn": "a", "claims": {"a": "b"}}}
    (told,) = found(keys=[key])
    assert told == "E keys[0].require_certificate.claims: who sends a key sends no token"
