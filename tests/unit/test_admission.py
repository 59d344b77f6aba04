"""Certificate, key and token together: who counts, and that one more credential never allows more."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.authz.access import UNREAD, Decision, GlobalMode, Grant, Grants, Rights
from tlsproxy.authz.admission import Admission, Credential, admit
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import Key, Keys, key_digest
from tlsproxy.authz.matcher import Matcher
from tlsproxy.authz.roles import Policy, Principal
from tlsproxy.authz.rules import Rule
from tlsproxy.authz.tokens import Tokens, mint, qdrant_verifier
from tlsproxy.errors import Form
from tlsproxy.qdrant.operations import OWN, REST
from tlsproxy.qdrant.rest_decision import decide_request
from tlsproxy.qdrant.router import recognise

IDENTITY = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="ab" * 32, not_after=2e9, common_name="a")
ODD = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="cd" * 32, not_after=2e9, defect="odd")
TOKENS = Tokens((qdrant_verifier("api_key", "secret"),))
NOW = 1e9


def policy(*keys: Key, rights: Rights | None = None, unmapped: bool = False) -> Policy:
    rules = (Rule("a", Matcher(cn="a"), "role"),) if rights is not None else ()
    roles = {"role": rights} if rights is not None else {}
    return Policy(roles, rules, Keys(keys), TOKENS, unmapped)


READ = Rights(everywhere=GlobalMode.R)


def key(name: str = "ci", rights: Rights = READ, **more: object) -> Key:
    return Key(name, key_digest(name), rights, **more)  # type: ignore[arg-type]


def admitted(
    policy: Policy, identity: Identity | None, presented: str | None, now: float = NOW
) -> Admission | Decision:
    return admit(policy.principal_of(identity), policy, presented, now)


def test_an_unmapped_certificate() -> None:
    strict, open_ = policy(key()), policy(key(), unmapped=True)
    assert isinstance(admitted(strict, IDENTITY, "ci"), Decision)
    assert isinstance(admitted(open_, IDENTITY, "ci"), Admission)
    nothing = admitted(open_, IDENTITY, None)
    assert isinstance(nothing, Decision)
    assert nothing.status == 401
    assert isinstance(admitted(open_, ODD, "ci"), Decision)


def test_without_a_credential_the_client_is_told_so() -> None:
    refusal = admitted(policy(), None, None)
    assert isinstance(refusal, Decision)
    assert (refusal.allowed, refusal.status, refusal.reason) == (False, 401, "no_credential")
    assert refusal.text == "Must provide an API key or an Authorization bearer token"
    assert refusal.form is Form.BARE


def test_a_key_and_a_token_are_told_as_what_they_are() -> None:
    """For the audit log, the limits, and the end of what they give."""
    held = policy(key(role="role", expires=NOW + 5), rights=READ)
    of_key = admitted(held, None, "ci")
    assert of_key == Admission(held_by(of_key), Credential("ApiKey", "ci", (READ,), role="role", expires=NOW + 5))
    assert isinstance(of_key, Admission)
    assert (of_key.role, of_key.expires) == ("role", NOW + 5)
    claims = {"access": "r", "exp": int(NOW), "subject": "s", "value_exists": {"collection": "a", "matches": []}}
    of_token = admitted(held, None, mint("secret", claims))
    assert isinstance(of_token, Admission)
    assert of_token.credential is not None
    exists = of_token.credential.exists
    assert exists is not None
    assert exists.collection == "a"
    assert of_token == Admission(
        held_by(of_token),
        Credential("Jwt", "api_key", (READ,), expires=NOW + 31, subject="s", exists=exists),
    )
    alone = admitted(held, IDENTITY, None)
    assert isinstance(alone, Admission)
    assert (alone.role, alone.expires, alone.credential) == ("role", float("inf"), None)
    assert (of_token.role, of_token.confinements) == ("", ())


def held_by(admission: Admission | Decision) -> Principal:
    assert isinstance(admission, Admission)
    return admission.principal


def test_the_first_of_two_that_are_the_same_counts() -> None:
    both = policy(key(), key(rights=Rights(everywhere=GlobalMode.M)))
    outcome = admitted(both, None, "ci")
    assert isinstance(outcome, Admission)
    assert outcome.rights == (Rights(everywhere=GlobalMode.R),)


def test_a_key_ends_at_its_moment() -> None:
    ending = policy(key(expires=NOW))
    outcome = admitted(ending, None, "ci", NOW - 0.001)
    assert isinstance(outcome, Admission)
    assert outcome.expires == NOW
    assert isinstance(admitted(ending, None, "ci", NOW), Decision)


def test_a_key_beside_its_certificate_only() -> None:
    bound = policy(key(certificate=Matcher(cn="a")), unmapped=True)
    assert isinstance(admitted(bound, IDENTITY, "ci"), Admission)
    assert isinstance(admitted(bound, None, "ci"), Decision)
    assert bound.keys.find("ci", ODD, NOW) is None
    nobody = policy(key(certificate=Matcher()))
    assert isinstance(admitted(nobody, None, "ci"), Decision)


def test_a_token_beside_its_certificate_only() -> None:
    thumbprint = base64.urlsafe_b64encode(bytes.fromhex(IDENTITY.sha256)).rstrip(b"=").decode()
    bound = mint("secret", {"access": "r", "cnf": {"x5t#S256": thumbprint}})
    held = policy(rights=READ)
    assert isinstance(admitted(held, IDENTITY, bound), Admission)
    for identity in (None, replace(IDENTITY, sha256="ef" * 32)):
        refusal = admitted(held, identity, bound)
        assert isinstance(refusal, Decision)
        assert refusal.reason == "token_of_another_certificate"


def test_the_empty_key_is_none_even_if_its_digest_is_configured() -> None:
    assert Keys((Key("x", key_digest(""), Rights(everywhere=GlobalMode.M)),)).find("", None, NOW) is None


@pytest.mark.parametrize("presented", ["wrong", "", mint("other", {"access": "m"})])
def test_a_bad_credential_costs_what_the_certificate_alone_would_have_had(presented: str) -> None:
    allowed = policy(key(), rights=Rights(everywhere=GlobalMode.M))
    assert isinstance(admitted(allowed, IDENTITY, None), Admission)
    assert isinstance(admitted(allowed, IDENTITY, presented), Decision)


@pytest.mark.parametrize("presented", ["ci", "", mint("secret", {"access": "r"})])
def test_removing_the_last_key_widens_nothing(presented: str) -> None:
    """What was a narrow key is not "no key" once none is configured."""
    rules, roles = (Rule("a", Matcher(cn="a"), "role"),), {"role": Rights(everywhere=GlobalMode.M)}
    bare = Policy(roles, rules, Keys())
    assert isinstance(admitted(bare, IDENTITY, None), Admission)
    refused = admitted(bare, IDENTITY, presented)
    assert isinstance(refused, Decision)
    assert (refused.status, refused.reason) == (401, "invalid_key")


grants = st.builds(Grant, st.sampled_from(["docs", "do*", "**", "other"]), st.booleans(), st.booleans())
some_rights = st.builds(Rights, st.sampled_from([None, *GlobalMode])) | st.builds(
    Rights, st.none(), st.lists(grants, max_size=3).map(lambda each: Grants(*each))
)


@pytest.mark.fuzz
@given(some_rights, some_rights, st.sampled_from([*REST, *OWN]), st.sampled_from(["docs", "other"]))
def test_one_more_credential_never_allows_more(role: Rights, held: Rights, operation: object, name: str) -> None:
    assert hasattr(operation, "path")
    path = operation.path.replace("{collection_name}", name).replace("{tail...}", "x")
    asked = recognise(operation.method, "/".join("x" if part.startswith("{") else part for part in path.split("/")))

    def allows(policy: Policy, identity: Identity | None, presented: str | None) -> bool:
        decision = decide_request(admitted(policy, identity, presented), asked).decision
        return decision.allowed or decision is UNREAD

    both = allows(policy(key(rights=held), rights=role), IDENTITY, "ci")
    certificate = allows(policy(rights=role), IDENTITY, None)
    alone = allows(policy(key(rights=held)), None, "ci")
    assert both == (certificate and alone)


def test_a_principal_without_anything_is_refused_by_the_judge_too() -> None:
    empty = Admission(Principal(None, "", "", Rights(), refusal=None), None)
    assert not decide_request(empty, recognise("GET", "/collections")).decision.allowed
