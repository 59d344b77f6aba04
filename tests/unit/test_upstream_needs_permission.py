"""Bytes for the upstream are made for an allowed request alone, whatever it asks for and whoever asks."""

from __future__ import annotations

import re
import time

import pytest
from support.relay_generation import KEYS, asked, planned_whole, relay_generation
from support.site import Site

from tlsproxy.authz.access import NO_NAMES, UNREAD, Decision
from tlsproxy.proxy.decision.call_plan import CallPlans
from tlsproxy.proxy.decision.request_plan import Plans
from tlsproxy.proxy.decision.unread_body import Unread
from tlsproxy.proxy.limits.quotas import Quotas
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.qdrant.operations import GRPC, REST, Operation
from tlsproxy.snapshot.generation import Generation

NOW = time.time()
ENDED = Decision(allowed=False, reason="certificate_revoked", status=401)
CALLERS = [*KEYS, "wrong", ""]
"""Everywhere, one collection, a tenant of it, a key that nobody has, and no key."""


@pytest.fixture(scope="module")
def generation(site: Site) -> Generation:
    return relay_generation(site)


@pytest.fixture(scope="module")
def plans(generation: Generation) -> Plans:
    return Plans(generation, Quotas(generation.config, LimitTable.private().account))


@pytest.fixture(scope="module")
def call_plans(generation: Generation) -> CallPlans:
    return CallPlans(generation, Quotas(generation.config, LimitTable.private().account))


def head(operation: Operation, caller: str, collection: str = "docs", length: int = 0) -> bytes:
    path = operation.path.replace("{collection_name}", collection).replace("{tail...}", "app/index.js")
    lines = [f"{operation.method} {re.sub(r'{[a-z_]+}', '7', path)} HTTP/1.1", "host: h"]
    lines += [f"api-key: {KEYS.get(caller, caller)}"] if caller else []
    lines += [f"content-length: {length}"] if length else []
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize("caller", CALLERS)
def test_a_head(generation: Generation, plans: Plans, caller: str) -> None:
    principal = generation.principal_of(None)
    for operation in REST:
        for collection in ("docs", "other"):
            plan = plans.make(principal, head(operation, caller, collection), NOW)
            assert bool(plan.upstream) is (plan.decision.allowed and not operation.own), operation.path
            if caller in {"wrong", ""} and not operation.open:
                assert not plan.decision.allowed, operation.path
            if caller not in {"plain", "wrong", ""} and "{collection_name}" in operation.path and collection == "other":
                assert not plan.upstream, operation.path
            assert not plans.make(principal, head(operation, caller, collection), NOW, ended=ENDED).upstream


@pytest.mark.parametrize("caller", CALLERS)
def test_a_call(generation: Generation, call_plans: CallPlans, caller: str) -> None:
    """The head of a call whose message decides goes up before it; what completes the message waits for the decision."""
    principal = generation.principal_of(None)
    for operation in GRPC:
        fields = tuple((name.encode(), value.encode()) for name, value in asked(operation.path, caller) if value)
        plan = call_plans.make(principal, fields, NOW)
        assert bool(plan.block) is (plan.decision.allowed or plan.decision is UNREAD), operation.path
        assert plan.unread is (plan.decision is UNREAD)
        if caller in {"wrong", ""} and not operation.open:
            assert plan.decision.status == 401, operation.path
        if plan.unread and plan.asked is not None:
            theirs, others = (call_plans.judged(plan.asked, name, NO_NAMES) for name in ("docs", "other"))
            assert bool(theirs.block) is theirs.decision.allowed, operation.path
            assert (others.decision.allowed, others.block) == (False, b""), operation.path
        assert not call_plans.make(principal, fields, NOW, ended=ENDED).block


def test_a_body(generation: Generation, plans: Plans) -> None:
    operation = next(one for one in REST if one.name == "query_points" or one.path.endswith("/points/query"))
    for collection, allowed in (("docs", True), ("other", False)):
        body = b'{"lookup_from": {"collection": "%s"}}' % collection.encode()
        plan = plans.make(generation.principal_of(None), head(operation, "limited", length=len(body)), NOW)
        assert (plan.upstream, plan.decision) == (b"", UNREAD)
        assert isinstance(plan.route, Unread)
        read, _ = planned_whole(plans, plan.route, body)
        assert (read.decision.allowed, bool(read.upstream)) == (allowed, allowed)
