"""A role's filter by a claim of the token, and a named key's role with a filter: all of it, or no rights at all."""

from __future__ import annotations

import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.access import Condition, Decision, GlobalMode, Rights, Value
from tlsproxy.authz.admission import Admission, admit
from tlsproxy.authz.claims import MalformedToken, read_claims
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import Key, Keys, key_digest
from tlsproxy.authz.matcher import Matcher
from tlsproxy.authz.roles import Policy
from tlsproxy.authz.rules import Rule
from tlsproxy.authz.templates import parse_template
from tlsproxy.authz.tokens import Tokens, mint, qdrant_verifier
from tlsproxy.qdrant.rest_decision import decide_request
from tlsproxy.qdrant.router import recognise

IDENTITY = Identity(
    subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9, common_name="a", organizations=("acme",)
)
ALL = Rights(everywhere=GlobalMode.M)
NOW = 1e9


def policy(*keys: Key, unmapped: bool = False, **filters: str) -> Policy:
    """The role of whoever has the common name `a`."""
    templates = tuple(parse_template(key, text) for key, text in filters.items())
    rules = () if unmapped else (Rule("rule", Matcher(cn="a"), "role"),)
    tokens = Tokens((qdrant_verifier("api_key", "secret"),))
    return Policy({"role": ALL}, rules, Keys(keys), tokens, unmapped, {"role": templates})


def outcome(policy: Policy, presented: str | None, identity: Identity | None = IDENTITY) -> Admission | Decision:
    return admit(policy.principal_of(identity), policy, presented, NOW)


def token(**claims: object) -> str:
    return mint("secret", {"access": "m", **claims})


def conditions(admitted: Admission | Decision) -> tuple[Condition, ...]:
    assert isinstance(admitted, Admission)
    return tuple(one for rights in admitted.rights for one in rights.conditions)


def refusal(admitted: Admission | Decision) -> str:
    assert isinstance(admitted, Decision)
    assert not admitted.allowed
    assert not decide_request(admitted, recognise("GET", "/collections/docs")).decision.allowed
    return admitted.reason


def test_each_token_has_its_tenant() -> None:
    by_claim = policy(tenant="team-{claim:tenant}", org="{o}", kind="same")
    for name in ("acme", "umbrella"):
        assert conditions(outcome(by_claim, token(tenant=name))) == (
            Condition("tenant", (f"team-{name}",)),
            Condition("org", ("acme",)),
            Condition("kind", ("same",)),
        )


@rows(
    "claims",
    [
        {},
        {"Tenant": "acme"},
        {"tenant": ""},
        {"tenant": None},
        {"tenant": []},
        {"tenant": [""]},
        {"tenant": 1.0},
        {"tenant": 1 << 63},
        {"tenant": {"a": "acme"}},
        {"tenant": [["acme"]]},
        {"tenant": list(range(1001))},
    ],
)
def test_without_the_claim_there_are_no_rights(claims: dict[str, object]) -> None:
    assert refusal(outcome(policy(tenant="{claim:tenant}"), token(**claims))) == "no_tenant"


@pytest.mark.parametrize(
    ("claim", "values", "in_text"),
    [
        (["acme", "umbrella", "acme"], ("acme", "umbrella"), ("team-acme", "team-umbrella")),
        ([1, True, "1"], (1, True, "1"), ("team-1",)),
        (-7, (-7,), ("team--7",)),
        (["acme", None, 1.5, ["x"], {}], ("acme",), ("team-acme",)),
        (False, (False,), None),
    ],
)
def test_the_values_of_a_claim(claim: object, values: tuple[Value, ...], in_text: tuple[Value, ...] | None) -> None:
    """With text around it a claim is text, of which a boolean is none."""
    assert conditions(outcome(policy(tenant="{claim:tenant}"), token(tenant=claim))) == (Condition("tenant", values),)
    within = outcome(policy(tenant="team-{claim:tenant}"), token(tenant=claim))
    if in_text is None:
        assert refusal(within) == "no_tenant"
    else:
        assert conditions(within) == (Condition("tenant", in_text),)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(anything)
