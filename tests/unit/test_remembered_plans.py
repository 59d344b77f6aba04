"""A refusal of a repeated head is remembered like its permission, beside it, and as long as it holds."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.relay_generation import COUNT, KEYS, LIST, ROLES, asked, planned_whole, relay_generation
from support.site import Site

from tlsproxy.authz.access import NO_NAMES
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.keys import Keys
from tlsproxy.authz.roles import Principal
from tlsproxy.authz.tokens import LEEWAY, Tokens, mint, qdrant_verifier
from tlsproxy.proxy.decision import call_plan, request_plan
from tlsproxy.proxy.decision.call_plan import CallPlans
from tlsproxy.proxy.decision.request_plan import Plan, Plans, Route
from tlsproxy.proxy.decision.unread_body import MUCH, Unread
from tlsproxy.proxy.limits.quotas import Quotas
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.qdrant.scoring import FactsNeeded
from tlsproxy.snapshot.generation import Generation

NOW = time.time()
GOOD = b"GET /collections HTTP/1.1\r\nhost: h\r\napi-key: the-key-of-plain\r\n\r\n"


@pytest.fixture(scope="module")
def generation(site: Site) -> Generation:
    return relay_generation(site)


@pytest.fixture(scope="module")
def quotas(generation: Generation) -> Quotas:
    return Quotas(generation.config, LimitTable.private().account)


@pytest.fixture(scope="module")
def principal(generation: Generation) -> Principal:
    return generation.principal_of(None)


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: h", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("seen", "remembered"),
    [
        pytest.param(GOOD, True, id="allowed"),
        pytest.param(head("/x"), True, id="nobody"),
        pytest.param(head("/x", "api-key: the-key-of-plain"), True, id="no such route"),
        pytest.param(head("/collections/other", "api-key: the-key-of-limited"), True, id="not theirs"),
        pytest.param(head("/collections/../x"), True, id="a path that is refused"),
        pytest.param(head("/collections", "api-key: wrong"), False, id="a wrong key, which may be right later"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", False, id="unreadable"),
        pytest.param(head("/" + "x" * request_plan.MEMO_HEAD), False, id="too long"),
    ],
)
def test_of_rest(
    generation: Generation, quotas: Quotas, principal: Principal, seen: bytes, *, remembered: bool
) -> None:
    plans = Plans(generation, quotas)
    first, _ = plans.of(principal, seen, NOW, None)
    again, _ = plans.of(principal, seen, NOW, None)
    assert (first is again) is remembered
    assert again.decision == first.decision
    traced = seen.replace(b"\r\nhost: h\r\n", b"\r\nhost: h\r\nx-request-id: 1\r\n")
    assert (plans.of(principal, traced, NOW, None)[0] is first) is remembered


@pytest.mark.parametrize(
    ("path", "role", "remembered"),
    [(LIST, "plain", True), ("/qdrant.Points/Nothing", "plain", True), (LIST, "wrong", False)],
)
def test_of_grpc(
    generation: Generation, quotas: Quotas, principal: Principal, path: str, role: str, *, remembered: bool
) -> None:
    plans = CallPlans(generation, quotas)
    fields = tuple((name.encode(), value.encode()) for name, value in asked(path, role))
    assert (plans.of(principal, fields, NOW) is plans.of(principal, fields, NOW)) is remembered


def test_made_up_refusals_drive_out_no_permission(generation: Generation, quotas: Quotas, principal: Principal) -> None:
    plans, called = Plans(generation, quotas), CallPlans(generation, quotas)
    good = tuple((name.encode(), value.encode()) for name, value in asked(LIST, "plain"))
    allowed, call = plans.of(principal, GOOD, NOW, None)[0], called.of(principal, good, NOW)
    for number in range(max(request_plan.MEMO_PLANS, request_plan.MEMO_REFUSALS) + 1):
        plans.of(principal, head(f"/x/{number}"), NOW, None)
    for number in range(call_plan.MEMO_PLANS + 1):
        called.of(principal, (*good[:2], (b":path", b"/none/%d" % number), *good[3:]), NOW)
    assert plans.of(principal, GOOD, NOW, None)[0] is allowed
    assert called.of(principal, good, NOW) is call
    assert len(plans._refusals) == request_plan.MEMO_REFUSALS
    assert len(called._refusals) == call_plan.MEMO_REFUSALS


@pytest.mark.parametrize(
    ("members", "written"), [(b',"limit":10', b',"limit":10'), (b"", b',"limit":10'), (b', "limit": 9', b',"limit":9')]
)
def test_bodies_under_a_query_policy_are_remembered_but_for_their_numbers(
    site: Site, members: bytes, written: bytes
) -> None:
    """Also where it is sent as it is."""
    bounded = relay_generation(site, ROLES | {"plain": {"access": "m", "queries": {"max_limit": 10}}})
    plans = Plans(bounded, Quotas(bounded.config, LimitTable.private().account))
    vectors = [b"[" + b",".join([number] * 200) + b"]" for number in (b"0.1", b"0.2")]
    bodies = [b'{"query":%b%b}' % (vector, members) for vector in vectors]
    lines = ("api-key: the-key-of-plain", f"content-length: {len(bodies[0])}")
    search = head("/collections/docs/points/query", *lines).replace(b"GET", b"POST", 1)
    plan, _ = plans.of(bounded.principal_of(None), search, NOW, None)
    assert isinstance(plan.route, Unread)
    read = [planned_whole(plans, plan.route, body) for body in bodies]
    assert read[0][0] is read[1][0]
    assert [content for _, content in read] == [b'{"query":%b%b}' % (vector, written) for vector in vectors]
    assert b"\r\ncontent-length: %d" % len(read[1][1]) in read[1][0].upstream


CALLERS = [*KEYS.values(), "wrong", ""]
FIELDS = ["", "user-agent: a", "user-agent: b", "origin: https://x", "sec-fetch-site: cross-site", "content-length: 9"]
FIELDS += ["content-type: application/grpc", "expect: 100-continue", "connection: close"]
TARGETS = ["/collections/docs/points/1", "/collections/docs/points/2?timeout=2", "/collections/docs/points/2?timeout=9"]
TARGETS += ["/collections/other/points/1", "/collections/docs/points/query", "/collections/docs", "/collections"]
TARGETS += ["/collections/docs/points/scroll?consistency=1", "/healthz", "/whoami", "/none", "/collections/.."]
requests = st.tuples(
    st.sampled_from(["GET", "POST", "PUT"]),
    st.sampled_from(TARGETS),
    st.sampled_from(CALLERS),
    st.lists(st.sampled_from(FIELDS), max_size=2, unique_by=lambda line: line.partition(":")[0]),
)


def written(method: str, target: str, key: str, lines: list[str]) -> bytes:
    given = [*filter(None, lines), *([f"api-key: {key}"] if key else [])]
    return head(target, *given).replace(b"GET", method.encode(), 1)


def comparable(plan: Plan) -> object:
    """The plan by value: what is left of a route that is compared by identity."""
    route = plan.route
    if isinstance(route, Unread):
        return replace(plan, route=None), replace(route.asked), route.head, route.rewritten, route.whole
    return plan


@pytest.mark.fuzz
@given(st.lists(requests, min_size=2, max_size=12))
def test_heads_before_it_change_no_plan(
    generation: Generation, quotas: Quotas, principal: Principal, several: list[tuple[str, str, str, list[str]]]
) -> None:
    plans = Plans(generation, quotas)
    for request in several:
        asked_head = written(*request)
        fresh = Plans(generation, quotas).make(principal, asked_head, NOW)
        assert comparable(plans.make(principal, asked_head, NOW)) == comparable(fresh)


asked_calls = st.tuples(
    st.sampled_from([LIST, COUNT, "/qdrant.Points/Nothing"]),
    st.sampled_from(["plain", "limited", "wrong"]),
    st.lists(st.sampled_from([(b"user-agent", b"a"), (b"user-agent", b"b"), (b"x-a", b"")]), max_size=2),
    st.sampled_from(["", "another"]),
)


@pytest.mark.fuzz
@given(st.lists(asked_calls, min_size=2, max_size=12))
def test_calls_before_it_change_no_plan(
    generation: Generation,
    quotas: Quotas,
    principal: Principal,
    several: list[tuple[str, str, list[tuple[bytes, bytes]], str]],
) -> None:
    """The caller is another with the same fields, or the same with others."""
    plans, callers = CallPlans(generation, quotas), {rule: replace(principal, rule=rule) for rule in ("", "another")}
    for path, key, more, rule in several:
        fields = (*((name.encode(), value.encode()) for name, value in asked(path, key)), *more)
        plan, fresh = (each.of(callers[rule], fields, NOW) for each in (plans, CallPlans(generation, quotas)))
        assert replace(plan, asked=None) == replace(fresh, asked=None)
        assert (plan.asked and replace(plan.asked).head) == (fresh.asked and fresh.asked.head)


BODIES = [b"{}", b'{"lookup_from":{"collection":"docs"}}', b'{"lookup_from":{"collection":"other"}}', b"[]", b"{"]
BODIES += [b'{"prefetch":[{"lookup_from":{"collection":"other"}}]}', b'{"query":[%b]}' % b",".join([b"0.5"] * 200)]
searches = st.tuples(
    st.sampled_from(
        ["docs/points/query", "docs/points/query?timeout=3", "docs/points/recommend", "other/points/query"]
    ),
    st.sampled_from([KEYS["limited"], KEYS["tenant"]]),
    st.sampled_from(BODIES),
)


@pytest.fixture(scope="module")
def limited_twice(site: Site) -> Generation:
    """Two callers whose bodies are read for names alone, one with more collections."""
    more = [{"collection": name, "access": "r"} for name in ("docs", "other")]
    return relay_generation(site, ROLES | {"tenant": {"access": more}})


def read(plans: Plans, principal: Principal, search: tuple[str, str, bytes]) -> Any:
    """The outcome of a search, by head and body."""
    target, key, body = search
    head = written("POST", f"/collections/{target}", key, [f"content-length: {len(body)}"])
    plan = plans.make(principal, head, NOW)
    if not isinstance(plan.route, Unread):
        return plan
    try:
        return planned_whole(plans, plan.route, body)
    except FactsNeeded as needed:
        return type(needed)


@pytest.mark.fuzz
@given(st.lists(searches, min_size=2, max_size=20))
def test_bodies_before_it_change_no_plan(
    limited_twice: Generation, quotas: Quotas, several: list[tuple[str, str, bytes]]
) -> None:
    plans, principal = Plans(limited_twice, quotas), limited_twice.principal_of(None)
    for search in several:
        assert read(plans, principal, search) == read(Plans(limited_twice, quotas), principal, search)


@pytest.mark.parametrize(("size", "at_once"), [(10, True), (MUCH + 1, False)])
def test_a_remembered_plan_of_a_small_body_takes_no_steps(
    generation: Generation, quotas: Quotas, principal: Principal, size: int, *, at_once: bool
) -> None:
    plans = Plans(generation, quotas)
    body = b'{"query":[%b]}' % b",".join([b"0.5"] * (size // 4))
    search = written("POST", "/collections/docs/points/query", KEYS["limited"], [f"content-length: {len(body)}"])
    route = plans.of(principal, search, NOW, None)[0].route
    assert isinstance(route, Unread)
    assert not isinstance(plans.read(route, body), tuple)
    first = planned_whole(plans, route, body)
    assert planned_whole(plans, route, body)[0] is first[0]
    assert isinstance(plans.read(route, body), tuple) is at_once


def test_bodies_that_name_the_same_are_decided_once_whatever_their_length(
    generation: Generation, quotas: Quotas, principal: Principal
) -> None:
    plans = Plans(generation, quotas)
    bodies = [b'{"query":[%b]}' % b",".join([number] * 200) for number in (b"0.5", b"0.25")]
    searches = [("docs/points/query", KEYS["limited"], body) for body in bodies]
    (first, _), (second, content) = (read(plans, principal, search) for search in searches)
    assert second.body_facts is first.body_facts is not None
    assert content == bodies[1]
    assert b"\r\ncontent-length: %d\r\n" % len(bodies[1]) in second.upstream


def test_all_that_is_allowed_by_one_ruling_on_the_head_has_one_on_the_body(
    limited_twice: Generation, quotas: Quotas
) -> None:
    plans, principal = Plans(limited_twice, quotas), limited_twice.principal_of(None)
    names = (b"docs", b"docs", b"other")
    bodies = [b'{"limit":%d,"lookup_from":{"collection":"%b"}}' % (limit, name) for limit, name in enumerate(names)]

    def plan_of(role: str, body: bytes) -> Plan:
        plan: Plan = read(plans, principal, ("docs/points/query", KEYS[role], body))[0]
        return plan

    limited, more = ([plan_of(role, body) for body in bodies] for role in ("limited", "tenant"))
    assert [plan.decision.allowed for plan in (*limited, *more)] == [True, True, False, True, True, True]
    assert limited[0].audit.caller is limited[1].audit.caller is not limited[2].audit.caller
    assert more[0].audit.caller is more[1].audit.caller is more[2].audit.caller is not limited[0].audit.caller


def test_heads_that_differ_in_nothing_that_decides_are_decided_once(
    generation: Generation, quotas: Quotas, principal: Principal
) -> None:
    plans = Plans(generation, quotas)
    key = "api-key: the-key-of-limited"
    first, second = (
        plans.of(principal, head(f"/collections/docs/points/{number}", key), NOW, None)[0] for number in (1, 2)
    )
    assert second.audit.caller is first.audit.caller
    assert (second.upstream, second.audit.api) != (first.upstream, first.audit.api)


def test_a_key_that_has_expired_lets_no_new_head_through(
    generation: Generation, quotas: Quotas, principal: Principal
) -> None:
    ends, policy = NOW + 60, generation.policy
    ending = tuple(replace(key, expires=ends) for key in policy.keys.keys)
    plans = Plans(replace(generation, policy=replace(policy, keys=Keys(ending))), quotas)
    outcomes = [
        plans.of(principal, head(f"/collections/docs/points/{number}", "api-key: the-key-of-plain"), now, None)[0]
        for number, now in enumerate((NOW, ends - 1, ends))
    ]
    assert [plan.decision.allowed for plan in outcomes] == [True, True, False]


def test_a_credential_is_in_memory_once_whatever_is_asked_with_it(
    generation: Generation, quotas: Quotas, principal: Principal
) -> None:
    """A token of 4 KB with its grants takes 34, and there may be 2,048 rulings."""
    tokens = Tokens((qdrant_verifier("login", "secret"),))
    trusting = replace(generation, policy=replace(generation.policy, tokens=tokens))
    plans, calls = Plans(trusting, quotas), CallPlans(trusting, quotas)
    grants = [{"collection": name, "access": "r"} for name in ("docs", "other")]
    token = mint("secret", {"access": grants, "exp": int(NOW) + 60})

    def routed(name: str, now: float) -> Route:
        search = head(f"/collections/{name}/points/query", f"authorization: Bearer {token}", "content-length: 2")
        return plans.of(principal, search.replace(b"GET", b"POST", 1), now, None)[0].route

    first, second = (routed(name, NOW) for name in ("docs", "other"))
    assert isinstance(first, Unread)
    assert isinstance(second, Unread)
    assert first.admission is second.admission
    assert routed("another", NOW) is None
    assert routed("docs", NOW + 60 + LEEWAY + 1) is None

    def called(agent: bytes, now: float) -> Admission | None:
        fields = [(name.encode(), value.encode()) for name, value in asked(COUNT, token)]
        asked_by = calls.of(principal, (*fields, (b"user-agent", agent)), now).asked
        return None if asked_by is None else asked_by.admission

    admissions = [called(agent, now) for agent, now in ((b"a", NOW), (b"b", NOW), (b"c", NOW + 60 + LEEWAY + 1))]
    assert admissions == [admissions[0], admissions[0], None]
    assert admissions[0] is admissions[1] is not None


def test_the_plan_of_a_large_head_and_its_body_is_not_remembered(
    generation: Generation, quotas: Quotas, principal: Principal
) -> None:
    """Such a head is not, so that nothing would find its body's plan again."""
    plans, calls = Plans(generation, quotas), CallPlans(generation, quotas)
    for size in (request_plan.MEMO_HEAD, 1):
        lines = (f"x-large: {'x' * size}", f"api-key: {KEYS['limited']}", "content-length: 2")
        search = head("/collections/docs/points/query", *lines).replace(b"GET", b"POST", 1)
        route = plans.of(principal, search, NOW, None)[0].route
        assert isinstance(route, Unread)
        assert planned_whole(plans, route, b"{}")[0].decision.allowed
        fields = [*asked(COUNT, "limited"), ("x-large", "x" * size)]
        call = calls.of(principal, tuple((name.encode(), value.encode()) for name, value in fields), NOW)
        assert call.asked is not None
        assert calls.judged(call.asked, "docs", NO_NAMES).decision.allowed
        remembered = size == 1
        assert (len(plans._read), len(calls._judged)) == (remembered, remembered)
