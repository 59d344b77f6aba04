"""Locks: whom they hold, for how long, and that they only take away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.access import Decision, GlobalMode, Rights
from tlsproxy.authz.admission import Admission, admit
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import Key, Keys, key_digest
from tlsproxy.authz.locks import KINDS, Lock, Locks, selector
from tlsproxy.authz.matcher import Matcher
from tlsproxy.authz.roles import Policy
from tlsproxy.authz.rules import Rule
from tlsproxy.authz.tokens import Tokens, mint, qdrant_verifier

ALICE = Identity(
    subject="CN=alice,OU=platform,O=Acme",
    issuer="CN=Clients CA,O=Acme",
    serial="abc",
    sha256="ab" * 32,
    not_after=2e9,
    common_name="alice",
    dns_names=("api.example.org",),
    uris=("spiffe://example.org/search/a",),
    emails=("Alice@example.org",),
    ips=("10.0.0.1",),
)
BOB = Identity(
    subject="CN=bob,OU=platform,O=Acme",
    issuer="CN=Clients CA,O=Acme",
    serial="abd",
    sha256="cd" * 32,
    not_after=2e9,
    common_name="bob",
)
CLAIMS = {"access": "m", "sub": "user-7", "subject": "Carol", "jti": "t-1 "}
NOW = 1e9


@rows(
    ("kind", "value", "issuer"),
    [
        ("subject", "CN=alice,OU=platform,O=Acme", ""),
        ("subject", "O = Acme, OU = platform, CN = alice", ""),
        ("subject", "subject=O = ACME, OU = Platform, CN = Alice", ""),
        ("subject", "alice", ""),
        ("subject", " Alice ", ""),
        ("subject", "CN=alice", ""),
        ("subject", "spiffe://example.org/search/a", ""),
        ("subject", "API.example.org", ""),
        ("subject", "alice@example.org", ""),
        ("subject", "10.0.0.1", ""),
        ("subject", "/O=Acme/OU=platform/CN=alice", ""),
        ("subject", ' subject= o="Acme"; 2.5.4.3 = alice; OU=#0c08706c6174666f726d ', ""),
        ("subject", r"CN=alic\65,organizationalUnitName=platform,OID.2.5.4.10=Acme", ""),
        ("sha256", "ab" * 32, ""),
        ("sha256", "SHA256 Fingerprint=" + ":".join(["AB"] * 32), ""),
        ("sha256", "sha256:" + "AB" * 32, ""),
        ("serial", "ABC", ""),
        ("serial", "0x0abc", ""),
        ("serial", "0A:BC", ""),
        ("serial", "serial=0A BC", ""),
        ("serial", "abc", "O=Acme,CN=Clients CA"),
    ],
)
def test_every_spelling_of_a_certificate(kind: Any, value: str, issuer: str) -> None:
    locks = Locks([Lock(kind, value, issuer)])
    assert locks.of_identity(ALICE, NOW) is not None
    assert locks.of_identity(BOB, NOW) is None
    assert locks.of_identity(None, NOW) is None


@pytest.mark.parametrize(
    ("kind", "value", "issuer"),
    [
        ("serial", "abc", "CN=another"),
        ("subject", "OU=platform,O=Acme", ""),
        ("subject", "ali", ""),
        ("subject", "CN=", ""),
        ("subject", "*", ""),
        ("key", "alice", ""),
        ("jti", "alice", ""),
    ],
)
def test_others_are_not_held(kind: Any, value: str, issuer: str) -> None:
    assert Locks([Lock(kind, value, issuer)]).of_identity(ALICE, NOW) is None


@pytest.mark.parametrize(
    ("kind", "value"), [("subject", "USER-7"), ("subject", "carol"), ("jti", " t-1"), ("key", "login")]
)
def test_tokens(kind: Any, value: str) -> None:
    locks = Locks([Lock(kind, value)])
    assert locks.of_token("login", CLAIMS, NOW) is not None
    assert locks.of_token("other", {"sub": "user-8", "jti": "t-2"}, NOW) is None


def test_who_acts_in_a_token() -> None:
    deep: dict[str, Any] = {"sub": "user", "act": {"sub": "agent", "act": {"sub": "tool"}}}
    for name in ("user", "agent", "tool"):
        assert Locks([Lock("subject", name)]).of_token("login", deep, NOW) is not None


@pytest.mark.parametrize(
    ("kind", "value", "issuer"),
    [
        ("sha256", "ab", ""),
        ("sha256", "zz" * 32, ""),
        ("serial", "xyz", ""),
        ("serial", "", ""),
        ("subject", " ", ""),
        ("subject", "x" * 2000, ""),
        ("subject", "alice", "CN=ca"),
    ],
)
def test_impossible_values(kind: Any, value: str, issuer: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Lock(kind, value, issuer)


def test_it_ends_at_its_moment() -> None:
    locks = Locks([Lock("subject", "alice", until=NOW)])
    assert locks.of_identity(ALICE, NOW - 0.001) is not None
    assert locks.of_identity(ALICE, NOW) is None
    assert (len(locks.in_force(NOW - 1)), len(locks.in_force(NOW))) == (1, 0)
    assert (locks.differ(NOW - 2, NOW - 1), locks.differ(NOW - 1, NOW), locks.differ(NOW, NOW - 1)) == (0, 1, 1)


NAMES = st.sampled_from(["alice", "CN=bob", "O=Acme,OU=platform,CN=alice", "user-7", "ci", "t-1", "abc", "ab" * 32])


@st.composite
def locks(draw: st.DrawFn) -> Lock:
    kind, value = draw(st.sampled_from(KINDS)), draw(NAMES)
    if kind == "sha256":
        value = draw(st.sampled_from(["ab" * 32, "cd" * 32]))
    if kind == "serial":
        value = draw(st.sampled_from(["abc", "ABD"]))
    return Lock(kind, value, until=draw(st.sampled_from([NOW - 1, NOW + 1])))


KEY = Key("ci", key_digest("ci"), Rights(everywhere=GlobalMode.R))
OPEN = Policy(
    {"role": Rights(everywhere=GlobalMode.M)},
    (Rule("a", Matcher(cn="*"), "role"),),
    Keys((KEY,)),
    Tokens((qdrant_verifier("api_key", "secret"),)),
)
PRESENTED = (None, "ci", "wrong", mint("secret", CLAIMS))


def outcomes(policy: Policy) -> list[Admission | Decision]:
    """Admissions of all callers, by rights alone: principals are compared as objects."""
    found: list[Admission | Decision] = []
    for identity in (None, ALICE, BOB):
        for presented in PRESENTED:
            principal, _ = policy.held(policy.principal_of(identity), NOW)
            found.append(admit(principal, policy, presented, NOW))
    return found


@given(st.lists(locks(), max_size=3), locks())
def test_adding_a_lock_never_widens_and_removing_it_restores(kept: list[Lock], added: Lock) -> None:
    before, after = (outcomes(replace(OPEN, locks=Locks(each))) for each in (kept, [*kept, added]))
    for was, now in zip(before, after, strict=True):
        if isinstance(was, Decision):
            assert isinstance(now, Decision)
        elif isinstance(now, Decision):
            assert (now.reason, now.status) == ("locked", 403)
            assert added.until > NOW
        else:
            assert now.rights == was.rights
    again = outcomes(replace(OPEN, locks=Locks(kept)))
    assert [isinstance(one, Decision) for one in again] == [isinstance(one, Decision) for one in before]


@given(st.text(min_size=1, max_size=30))
def test_any_text_is_a_subject_and_equals_itself(text: str) -> None:
    if text.strip():
        assert selector("subject", text) == selector("subject", f" {text} ")


def test_other_locks_need_no_other_index_of_rules_and_other_rules_do() -> None:
    by_name = Rule("alice", Matcher(cn="alice"), "all")
    policy = Policy({"all": Rights(everywhere=GlobalMode.M)}, (by_name,), Keys())
    locked = policy.with_locks(Locks([Lock("subject", "bob")]))
    assert locked.locks.of_identity(BOB, NOW) is not None
    assert locked._rules is policy._rules
    assert locked.principal_of(ALICE).role == "all"
    assert replace(locked, rules=()).principal_of(ALICE).role == ""
