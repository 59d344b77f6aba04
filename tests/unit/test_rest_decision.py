"""Certificate, key and operation together: Qdrant's order of checks, and rights that only ever narrow each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.rows import rows
from support.tenant_roles import confinement

from tlsproxy.authz.access import (
    ALLOWED,
    NO_NAMES,
    UNREAD,
    BodyNames,
    Condition,
    Decision,
    GlobalMode,
    Grant,
    Grants,
    Rights,
    forbidden,
)
from tlsproxy.authz.admission import Admission, Credential, admit
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import Keys, presented_key
from tlsproxy.authz.query_policy import QueryPolicy
from tlsproxy.authz.roles import Policy, Principal
from tlsproxy.errors import BadRequest, Form
from tlsproxy.qdrant.operations import READ_LISTING, Operation
from tlsproxy.qdrant.rest_decision import (
    NOT_CONFINED,
    BodyDecision,
    BodyFacts,
    HeadDecision,
    decide_again,
    decide_all,
    decide_request,
    deciding_body,
)
from tlsproxy.qdrant.router import recognise
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.wire.cooperative import at_once

KEYS = Keys.of("manage-key", "alternative", "reader")
NO_KEYS = Keys.of()
IDENTITY = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9)
ANYBODY = Principal(identity=None, rule="", role="", rights=Rights(), refusal=None)
UNMAPPED = Principal(
    identity=IDENTITY, rule="", role="", rights=Rights(), refusal=forbidden("no_role", "no role for CN=a")
)


def holder(**rights: object) -> Principal:
    return Principal(identity=IDENTITY, rule="rule", role="role", rights=Rights(**rights), refusal=None)  # type: ignore[arg-type]


ADMIN = holder(everywhere=GlobalMode.M)
LIMITED = holder(grants=Grants(Grant("docs", write=True, extras=True)))


def ask(principal: Principal, method: str, path: str, key: str | None = None, keys: Keys = KEYS) -> Decision:
    return judged(principal, method, path, key, keys).decision


def judged(principal: Principal, method: str, path: str, key: str | None = None, keys: Keys = KEYS) -> HeadDecision:
    return decide_request(
        admit(principal, Policy(roles={}, rules=(), keys=keys), key, now=0.0), recognise(method, path)
    )


def refused(decision: Decision) -> tuple[int, str, Form]:
    assert not decision.allowed
    return decision.status, decision.text, decision.form


@rows("path", ["/", "/healthz", "/livez", "/readyz", "/dashboard/index.html"])
@rows("principal", [ANYBODY, UNMAPPED, ADMIN])
def test_open_paths_ask_for_nothing(path: str, principal: Principal) -> None:
    assert ask(principal, "GET", path).allowed
    assert ask(principal, "GET", path, key="wrong").allowed


def test_without_certificate_and_key() -> None:
    text = "Must provide an API key or an Authorization bearer token"
    assert refused(ask(ANYBODY, "GET", "/collections")) == (401, text, Form.BARE)
    assert refused(ask(ANYBODY, "GET", "/collections", keys=NO_KEYS)) == (401, text, Form.BARE)
    unknown = refused(ask(ANYBODY, "GET", "/collections", key="anything", keys=NO_KEYS))
    assert unknown == (401, "Invalid API key or JWT", Form.BARE)


@rows("principal", [ANYBODY, ADMIN])
@rows("key", ["wrong", "", "manage-key ", "Manage-Key"])
def test_a_wrong_key(principal: Principal, key: str) -> None:
    assert refused(ask(principal, "GET", "/collections", key=key)) == (401, "Invalid API key or JWT", Form.BARE)


def test_a_key_alone_gives_its_rights() -> None:
    assert ask(ANYBODY, "PUT", "/collections/docs", key="manage-key").allowed
    assert ask(ANYBODY, "PUT", "/collections/docs", key="alternative").allowed
    assert ask(ANYBODY, "GET", "/collections/docs", key="reader").allowed
    assert refused(ask(ANYBODY, "PUT", "/collections/docs", key="reader"))[0] == 403


def test_a_key_narrows_a_role_and_never_widens_it() -> None:
    assert refused(ask(ADMIN, "PUT", "/collections/docs", key="reader"))[0] == 403
    assert ask(ADMIN, "PUT", "/collections/docs", key="manage-key").allowed
    assert refused(ask(LIMITED, "PUT", "/collections/docs", key="manage-key"))[0] == 403
    assert ask(LIMITED, "PUT", "/collections/docs/points", key="manage-key").allowed
    assert refused(ask(LIMITED, "PUT", "/collections/docs/points", key="reader"))[0] == 403


def test_a_key_does_not_help_a_certificate_without_a_role() -> None:
    assert refused(ask(UNMAPPED, "GET", "/collections", key="manage-key"))[:2] == (403, "Forbidden: no role for CN=a")


def test_who_you_are_comes_before_whether_the_route_exists() -> None:
    assert refused(ask(ANYBODY, "GET", "/nothing"))[0] == 401
    assert refused(ask(UNMAPPED, "GET", "/nothing"))[0] == 403
    assert refused(ask(ADMIN, "GET", "/nothing")) == (404, "", Form.EMPTY)
    assert refused(ask(LIMITED, "HEAD", "/collections")) == (404, "", Form.EMPTY)


@pytest.mark.parametrize("path", ["/collections", "/aliases", "/telemetry", "/collections/docs/aliases", "/issues"])
def test_a_limited_callers_listing_is_reduced(path: str) -> None:
    judgement = judged(LIMITED, "GET", path)
    assert judgement.decision is ALLOWED
    assert judgement.listing is not None
    assert judgement.listing.grants == (LIMITED.rights.grants,)
    assert judged(LIMITED, "GET", path, "reader").listing == judgement.listing
    assert judged(ADMIN, "GET", path).listing is None
    assert judged(ADMIN, "GET", path, "reader").listing is None
    nobody = judged(holder(), "GET", path)
    assert (nobody.decision.allowed, nobody.listing) == (False, None)


OTHER_TOKEN = Credential("Jwt", "api_key", (Rights(grants=Grants(Grant("d*", write=True, extras=True))),))


@pytest.mark.parametrize("path", ["points/query", "points/search/groups", "points/discover/batch"])
def test_a_body_that_may_name_another_collection_decides_with_the_head(path: str) -> None:
    asked = recognise("POST", f"/collections/docs/{path}")
    admission = Admission(LIMITED, None)
    assert decide_request(admission, asked).decision is UNREAD
    assert not UNREAD.allowed
    batch = path.endswith("batch")

    def ask_body(body: bytes, admission: Admission = admission) -> Decision:
        read = at_once(deciding_body(admission, asked, b'{"searches":[%b]}' % body if batch else body))
        assert (read.body, read.reducer) == (None, None)
        return read.decision

    assert ask_body(b"{}") is ALLOWED
    assert ask_body(b'{"lookup_from":{"collection":"docs"}}') is ALLOWED
    assert refused(ask_body(b'{"lookup_from":{"collection":"other"}}')) == (
        403,
        "Forbidden: Access to collection other is required",
        Form.JSON,
    )
    assert ask_body(b'{"with_lookup":"dogs"}').reason == "collection"
    assert ask_body(b'{"with_lookup":"dogs"}', Admission(holder(grants=OTHER_TOKEN.rights[0].grants), None)).allowed
    both = Admission(LIMITED, OTHER_TOKEN)
    assert decide_request(both, asked).decision is UNREAD
    assert ask_body(b'{"with_lookup":"docs"}', both).allowed
    assert ask_body(b'{"with_lookup":"dogs"}', both).reason == "collection"
    assert decide_request(Admission(ADMIN, OTHER_TOKEN), asked).decision is UNREAD
    assert decide_request(Admission(ADMIN, None), asked).decision is ALLOWED
    assert ask(LIMITED, "POST", f"/collections/other/{path}").reason == "collection"
    with pytest.raises(BadRequest):
        ask_body(b"[")


def test_a_listing_holds_what_all_rights_of_a_caller_know() -> None:
    listing = decide_request(Admission(LIMITED, OTHER_TOKEN), recognise("GET", "/collections")).listing
    assert listing is not None
    answer = b'{"result":{"collections":[{"name":"docs"},{"name":"dogs"}]}}'
    assert at_once(listing.reducing(answer)) == b'{"result":{"collections":[{"name":"docs"}]}}'


def test_a_caller_without_rights_is_refused() -> None:
    """No caller has none today: each has those of its certificate or key."""
    operation = recognise("GET", "/collections/docs/snapshots/s").operation
    assert operation is not None
    decision = decide_all((), operation, "docs", reduced=True, confined=True)
    assert decision == forbidden("no_rights", "Global access is required", Form.TEXT)
    assert decide_all((LIMITED.rights,), operation, "other", confined=True).form is Form.TEXT


def test_a_body_decides_no_listing() -> None:
    """Qdrant has none whose body matters: its answer would not be reduced."""
    asked = recognise("POST", "/collections/docs/points/query")
    listing = Operation("list_parts", "POST", "/collections/{collection_name}/parts", READ_LISTING, names_others=True)
    decision = at_once(deciding_body(Admission(LIMITED, None), replace(asked, operation=listing), b"{}")).decision
    assert (decision.allowed, decision.reason) == (False, "unfiltered_listing")


def test_conditions_of_a_role_hold_whatever_comes_beside_it() -> None:
    tenant = holder(everywhere=GlobalMode.M, conditions=(Condition("tenant", ("acme",)),))
    asked = recognise("POST", "/collections/docs/points/scroll")
    for admission in (Admission(tenant, None), Admission(tenant, OTHER_TOKEN)):
        assert decide_request(admission, asked).decision is UNREAD
        read = at_once(deciding_body(admission, asked, b"{}"))
        assert read.decision.allowed
        assert read.body == b'{"filter":{"must":[{"key":"tenant","match":{"value":"acme"}}]}}'
    assert ask(tenant, "GET", "/collections/docs/shards", "manage-key").reason == "not_confined"


ACME = (Condition("tenant", ("acme",)),)
TENANT = holder(everywhere=GlobalMode.M, conditions=ACME)


def test_the_facts_of_a_body_are_what_it_named_and_was_confined_to() -> None:
    query, delete = (recognise("POST", f"/collections/docs/points/{path}") for path in ("query", "delete"))
    lookup = b'{"lookup_from":{"collection":"dogs"}}'
    read = at_once(deciding_body(Admission(holder(grants=OTHER_TOKEN.rights[0].grants), None), query, lookup))
    assert (read.body, read.facts) == (None, BodyFacts(BodyNames(read=("dogs",)), ()))
    # A change has no lookups: to Qdrant the member is an unknown one.
    limited = holder(grants=LIMITED.rights.grants, conditions=ACME)
    body = b'{"filter":{},"lookup_from":{"collection":"other"}}'
    read = at_once(deciding_body(Admission(limited, None), delete, body))
    assert (read.decision.allowed, read.facts) == (True, BodyFacts(NO_NAMES, confinement(tenant="acme")))
    assert read.body is not None
    nothing = at_once(deciding_body(Admission(LIMITED, None), recognise("POST", "/nothing"), b"{}"))
    assert nothing == BodyDecision(UNREAD)


def test_words_are_counted_by_the_facts_of_the_collection() -> None:
    query = b'{"query":{"indices":[1],"values":[1]},"using":"words"}'
    asked = recognise("POST", "/collections/docs/points/query")
    for weighted in (frozenset({"words"}), frozenset({"other"})):
        changed = at_once(
            deciding_body(Admission(TENANT, None), asked, query, Facts((1, 19), weighted, frozenset()))
        ).body
        assert changed is not None
        assert (b'"corpus"' in changed) is ("words" in weighted)


def test_memory_in_use_beside_the_content_is_asked_for_too() -> None:
    asked, body = recognise("POST", "/collections/docs/points/query"), b'{"query":[%b1]}' % (b"1," * 5000)
    needs = [next(deciding_body(Admission(LIMITED, None), asked, body, None, *more)) for more in ((), (0,), (1000,))]
    assert needs[0] == needs[1]
    assert needs[0] is not None
    assert needs[2] == needs[0] + 1000


def test_a_tenants_retrieval_is_reshaped_and_then_stripped() -> None:
    """A policy of the same role hides parts of what the confined request brings."""
    policy = QueryPolicy(hides_vectors=True, timeout=5)
    tenant = Admission(holder(everywhere=GlobalMode.M, conditions=ACME, queries=policy), None)
    asked = recognise("GET", "/collections/docs/points/5")
    head = decide_request(tenant, asked)
    assert head.decision is UNREAD
    assert head.target is not None
    read = at_once(deciding_body(tenant, replace(asked, target=head.target), b""))
    assert read.confined is not None
    assert str(read.confined.target(head.target)) == "/collections/docs/points/scroll?timeout=5"
    assert read.reducer is not None
    page = b'{"result":{"points":[{"id":5,"payload":{"a":1},"vector":[1]}]},"status":"ok","time":0,"usage":{}}'
    assert at_once(read.reducer.reducing(page)) == b'{"result":{"id":5,"payload":{"a":1}},"status":"ok","time":0}'


def test_what_a_request_in_progress_was_confined_to() -> None:
    """With the values, their types, and what was public, as they were."""
    groups = Condition("group", ("a", "b"))
    public = (Condition("visibility", ("public",)),)
    reading = holder(everywhere=GlobalMode.M, conditions=(groups,), public=public)
    scroll, delete = (recognise("POST", f"/collections/docs/points/{path}") for path in ("scroll", "delete"))
    for asked, body in ((scroll, b"{}"), (delete, b'{"points":[1]}')):
        facts = at_once(deciding_body(Admission(reading, None), asked, body)).facts
        assert facts is not None
        for present, allowed in (
            (Rights(GlobalMode.M, conditions=(groups,), public=public), True),
            (Rights(GlobalMode.M, conditions=(Condition("group", ("b", "a", "c")),), public=public), True),
            (Rights(GlobalMode.M, conditions=(groups,)), asked is delete),
            (Rights(GlobalMode.M, conditions=(Condition("group", ("a",)),), public=public), False),
            (Rights(GlobalMode.M, conditions=(Condition("group", ("a", True)),), public=public), False),
        ):
            now = Admission(replace(reading, rights=present), None)
            assert decide_again(now, asked, facts).allowed is allowed


@rows(
    ("principal", "method", "path", "facts", "reason"),
    [
        (TENANT, "POST", "/collections/docs/points/scroll", BodyFacts(NO_NAMES, confinement(tenant="acme")), "allowed"),
        (
            TENANT,
            "POST",
            "/collections/docs/points/scroll",
            BodyFacts(NO_NAMES, confinement(tenant="acme", a="b")),
            "allowed",
        ),
        (TENANT, "POST", "/collections/docs/points/scroll", BodyFacts(NO_NAMES, ()), NOT_CONFINED.reason),
        (
            TENANT,
            "POST",
            "/collections/docs/points/scroll",
            BodyFacts(NO_NAMES, confinement(tenant="b")),
            "not_confined",
        ),
        (TENANT, "GET", "/collections/docs/shards", BodyFacts(NO_NAMES, confinement(tenant="acme")), "not_confined"),
        (TENANT, "GET", "/collections/docs/exists", BodyFacts(NO_NAMES, ()), "allowed"),
        (ADMIN, "POST", "/collections/docs/points/scroll", BodyFacts(NO_NAMES, ()), "allowed"),
        (LIMITED, "POST", "/collections/docs/points/query", BodyFacts(BodyNames(read=("docs",)), ()), "allowed"),
        (LIMITED, "POST", "/collections/docs/points/query", BodyFacts(BodyNames(read=("other",)), ()), "collection"),
        (LIMITED, "POST", "/collections/other/points/query", BodyFacts(NO_NAMES, ()), "collection"),
        (ADMIN, "POST", "/nothing", BodyFacts(NO_NAMES, ()), "unknown_operation"),
    ],
)
def test_a_request_in_progress_is_decided_again_by_what_its_body_was(
    principal: Principal, method: str, path: str, facts: BodyFacts, reason: str
) -> None:
    decision = decide_again(Admission(principal, None), recognise(method, path), facts)
    assert (decision.reason, decision.allowed) == (reason, reason == "allowed")


def test_where_a_key_is_read_from() -> None:
    assert presented_key("k", "Bearer t") == "k"
    assert presented_key("", "Bearer t") == ""
    assert presented_key(None, "Bearer t") == "t"
    assert presented_key(None, "Bearer  t") == " t"
    assert presented_key(None, "bearer t") is None
    assert presented_key(None, "Basic dDp0") is None
    assert presented_key(None, None) is None
    assert presented_key("k\xff", "Bearer t") == "t"
    assert presented_key("k\xff", "Bearer t\xff") is None


def test_empty_keys_are_none_and_none_shows() -> None:
    assert not Keys.of("", "", "")
    assert Keys.of("", "", "r").find("", None, 0.0) is None
    same = Keys.of("same", "", "same").find("same", None, 0.0)
    assert same is not None
    assert same.rights == Rights(everywhere=GlobalMode.M)
    assert "digest" not in repr(KEYS)
