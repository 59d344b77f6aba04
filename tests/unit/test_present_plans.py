"""A request under way goes on by other rights exactly if these would allow it as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.audit.line import Caller
from tlsproxy.authz.access import UNREAD, BodyNames, Condition, Decision, GlobalMode, Grant, Grants, Rights, is_within
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.query_policy import NO_POLICY, QueryPolicy, hidden_keys
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import BadRequest, PolicyRefused, Unconfined
from tlsproxy.proxy.decision.attribution import prepared
from tlsproxy.proxy.decision.call_plan import Asked, CallPlan
from tlsproxy.proxy.decision.request_plan import Plan, Reduced, Relayed, Route
from tlsproxy.proxy.decision.unread_body import Unread
from tlsproxy.qdrant.grpc_decision import decide_call, decide_message, operation_of
from tlsproxy.qdrant.operations import GRPC
from tlsproxy.qdrant.query_policy import concerning
from tlsproxy.qdrant.rest_decision import BEYOND_POLICY, BodyFacts, decide_request, deciding_body
from tlsproxy.qdrant.rest_tenancy import is_confinable
from tlsproxy.qdrant.router import recognise
from tlsproxy.qdrant.scoring import FactsNeeded
from tlsproxy.wire.cooperative import at_once

IDENTITY = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9)
NOTHING: Any = None
LINE = prepared(Caller("None"), UNREAD)
NAMES = ["docs", "vectors"]
BODIES = [b"{}", *(json.dumps({"query": [1.0], "lookup_from": {"collection": name}}).encode() for name in NAMES)]
REQUESTS = [
    ("GET", "/collections"),
    ("GET", "/collections/docs"),
    ("DELETE", "/collections/docs"),
    ("PUT", "/collections/docs/points"),
    ("POST", "/collections/docs/points/query"),
    ("POST", "/collections/docs/points/count"),
    ("GET", "/collections/docs/snapshots/s"),
    ("GET", "/telemetry"),
    ("GET", "/healthz"),
    ("POST", "/nothing"),
]

grants = st.builds(Grant, st.sampled_from([*NAMES, "*"]), st.booleans(), st.booleans())
conditions = st.sampled_from(["acme", "umbrella"]).map(lambda value: Condition("tenant", (value,)))
rights = st.builds(
    Rights,
    st.sampled_from([None, None, GlobalMode.R, GlobalMode.M]),
    st.lists(grants, max_size=3).map(lambda some: Grants(*some)),
    st.lists(conditions, max_size=2, unique=True).map(tuple),
)
admissions = rights.map(lambda held: Admission(Principal(IDENTITY, "rule", "role", held, None), None))
policies = st.sampled_from(
    [
        *(NO_POLICY, QueryPolicy(max_limit=5), QueryPolicy(max_limit=3, hides_vectors=True), QueryPolicy(timeout=1)),
        QueryPolicy(hidden=hidden_keys([("n",)])),
    ]
)
bounded = st.builds(lambda held, queries: replace(held, queries=queries), rights, policies).map(
    lambda held: Admission(Principal(IDENTITY, "rule", "role", held, None), None)
)


def planned(admission: Admission, request: tuple[str, str]) -> Plan:
    """By the head."""
    asked = recognise(*request)
    judged = decide_request(admission, asked)
    route: Route = Reduced(b"", judged.listing) if judged.listing is not None else Relayed(b"")
    if judged.decision is UNREAD:
        route = Unread(
            NOTHING,
            asked,
            admission,
            None,
            confined=bool(admission.confinements),
            rewritten=True,
            whole=True,
            repeats=False,
            ruling=NOTHING,
        )
    return Plan("", "", judged.decision, LINE, route, queries=concerning(admission.queries, asked.operation))


def decided(plan: Plan, body: bytes) -> Plan:
    """By head and body, where the head alone does not."""
    if not isinstance(plan.route, Unread):
        return plan
    try:
        read = at_once(deciding_body(plan.route.admission, plan.route.asked, body))
    except (BadRequest, PolicyRefused, Unconfined, FactsNeeded) as error:
        return plan.refused(Decision(allowed=False, reason=type(error).__name__))
    return Plan("", "", read.decision, LINE, Relayed(b""), body_facts=read.facts, queries=plan.queries)


@pytest.mark.plain  # stand-ins for compiled classes
@pytest.mark.fuzz
@given(bounded, bounded, st.sampled_from(REQUESTS), st.sampled_from(BODIES))
def test_of_rest(before: Admission, now: Admission, request: tuple[str, str], body: bytes) -> None:
    head = planned(now, request)
    former = decided(planned(before, request), body)
    fresh = decided(head, body)
    if not former.decision.allowed:
        return
    outcome = former.under(head)
    body_facts = former.body_facts.confinements if former.body_facts is not None else ()
    operation = recognise(*request).operation
    confinable = operation is not None and is_confinable(operation)
    confined = not isinstance(head.route, Unread) or not confinable or is_within(body_facts, now.confinements)
    known = not isinstance(head.route, Unread) or former.body_facts is not None
    reduced = not isinstance(head.route, Reduced) or isinstance(former.route, Reduced)
    strict = former.queries.meets(head.queries)
    if isinstance(outcome, Plan):
        assert fresh.decision.allowed
        assert confined
        assert strict
        assert known
        assert reduced
        assert not isinstance(head.route, Reduced) or outcome.route == head.route
    else:
        assert not outcome.allowed
        assert not (fresh.decision.allowed and confined and known and reduced and strict)


def called(admission: Admission, path: str, named: tuple[str, ...] | None) -> CallPlan:
    """By its method, and by a message that names these."""
    operation = operation_of(path)
    assert operation is not None
    judged = decide_call(admission, operation)
    asked = Asked.of(NOTHING, operation, admission, judged.listing)
    if judged.decision is not UNREAD:
        return CallPlan("", "", judged.decision, NOTHING, asked=asked)
    if named is None:
        return CallPlan("", "", judged.decision, NOTHING, asked=asked, unread=True)
    names = BodyNames(read=named[1:])
    decision = decide_message(admission, operation, named[0], names, confined=bool(asked.confinements))
    facts = BodyFacts(names, asked.confinements, named[0], asked.queries)
    return CallPlan("", "", decision, NOTHING, asked=asked, body_facts=facts)


@pytest.mark.plain  # stand-ins for compiled classes
@pytest.mark.fuzz
@given(
    bounded,
    bounded,
    st.sampled_from([operation.path for operation in GRPC]),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=2).map(tuple),
)
def test_of_grpc(before: Admission, now: Admission, path: str, named: tuple[str, ...]) -> None:
    former, head, fresh = called(before, path, named), called(now, path, None), called(now, path, named)
    if not former.decision.allowed:
        return
    assert former.asked is not None
    assert head.asked is not None
    outcome = former.under(head)
    body_facts = former.body_facts.confinements if former.body_facts is not None else ()
    confined = not head.unread or is_within(body_facts, head.asked.confinements)
    known = not head.unread or former.body_facts is not None
    met = not head.unread or former.body_facts is None or former.body_facts.queries.meets(head.asked.queries)
    reduced = head.asked.listing is None or former.asked.listing is not None
    if isinstance(outcome, CallPlan):
        assert fresh.decision.allowed
        assert confined
        assert known
        assert met
        assert reduced
    else:
        assert not outcome.allowed
        assert not (fresh.decision.allowed and confined and known and met and reduced)


@pytest.mark.plain  # stand-ins for compiled classes
def test_an_unread_body_under_a_new_policy() -> None:
    """It was not read, as nothing required that; the reason is the policy."""
    before = Rights(GlobalMode.R)
    free, bound = (
        Admission(Principal(IDENTITY, "rule", "role", held, None), None)
        for held in (before, replace(before, queries=QueryPolicy(max_limit=5)))
    )
    request = ("POST", "/collections/docs/points/query")
    assert planned(free, request).under(planned(bound, request)) is BEYOND_POLICY
    path = "/qdrant.Points/Query"
    assert called(free, path, ("docs",)).under(called(bound, path, None)) is BEYOND_POLICY
