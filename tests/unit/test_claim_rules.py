"""Rules by claims of a token: paths, values, the first match, and the rights that come of it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.access import Decision, GlobalMode, Grant, Grants, Rights
from tlsproxy.authz.admission import Admission, admit
from tlsproxy.authz.claim_paths import values_at
from tlsproxy.authz.claims import MalformedToken, read_claims
from tlsproxy.authz.globs import glob_matches
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import Key, Keys, key_digest
from tlsproxy.authz.matcher import Claim, ClaimMatcher, Matcher
from tlsproxy.authz.roles import Policy
from tlsproxy.authz.rules import Rule, Rules
from tlsproxy.authz.tokens import Tokens, mint, qdrant_verifier
from tlsproxy.qdrant.rest_decision import decide_request
from tlsproxy.qdrant.router import recognise

AGENT = Identity(subject="CN=agent", issuer="CN=ca", serial="1", sha256="00", not_after=2e9, common_name="agent")
NOW = 1e9
ISSUER = replace(qdrant_verifier("login", "secret"), issuer="https://login/", audience="qdrant", groups_claim="groups")
OWN = qdrant_verifier("api_key", "own")
ROLES = {
    "all": Rights(everywhere=GlobalMode.M),
    "read": Rights(everywhere=GlobalMode.R),
    "docs": Rights(grants=Grants(Grant("docs", write=True, extras=True))),
    "logs": Rights(grants=Grants(Grant("logs", write=False, extras=True))),
}


def claims_of(**given: Any) -> ClaimMatcher:
    return ClaimMatcher(tuple(Claim.of(path, value) for path, value in given.items()))


def rule(role: str, match: Matcher | None = None, **claims: Any) -> Rule:
    return Rule(f"rule-{role}", match or Matcher(), role, claims_of(**claims))


def policy(*rules: Rule, unmapped: bool = False, role: str = "") -> Policy:
    keys = Keys((Key("ci", key_digest("ci"), ROLES["all"]),))
    return Policy(ROLES, rules, keys, Tokens((OWN, replace(ISSUER, role=role))), unmapped)


def token(**claims: Any) -> str:
    return mint("secret", {"iss": "https://login/", "aud": "qdrant", **claims})


def outcome(held: Policy, presented: str | None, identity: Identity | None = None) -> Admission | Decision:
    return admit(held.principal_of(identity), held, presented, NOW)


def rights(held: Policy, presented: str | None, identity: Identity | None = None) -> str:
    """As text, or the reason of the refusal."""
    admitted = outcome(held, presented, identity)
    return admitted.reason if isinstance(admitted, Decision) else " & ".join(map(str, admitted.rights))


NESTED = {
    "groups": ["sre", "ops", "", 7, True, None, ["inner"], {"a": "b"}, 1.5],
    "realm_access": {"roles": ["ops"], "a.b": {"c": "deep"}},
    "realm_access.exact": "whole",
    "https://acme.example/groups": ["url"],
    "kubernetes.io": {"serviceaccount": {"name": "ingest"}, "namespace": "search"},
    "kubernetes": {"io": {"namespace": "hidden"}},
    "a": {"b": "short"},
    "a.b": {"x": 1},
    "": {"": "empty", "x": "y"},
    "level": 3,
    "number": 1.0,
    "huge": 2**70,
    "admin": True,
    "off": False,
    "nothing": None,
    "empty": [],
    "text": "",
    "object": {"name": "n"},
    "twice": ["x", "x", 1, True, 1],
}


@rows(
    ("path", "expected"),
    [
        ("groups", ("sre", "ops", 7, True)),
        ("realm_access.roles", ("ops",)),
        ("realm_access.exact", ("whole",)),
        ("realm_access.a.b.c", ("deep",)),
        ("https://acme.example/groups", ("url",)),
        ("kubernetes.io.namespace", ("search",)),
        ("kubernetes.io.serviceaccount.name", ("ingest",)),
        ("a.b.x", (1,)),
        ("a.b", ()),
        ("a.b.y", ()),
        (".", ("empty",)),
        (".x", ("y",)),
        ("level", (3,)),
        ("level.x", ()),
        ("groups.a", ()),
        ("number", ()),
        ("huge", (2**70,)),
        ("off", (False,)),
        ("nothing", ()),
        ("empty", ()),
        ("text", ()),
        ("object", ()),
        ("object.name", ("n",)),
        ("Groups", ()),
        ("absent", ()),
        ("twice", ("x", 1, True)),
    ],
)
def test_a_path_is_an_exact_name_or_the_longest_name_and_the_rest(path: str, expected: tuple[object, ...]) -> None:
    found = values_at(NESTED, path)
    assert [(type(one), one) for one in found] == [(type(one), one) for one in expected]


@rows(
    ("claims", "expected"),
    [
        ({"groups": "sre"}, True),
        ({"groups": "s*"}, True),
        ({"groups": "SRE"}, False),
        ({"groups": "inner"}, False),
        ({"groups": "**"}, True),
        ({"groups": "7"}, False),
        ({"groups": 7}, True),
        ({"groups": True}, True),
        ({"groups": 1}, False),
        ({"admin": "true"}, False),
        ({"admin": 1}, False),
        ({"level": 3, "off": False}, True),
        ({"level": "**"}, False),
        ({"off": 0}, False),
        ({"text": "**"}, False),
        ({"nothing": "**"}, False),
        ({"nothing": "null"}, False),
        ({"groups": "sre", "level": 4}, False),
        ({"object": "**"}, False),
        ({}, False),
    ],
)
def test_all_claims_must_hold_and_one_value_of_each(claims: dict[str, Any], *, expected: bool) -> None:
    matcher = claims_of(**claims)
    assert matcher.matches(NESTED) is expected
    assert bool(list(matcher.misses(NESTED))) is (not expected and bool(claims))


@rows(
    ("pattern", "value", "expected"),
    [
        ("alice@*", "alice@example.org", True),
        ("*@example.org", "a.b@example.org", True),
        ("*@example.org", "a/b@example.org", False),
        ("**@example.org", "a/b@example.org", True),
        ("repo:acme/*:ref:refs/heads/main", "repo:acme/search.v2:ref:refs/heads/main", True),
        ("repo:acme/*:ref:refs/heads/main", "repo:acme/a/b:ref:refs/heads/main", False),
        ("spiffe://example.org/*", "spiffe://example.org/search", True),
        ("spiffe://example.org/*", "spiffe://example.org/search/a", False),
        ("a?c", "a.c", True),
        ("a?c", "a/c", False),
        ("sre", "sre\u200b", False),
        ("caf\u00e9", "cafe\u0301", False),
    ],
)
def test_a_star_in_claims_stops_at_a_slash_only(pattern: str, value: str, *, expected: bool) -> None:
    assert claims_of(sub=pattern).matches({"sub": value}) is expected


def test_a_miss_is_told_with_its_kind() -> None:
    assert list(claims_of(level="3", groups="dev", absent="x", off=0).misses(NESTED)) == [
        'level is 3, not "3"',
        'groups is "sre" or "ops" or 7 or true, not "dev"',
        'absent is absent, not "x"',
        "off is false, not 0",
    ]
    many = {"groups": [f"g{number}" for number in range(500)]}
    (told,) = claims_of(groups="x").misses(many)
    assert "and 490 more" in told
    assert len(told) < 200


def test_a_rule_gives_a_token_without_access_its_rights() -> None:
    held = policy(rule("docs", groups="sre"))
    assert rights(held, token(groups=["dev", "sre"])) == "docs rw"
    for claims in ({}, {"groups": ["dev"]}, {"groups": []}, {"groups": None}, {"groups": {"sre": "sre"}}):
        assert rights(held, token(**claims)) == "token_without_access"
    assert rights(held, token(groups="sre", aud="other")) == "token_signature", "of the signer that was tried first"
    assert rights(held, mint("own", {"groups": "sre"})) == "token_without_access"
    assert rights(held, mint("own", {"groups": "sre", "access": "r"})) == "r", "Qdrant's own stay Qdrant's"


def test_a_rule_is_found_by_whichever_of_its_conditions_is_rare() -> None:
    agent = Matcher(cn="agent")
    held = policy(rule("docs", agent, level=1), rule("logs", agent, level=True), rule("read", agent, level="1"))
    for level, expected in ((1, "docs rw"), (True, "logs r"), ("1", "r"), ([2, True], "logs r")):
        assert rights(held, token(level=level), AGENT) == expected
        assert rights(held, token(level=level)) == "token_without_access"
    for level in (2, False, "true", 1.0, None):
        assert rights(held, token(level=level), AGENT) == "token_without_access"


def test_all_that_apply_intersect() -> None:
    held = policy(Rule("agents", Matcher(cn="agent"), "read"), rule("docs", groups="sre"), role="all")
    assert rights(held, token(groups="sre")) == "docs rw & m"
    assert rights(held, token(groups="sre", access="r")) == "r & docs rw & m"
    assert rights(held, token(groups="sre"), AGENT) == "r & docs rw & m"
    assert rights(held, token(groups="dev", access="r"), AGENT) == "r & r & m"
    assert rights(held, token(groups="dev"), AGENT) == "token_without_access"
    assert rights(held, None, AGENT) == "r"


def test_the_first_rule_decides_among_those_with_claims() -> None:
    held = policy(rule("docs", groups="sre"), Rule("c", Matcher(cn="agent"), "all"), rule("logs", groups="*"))
    assert rights(held, token(groups=["dev", "sre"])) == "docs rw"
    assert rights(held, token(groups=["dev"])) == "logs r"
    assert rights(held, token(groups=["dev"]), AGENT) == "m & logs r"


def test_both_kinds_in_a_rule_mean_both() -> None:
    held = policy(rule("docs", Matcher(cn="agent"), **{"act.sub": "agent-1"}))
    acting = token(sub="alice", act={"sub": "agent-1"})
    assert rights(held, acting, AGENT) == "docs rw", "an unmapped certificate, which that rule names"
    assert rights(held, acting) == "token_without_access"
    other = replace(AGENT, common_name="other")
    assert rights(held, acting, other) == "no_role"
    assert held.principal_of(other).refusal is not None, "no token helps this certificate"
    for refused in (None, "ci", token(act={"sub": "agent-2"}, access="m"), mint("own", {"access": "m"})):
        assert rights(held, refused, AGENT) == "no_role"
    assert rights(held, token(act={"sub": "agent-2"}), AGENT) == "token_without_access"
    assert rights(held, "wrong", AGENT) == "invalid_key"


def test_a_certificate_that_needs_a_token_is_told() -> None:
    alone = policy(rule("docs", Matcher(cn="agent"), groups="sre")).principal_of(AGENT)
    assert alone.unmapped is not None
    assert "alone: a rule of `identities` gives it one together with claims of a token" in alone.unmapped.text


def test_a_rule_by_claims_alone_does_not_admit_an_unmapped_certificate() -> None:
    by_claims, both = rule("docs", groups="sre"), rule("logs", Matcher(cn="agent"), groups="sre")
    assert rights(policy(by_claims), token(groups="sre"), AGENT) == "no_role"
    assert rights(policy(by_claims, both), token(groups="sre"), AGENT) == "no_role", "the first match decides"
    assert rights(policy(both, by_claims), token(groups="sre"), AGENT) == "logs r"
    assert rights(policy(by_claims, unmapped=True), token(groups="sre"), AGENT) == "docs rw"
    defect = replace(AGENT, defect="several common names")
    assert rights(policy(both), token(groups="sre"), defect) == "certificate_defect"
    foreign = replace(AGENT, foreign="a name")
    assert rights(policy(both), token(groups="sre"), foreign) == "ca_constraint"


def test_a_doubted_field_holds_in_no_rule_with_claims_either() -> None:
    both = rule("docs", Matcher(cn="agent"), groups="sre")
    doubted = replace(AGENT, doubted=frozenset({"cn"}))
    assert rights(policy(both, unmapped=True), token(groups="sre"), doubted) == "token_without_access"


def test_roles_rule_subject_and_groups_of_an_admission() -> None:
    held = policy(Rule("agents", Matcher(cn="agent"), "read"), rule("docs", groups="sre"), role="all")
    alone = outcome(held, token(groups=["sre", 7], sub="alice", subject="other"))
    beside = outcome(held, token(groups="sre", subject="other"), AGENT)
    assert isinstance(alone, Admission)
    assert isinstance(beside, Admission)
    assert (alone.role, alone.rule, beside.role, beside.rule) == ("docs", "rule-docs", "read", "agents")
    assert alone.credential is not None
    assert beside.credential is not None
    assert (alone.credential.subject, alone.credential.groups) == ("alice", ("sre", "7"))
    assert (beside.credential.subject, beside.credential.roles) == ("other", ("docs", "all"))
    own = outcome(held, mint("own", {"access": "r", "sub": "alice", "subject": "other", "groups": ["sre"]}))
    assert isinstance(own, Admission)
    assert own.credential is not None
    assert (own.credential.subject, own.credential.groups, own.rule) == ("other", (), "")


def test_groups_of_a_token_are_bounded_and_its_claims_not_kept() -> None:
    held = policy(rule("docs", iss="https://login/"))
    for groups, shown in (
        (["a" * 256], ("a" * 256,)),
        (["a" * 200, "b" * 57, "c"], ("a" * 200, "…")),
        ([f"{number:03}" for number in range(9000)], (*(f"{number:03}" for number in range(85)), "…")),
        (["", None, [], {}], ()),
    ):
        admitted = outcome(held, token(groups=groups))
        assert isinstance(admitted, Admission)
        assert admitted.credential is not None
        assert (admitted.credential.groups, admitted.credential.claims) == (shown, {})


def test_half_a_surrogate_in_a_list_makes_it_no_token() -> None:
    for value in (["\ud800"], [["x", "\udc00"]], {"a": ["\ud800"]}, "\ud800", {"\ud800": 1}):
        with pytest.raises(MalformedToken):
            read_claims(json.dumps({"groups": value}).encode())


texts = st.sampled_from(["sre", "ops", "a/b", "a@b.c", "1", "true", ""])
scalars = st.one_of(texts, st.sampled_from([0, 1, 2]), st.booleans())
json_values = st.recursive(
    st.one_of(scalars, st.none(), st.just(1.0)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "a.b", ""]), inner, max_size=2)
    ),
    max_leaves=5,
)
some_claims = st.dictionaries(st.sampled_from(["a", "b", "a.b", "a.b.c", "groups"]), json_values, max_size=4)
paths = st.sampled_from(["a", "b", "a.b", "a.b.c", "groups", "absent", "."])
patterns = st.one_of(
    texts.filter(bool), st.sampled_from(["*", "**", "s*", "*@b.c", "?"]), st.integers(0, 2), st.booleans()
)
claim_matchers = st.dictionaries(paths, patterns, max_size=3).map(lambda each: claims_of(**each))
matchers = st.sampled_from([Matcher(), Matcher(cn="agent"), Matcher(cn="a*"), Matcher(cn="other"), Matcher(o="x")])
rule_lists = st.lists(
    st.builds(Rule, st.just("r"), matchers, st.sampled_from(sorted(ROLES)), claim_matchers), max_size=6
).map(lambda rules: [replace(rule, name=str(number)) for number, rule in enumerate(rules)])
identities = st.sampled_from(
    [None, AGENT, replace(AGENT, common_name="other"), replace(AGENT, doubted=frozenset({"cn"}))]
)


def holds(one: Rule, claims: dict[str, Any], identity: Identity | None) -> bool:
    """Spelled out: each claim by one value of its type, and each certificate field."""
    for claim in one.claims.claims:
        values = (value for value in values_at(claims, claim.path) if isinstance(value, str) is not claim.is_literal)
        spelled = (value if isinstance(value, str) else json.dumps(value) for value in values)
        if not any(glob_matches(claim.pattern, value, frozenset("/")) for value in spelled):
            return False
    return one.match == Matcher() or (identity is not None and one.match.matches(identity))


@given(rule_lists, some_claims, identities)
def test_the_index_agrees_with_trying_each_rule(
    rules: list[Rule], claims: dict[str, Any], identity: Identity | None
) -> None:
    indexed = Rules(tuple(rules))
    of_token = next((one for one in rules if one.claims and holds(one, claims, identity)), None)
    assert indexed.of_token(claims, identity) is of_token
    if identity is not None:
        assert indexed.of_certificate(identity) is next(
            (one for one in rules if not one.claims and one.match.matches(identity)), None
        )
        assert indexed.awaits_token(identity) is any(one.of_both and one.match.matches(identity) for one in rules)


REQUESTS = [
    recognise(method, path)
    for method, path in (
        ("GET", "/collections/docs"),
        ("PUT", "/collections/docs/points"),
        ("GET", "/collections/logs"),
        ("DELETE", "/collections/logs"),
        ("GET", "/collections/other"),
    )
]


def allowed(held: Policy, presented: str | None, identity: Identity | None) -> list[bool]:
    admitted = outcome(held, presented, identity)
    return [decide_request(admitted, asked).decision.allowed for asked in REQUESTS]


accesses = st.sampled_from([{}, {"access": "r"}, {"access": "m"}, {"access": [{"collection": "docs", "access": "rw"}]}])


@given(rule_lists, some_claims, accesses, identities, st.data())
def test_an_added_rule_widens_nothing_but_for_tokens_that_match_it(
    rules: list[Rule], claims: dict[str, Any], access: dict[str, Any], identity: Identity | None, data: st.DataObject
) -> None:
    new = Rule(
        "new", data.draw(matchers), data.draw(st.sampled_from(sorted(ROLES))), data.draw(claim_matchers.filter(bool))
    )
    place = data.draw(st.integers(0, len(rules)))
    said = {"iss": "https://login/", "aud": "qdrant", **claims, **access}
    unmapped = data.draw(st.booleans())
    before, after = policy(*rules, unmapped=unmapped), policy(*rules[:place], new, *rules[place:], unmapped=unmapped)
    for presented in (None, "ci", mint("own", {**claims, "access": "r"}), token(**claims, **access)):
        was, now = allowed(before, presented, identity), allowed(after, presented, identity)
        of_issuer = presented is not None and presented.count(".") and presented == token(**claims, **access)
        if of_issuer and new.matches(identity, said):
            continue
        assert was == now


@given(rule_lists.filter(bool), claim_matchers.filter(bool), some_claims, accesses, identities)
def test_claims_added_to_a_match_widen_nothing_but_for_tokens_that_match_it(
    rules: list[Rule],
    more: ClaimMatcher,
    claims: dict[str, Any],
    access: dict[str, Any],
    identity: Identity | None,
) -> None:
    """Of the last rule: what an earlier one leaves to those behind it is theirs to give."""
    changed = replace(rules[-1], claims=ClaimMatcher((*rules[-1].claims.claims, *more.claims)))
    said = {"iss": "https://login/", "aud": "qdrant", **claims, **access}
    for presented in (None, "ci", mint("own", {**claims, "access": "m"}), mint("secret", said)):
        if presented != mint("secret", said) or rules[-1].claims or not changed.matches(identity, said):
            was = allowed(policy(*rules), presented, identity)
            now = allowed(policy(*rules[:-1], changed), presented, identity)
            assert all(before or not after for before, after in zip(was, now, strict=True))


@given(rule_lists.filter(lambda rules: len(rules) <= 4), some_claims, identities)
def test_the_order_of_rules_that_do_not_match_is_nothing(
    rules: list[Rule], claims: dict[str, Any], identity: Identity | None
) -> None:
    said = {"iss": "https://login/", "aud": "qdrant", **claims}
    idle = [one for one in rules if not one.matches(identity, said if one.claims else {})]
    matching = [one for one in rules if one not in idle]
    expected = allowed(policy(*matching, *idle), token(**claims), identity)
    for order in permutations(idle[:3]):
        assert allowed(policy(*order, *matching, *idle[3:]), token(**claims), identity) == expected


@given(some_claims, claim_matchers)
def test_a_token_never_matches_by_a_claim_that_it_does_not_have(claims: dict[str, Any], matcher: ClaimMatcher) -> None:
    if matcher.matches(claims):
        assert all(values_at(claims, one.path) for one in matcher.claims)
        for one in matcher.claims:
            bare = {
                name: value for name, value in claims.items() if name != one.path.split(".")[0] and one.path != name
            }
            if not values_at(bare, one.path):
                assert not matcher.matches(bare)


def test_ten_thousand_rules_are_not_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = tuple(rule("docs", iss="https://login/", groups=f"team-{number}") for number in range(10_000))
    indexed, tried = Rules(rules), []
    matches = Rule.matches
    monkeypatch.setattr(Rule, "matches", lambda one, *about: tried.append(one) or matches(one, *about))
    said = {"iss": "https://login/", "groups": ["other", "team-7000", "team-9999"]}
    assert indexed.of_token(said, None) is rules[7000]
    assert tried == [rules[7000]]


def test_a_group_that_found_a_rule_is_not_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of groups, each in a rule that asks for more, took half a second."""
    indexed = Rules(tuple(rule("docs", groups=f"team-{number}", sub="alice") for number in range(300)))
    compared, matches = [], Claim.matches
    monkeypatch.setattr(Claim, "matches", lambda one, claims: compared.append(one.path) or matches(one, claims))
    assert indexed.of_token({"groups": [f"team-{number}" for number in range(300)], "sub": "bob"}, None) is None
    assert compared == ["sub"] * 300