def test_a_condition_names_values_of_the_claim_alone(value: object) -> None:
    """A surrogate somewhere in it makes the token none at all."""
    admitted = outcome(policy(tenant="{claim:tenant}"), token(tenant=value))
    if isinstance(admitted, Decision):
        assert refusal(admitted) in {"no_tenant", "invalid_key"}
        return
    (condition,) = conditions(admitted)
    members = value if isinstance(value, list) else [value]
    assert condition.values
    assert all(any(type(one) is type(member) and one == member for member in members) for one in condition.values)


def test_without_a_token_there_are_no_rights() -> None:
    key = Key("ci", key_digest("ci"), ALL)
    by_claim = policy(key, tenant="{claim:tenant}")
    assert [refusal(outcome(by_claim, each)) for each in (None, "ci")] == ["no_tenant", "no_tenant"]
    forged = mint("another", {"access": "m", "tenant": "acme"})
    assert refusal(outcome(by_claim, forged)) == "token_signature"
    unknown = Policy(by_claim.roles, by_claim.rules, Keys(), filters=by_claim.filters)
    assert refusal(outcome(unknown, token(tenant="acme"))) == "invalid_key"


def test_until_a_token_is_known_the_principal_has_nothing() -> None:
    principal = policy(tenant="{claim:tenant}").principal_of(IDENTITY)
    assert (principal.role, principal.rights, principal.refusal) == ("role", Rights(), None)
    assert not decide_request(Admission(principal, None), recognise("GET", "/collections")).decision.allowed


def test_a_certificate_must_have_its_fields_too() -> None:
    assert refusal(outcome(policy(tenant="{claim:tenant}", unit="{ou}"), token(tenant="acme"))) == "no_tenant"


def test_a_claim_that_comes_twice_is_none() -> None:
    with pytest.raises(MalformedToken):
        read_claims(b'{"access": "m", "tenant": "acme", "tenant": "umbrella"}')
    claims = read_claims(json.dumps({"access": "m", "tenant": "acme", "exp": 5, "list": ["x"]}).encode())
    assert claims.claims == {"access": "m", "tenant": "acme", "exp": 5, "list": ["x"]}
    assert "acme" not in repr(claims)


def test_a_key_has_the_filter_of_its_role() -> None:
    key = Key("ci", key_digest("ci"), ALL, role="role")
    acme = Condition("tenant", ("acme",))
    assert conditions(outcome(policy(key, unmapped=True, tenant="acme"), "ci", None)) == (acme,)
    both = policy(key, tenant="{o}")
    assert conditions(outcome(both, "ci")) == (acme, acme)
    from_certificate = policy(key, unmapped=True, tenant="{o}")
    assert conditions(outcome(from_certificate, "ci")) == (Condition("tenant", ("acme",)),)
    assert refusal(outcome(from_certificate, "ci", None)) == "no_tenant"
    assert refusal(outcome(policy(key, unmapped=True, tenant="{claim:o}"), "ci")) == "no_tenant"


@given(st.lists(st.text(max_size=8), max_size=6, unique=True), st.text(max_size=8), st.integers(0, 5))
def test_every_key_is_compared_in_constant_time_whichever_matches(secrets: list[str], other: str, which: int) -> None:
    """By ``hmac.compare_digest``, and of digests: 32 bytes each, whatever the lengths of the keys."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def spy(one: bytes, two: bytes) -> bool:
        compared.append((one, two))
        return compare(one, two)

    keys = Keys(tuple(Key(f"key{n}", key_digest(secret), ALL) for n, secret in enumerate(secrets)))
    presented = secrets[which] if which < len(secrets) else other
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlsproxy.authz.keys.hmac.compare_digest", spy)
        found = keys.find(presented, None, NOW)
    assert compared == [(key_digest(presented), key_digest(secret)) for secret in secrets]
    assert all(len(one) == len(two) == 32 for one, two in compared)
    assert (found is not None) == (presented in secrets and presented != "")
