"""A token issuer's role: its rights and its filter hold beside what a token says itself, and never give anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.authz.access import UNREAD, Condition, Decision, GlobalMode, Grant, Grants, Rights
from tlsproxy.authz.admission import Admission, admit
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import Keys
from tlsproxy.authz.matcher import Matcher
from tlsproxy.authz.roles import Policy
from tlsproxy.authz.rules import Rule
from tlsproxy.authz.templates import parse_template
from tlsproxy.authz.tokens import Tokens, mint, qdrant_verifier
from tlsproxy.errors import RequestError
from tlsproxy.qdrant.operations import OWN, REST, Operation
from tlsproxy.qdrant.rest_decision import decide_request, deciding_body
from tlsproxy.qdrant.router import recognise
from tlsproxy.wire.cooperative import at_once

IDENTITY = Identity(
    subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9, common_name="a", organizations=("acme",)
)
DOCS = Rights(grants=Grants(Grant("docs", write=True, extras=True)))
READS = Rights(everywhere=GlobalMode.R)
NOW = 1e9


def policy(role: str = "", rights: Rights = DOCS, certificate: Rights | None = None, **filters: str) -> Policy:
    """Tokens are signed with `secret`; those who sign them have this role."""
    templates = tuple(parse_template(key, text) for key, text in filters.items())
    verifier = replace(qdrant_verifier("login", "secret"), role=role)
    roles = {"role": rights} | ({} if certificate is None else {"certificate": certificate})
    rules = () if certificate is None else (Rule("a", Matcher(cn="a"), "certificate"),)
    return Policy(roles, rules, Keys(), Tokens((verifier,)), certificate is None, {"role": templates})


def outcome(policy: Policy, identity: Identity | None = None, **claims: object) -> Admission | Decision:
    return admit(policy.principal_of(identity), policy, mint("secret", {"access": "m", **claims}), NOW)


def rights(admitted: Admission | Decision) -> tuple[Rights, ...]:
    assert isinstance(admitted, Admission)
    return admitted.rights


def refused(admitted: Admission | Decision) -> str:
    assert isinstance(admitted, Decision)
    return admitted.reason


def test_both_must_allow() -> None:
    assert rights(outcome(policy("role"))) == (Rights(everywhere=GlobalMode.M), DOCS)
    assert rights(outcome(policy("role", certificate=READS), IDENTITY)) == (
        READS,
        Rights(everywhere=GlobalMode.M),
        DOCS,
    )
    confined = outcome(policy("role"), access="r")
    for method, path, reason in (
        ("GET", "/collections/docs", "allowed"),
        ("GET", "/collections/other", "collection"),
        ("PUT", "/collections/docs/points", "needs_manage"),
    ):
        assert decide_request(confined, recognise(method, path)).decision.reason == reason


def test_whose_role_is_named() -> None:
    alone, beside = outcome(policy("role")), outcome(policy("role", certificate=READS), IDENTITY)
    assert isinstance(alone, Admission)
    assert isinstance(beside, Admission)
    assert (alone.role, beside.role) == ("role", "certificate")
    assert alone.credential is not None
    assert (alone.credential.role, alone.credential.gives) == ("role", "m & docs rw")


def test_its_filter_is_filled_from_that_token() -> None:
    by_claim = policy("role", tenant="{claim:tenant}")
    for tenant in ("acme", "umbrella"):
        assert rights(outcome(by_claim, tenant=tenant))[-1].conditions == (Condition("tenant", (tenant,)),)
    for claims in ({}, {"tenant": ""}, {"tenant": 1.5}, {"tenant": [["acme"]]}, {"tenant": None}):
        assert refused(outcome(by_claim, **claims)) == "no_tenant"


def test_its_filter_may_need_a_certificate() -> None:
    by_certificate = policy("role", tenant="{o}")
    assert rights(outcome(by_certificate, IDENTITY))[-1].conditions == (Condition("tenant", ("acme",)),)
    assert refused(outcome(by_certificate)) == "no_tenant"


some_grants = st.builds(Grant, st.sampled_from(["docs", "do*", "**", "other"]), st.booleans(), st.booleans())
some_rights = st.builds(Rights, st.sampled_from([None, *GlobalMode])) | st.builds(
    Rights, st.none(), st.lists(some_grants, max_size=3).map(lambda each: Grants(*each))
)
accesses = st.sampled_from(["r", "m"]) | st.lists(
    st.fixed_dictionaries(
        {"collection": st.sampled_from(["docs", "do*", "**"]), "access": st.sampled_from(["r", "rw", "prw"])}
    ),
    max_size=3,
    unique_by=lambda entry: entry["collection"],
)
filters = st.fixed_dictionaries({}, optional={"tenant": st.sampled_from(["{claim:tenant}", "acme", "{o}"])})
bodies = st.sampled_from([b"{}", b'{"lookup_from":{"collection":"other"}}', b'{"searches":[{"with_lookup":"other"}]}'])


def allows(admitted: Admission | Decision, operation: Operation, body: bytes) -> bool:
    path = operation.path.replace("{collection_name}", "docs").replace("{tail...}", "x")
    asked = recognise(operation.method, "/".join("x" if part.startswith("{") else part for part in path.split("/")))
    decision = decide_request(admitted, asked).decision
    if decision is not UNREAD or isinstance(admitted, Decision):
        return decision.allowed
    try:
        return at_once(deciding_body(admitted, asked, body)).decision.allowed
    except RequestError:
        return False


@pytest.mark.fuzz
@given(
    st.fixed_dictionaries({"access": accesses}, optional={"tenant": st.just("acme")}),
    some_rights,
    filters,
    some_rights | st.none(),
    st.sampled_from([None, IDENTITY]),
    st.sampled_from([*REST, *OWN]),
    bodies,
)
def test_a_role_never_widens(
    claims: dict[str, object],
    role: Rights,
    filters: dict[str, str],
    certificate: Rights | None,
    identity: Identity | None,
    operation: Operation,
    body: bytes,
) -> None:
    without = outcome(policy("", role, certificate, **filters), identity, **claims)
    within = outcome(policy("role", role, certificate, **filters), identity, **claims)
    assert allows(without, operation, body) or not allows(within, operation, body)
    if isinstance(within, Admission):
        assert isinstance(without, Admission)
        assert within.rights[:-1] == without.rights
        assert within.expires == without.expires
        assert bool(within.rights[-1].conditions) is bool(filters)
