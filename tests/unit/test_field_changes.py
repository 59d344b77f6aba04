"""Phrases on changed values of the configuration: whatever differs is told, secrets and equal values are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from support.rows import rows

from tlsproxy.config.callers import CaConstraint, JwtIssuer, NamedKey
from tlsproxy.config.model import IdentityRule, ListenerConfig, Role
from tlsproxy.snapshot.field_changes import MAX_PHRASES, MAX_TEXT, description, difference, entry_difference, joined

DIGEST = "5e" * 32
IDP = {"name": "idp", "issuer": "https://idp", "audience": "qdrant", "algorithm": "ES256"}


def grants(**access: str) -> list[dict[str, str]]:
    return [{"collection": name, "access": mode} for name, mode in access.items()]


@rows(
    ("kind", "former", "current", "told"),
    [
        (Role, {"access": grants(a="r")}, {"access": grants(a="r", docs="rw")}, "access rw on docs added"),
        (Role, {"access": grants(a="r", docs="rw")}, {"access": grants(a="r")}, "access rw on docs removed"),
        (Role, {"access": grants(docs="r")}, {"access": grants(docs="prw")}, "access on docs r → prw"),
        (
            Role,
            {"access": grants(docs="m", a="r")},
            {"access": [{"collection": "docs", "access": "rw", "operations": {"deny": ["scroll"]}}, *grants(a="r")]},
            "access on docs m → rw except scroll",
        ),
        (
            Role,
            {"access": "m"},
            {"access": "pr", "operations": {"allow": ["scroll", "count"], "deny": ["facet"]}},
            "access m → pr, operations.allow all → scroll, count, operations.deny facet added",
        ),
        (Role, {"access": "m", "operations": {"allow": []}}, {"access": "m"}, "operations.allow none → all"),
        (Role, {"access": grants(a="r", b="r")}, {"access": grants(b="r", a="r")}, "access in another order"),
        (Role, {"access": "m"}, {"access": grants(a="r", b="rw")}, "access m → r on a, rw on b"),
        (Role, {"access": "r"}, {"access": []}, "access r → none"),
        (Role, {"access": "r"}, {"access": "r", "filter": {"t": "{cn}"}}, "filter t = {cn} added"),
        (Role, {"access": "r", "filter": {"t": "a"}}, {"access": "r", "filter": {"t": "a b"}}, 'filter t a → "a b"'),
        (
            Role,
            {"access": "r", "limits": {"concurrent_requests": 2}},
            {"access": "m", "limits": {"max_body_mb": 8, "per_identity": {"concurrent_requests": 1}}},
            (
                "access r → m, limits.concurrent_requests 2 → none, limits.max_body_mb none → 8, "
                "limits.per_identity none → (concurrent_requests 1)"
            ),
        ),
        (
            IdentityRule,
            {"name": "x", "match": {"cn": "ingest-*"}, "role": "a"},
            {"name": "x", "match": {"sha256": DIGEST}, "role": "b"},
            f"match.cn ingest-* → none, match.sha256 none → {DIGEST}, role a → b",
        ),
        (
            IdentityRule,
            {"name": "x", "match": {"claims": {"level": 1, "admin": True, "text": "true", "gone": "a"}}, "role": "a"},
            {"name": "x", "match": {"claims": {"level": True, "admin": 1, "text": True, "n": "b"}}, "role": "a"},
            (
                'match.claims level 1 → true, match.claims admin true → 1, match.claims text "true" → true, '
                "match.claims n = b added, match.claims gone = a removed"
            ),
        ),
        (
            NamedKey,
            {"name": "k", "sha256": DIGEST, "role": "a", "expires": "2090-01-01T01:00:00+01:00"},
            {"name": "k", "sha256": "ab" * 32, "role": "a", "require_certificate": {"cn": "x"}},
            "expires 2090-01-01T00:00:00Z → none, require_certificate none → (cn x)",
        ),
        (
            JwtIssuer,
            IDP | {"jwks": "https://idp/keys?secret=1"},
            IDP | {"jwks": "https://idp/others?secret=2", "refresh": 5},
            "jwks https://idp/keys → https://idp/others, refresh 300.0 → 5.0",
        ),
        (
            ListenerConfig,
            {"port": 1, "mode": "tcp", "upstream": "a:1", "allow": ["x", "y"]},
            {"port": 1, "mode": "tcp", "upstream": "b:1", "allow": ["y", "z"]},
            "upstream a:1 → b:1, allow z added, allow x removed",
        ),
    ],
)  # fmt: skip
def test_entries(kind: Any, former: dict[str, Any], current: dict[str, Any], told: str) -> None:
    assert joined(entry_difference(kind(**former), kind(**current))) == told


@pytest.mark.parametrize(
    ("former", "current", "told"),
    [
        (SecretStr("a-secret"), None, ""),
        (None, SecretStr("a-secret"), ""),
        ((Path("/a.crl"),), (Path("/a.crl"), Path("/b c.crl")), '"/b c.crl" added'),
        ((), (CaConstraint(ca="CN=p, O=x", dns=("a", "b")),), '(ca "CN=p, O=x", dns a, b) added'),
        (False, True, "false → true"),
        (None, "127.0.0.1:9333", "none → 127.0.0.1:9333"),
    ],
)
def test_settings(former: Any, current: Any, told: str) -> None:
    assert difference(former, current) == told


def test_a_new_entry_has_its_fields_without_defaults_and_digests() -> None:
    assert description(Role(access=(), limits={"per_identity": {}})) == "access none, limits.per_identity ()"  # type: ignore[arg-type]
    key = NamedKey(name="k", sha256=DIGEST, role="a", require_certificate={"ca_sha256": DIGEST})  # type: ignore[arg-type]
    assert description(key) == f"role a, require_certificate.ca_sha256 {DIGEST}"


NAMES = st.text("ab-*", min_size=1, max_size=3)
GRANTS = st.lists(
    st.fixed_dictionaries({"collection": NAMES, "access": st.sampled_from(["r", "rw", "prw"])}), max_size=5
)
ROLES = st.builds(
    Role,
    access=st.sampled_from(["r", "m"]) | GRANTS,
    filter=st.dictionaries(st.text("tk", min_size=1, max_size=2), st.text(max_size=500), max_size=3),
)


@given(ROLES, ROLES)
def test_there_are_words_exactly_where_roles_differ(former: Role, current: Role) -> None:
    told = joined(entry_difference(former, current))
    assert bool(told) == (former != current)
    assert told.count("\n") == 0
    for grant in current.access if isinstance(current.access, tuple) and isinstance(former.access, tuple) else ():
        assert grant in former.access or f"on {grant.collection}" in told or " more" in told


@given(st.integers(0, 40), st.integers(0, 2 * MAX_TEXT))
def test_however_much_there_is_a_phrase_is_bounded(count: int, length: int) -> None:
    former, current = Role(access=()), Role(access=tuple(grants(**{f"c{number}": "r" for number in range(count)})))  # type: ignore[arg-type]
    told = joined(entry_difference(former, current))
    assert told.count("added") == min(count, MAX_PHRASES)
    assert (f"{count - MAX_PHRASES} more" in told) == (count > MAX_PHRASES)
    assert len(difference("", "x" * length)) <= MAX_TEXT + len("none → ")
