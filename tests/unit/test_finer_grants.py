"""Modes and filters that Qdrant's tokens do not have: `pr`, `m` on collections, and operations by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from support.access_table import FINER, ROWS
from support.rows import rows

from tlsproxy.authz.access import (
    EVERY,
    MODES,
    UNREAD,
    BodyNames,
    Condition,
    Decision,
    GlobalMode,
    Grant,
    Grants,
    OperationFilter,
    Rights,
    Scope,
    decide,
)
from tlsproxy.authz.admission import Admission, Credential
from tlsproxy.authz.claims import MalformedToken, read_claims
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.grpc_decision import (
    collection_finder,
    decide_at_best,
    decide_call,
    decide_call_again,
    decide_message,
    operation_of,
)
from tlsproxy.qdrant.operations import BATCHED, GRPC, REST, Operation
from tlsproxy.qdrant.rest_decision import BodyFacts, decide_again, decide_all, decide_request, deciding_body
from tlsproxy.qdrant.router import recognise
from tlsproxy.wire.cooperative import at_once

IDENTITY = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9)


def granted(*grants: tuple[str, str] | Grant, operations: OperationFilter = EVERY) -> Rights:
    """``("docs", "pr")`` is a grant of this mode."""
    made = [one if isinstance(one, Grant) else grant(*one) for one in grants]
    return Rights(grants=Grants(*made), operations=operations)


def grant(collection: str, mode: str, operations: OperationFilter = EVERY) -> Grant:
    write, extras, manage = MODES[mode]
    return Grant(collection, write, extras, manage, operations)


def allow(*names: str) -> OperationFilter:
    return OperationFilter(allow=frozenset(names))


def deny(*names: str) -> OperationFilter:
    return OperationFilter(deny=frozenset(names))


def admission(*rights: Rights) -> Admission:
    first, *more = rights
    principal = Principal(IDENTITY, rule="rule", role="role", rights=first, refusal=None)
    return Admission(principal, Credential("Jwt", "key", tuple(more)) if more else None)


def rest(method: str, path: str, body: Any, *rights: Rights) -> Decision:
    """The decision in the end: by the body, where the head leaves it open."""
    asked = recognise(method, path)
    decision = decide_request(admission(*rights), asked).decision
    if decision is UNREAD:
        judged = at_once(deciding_body(admission(*rights), asked, json.dumps(body).encode()))
        assert judged.body is None
        decision = judged.decision
    return decision


def called(path: str, message: Any, *rights: Rights) -> Decision:
    operation = operation_of(f"/qdrant.{path}")
    assert operation is not None
    decision = decide_call(admission(*rights), operation).decision
    if decision is UNREAD:
        finder = collection_finder(operation)
        finder.feed(message.SerializeToString())
        decision = decide_message(admission(*rights), operation, *finder.named(), confined=False)
    return decision


CLASSES = {
    "pr": Rights(everywhere=GlobalMode.PR),
    "cpr": granted(("docs", "pr")),
    "cm": granted(("docs", "m")),
}
TABLE = [(operation, "rest") for operation in REST] + [(operation, "grpc") for operation in GRPC]


@rows(("operation", "surface"), TABLE, ids=lambda one: getattr(one, "path", one))
def test_modes_pass_what_they_are_defined_to_pass(operation: Operation, surface: str) -> None:
    method = "GET" if operation.path.startswith("/dashboard") else operation.method
    passes = FINER[surface, method, operation.path]
    collection, names = ("docs", BodyNames()) if "lias" not in operation.path else (None, BodyNames(change=("docs",)))
    if operation.name == "list_collection_aliases":
        collection = "docs"
    for name, rights in CLASSES.items():
        decision = decide_all((rights,), operation, collection, names=names, reduced=True, confined=False)
        assert decision.allowed is (name in passes), name
        elsewhere = decide_all(
            (rights,),
            operation,
            collection and "docs-now",
            names=BodyNames(change=("docs", "docs-now")),
            reduced=True,
            confined=False,
        )
        everywhere = operation.requirement.scope in {Scope.NONE, Scope.CALLER, Scope.CREDENTIAL} or name == "pr"
        assert elsewhere.allowed is (name in passes and everywhere)


def test_every_row_says_what_the_own_modes_pass() -> None:
    assert FINER.keys() == {(row["surface"], row["method"], row["path"]) for row in ROWS}


# Between its neighbours

NARROWER = [("pr", "r"), ("pr", "prw"), ("prw", "rw"), ("r", "rw"), ("rw", "m")]
names = st.sampled_from(["docs", "docs-a", "other"])
operation_names = st.sampled_from(sorted({operation.name for operation, _ in TABLE}))
filters = st.builds(
    OperationFilter,
    st.none() | st.frozensets(operation_names, max_size=6),
    st.frozensets(operation_names, max_size=3),
)
bodies = st.builds(
    BodyNames,
    st.lists(names, max_size=2).map(tuple),
    st.lists(names, max_size=2).map(tuple),
    st.lists(st.sampled_from(BATCHED), max_size=2).map(tuple),
)
grants = st.builds(grant, st.sampled_from(["docs", "docs*", "**"]), st.sampled_from(sorted(MODES)), filters)
rights = st.builds(
    Rights,
    st.none() | st.sampled_from(GlobalMode),
    st.lists(grants, max_size=3).map(lambda each: Grants(*each)),
    operations=filters,
).map(lambda one: one if one.limited else replace(one, grants=Grants()))


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    operation, _ = draw(st.sampled_from(TABLE))
    return {
        "requirement": operation.requirement,
        "operation": operation.name,
        "collection": None if operation.names_changed else draw(names),
        "names": draw(bodies),
        "reduced": draw(st.booleans()),
    }


@pytest.mark.fuzz
@given(questions(), st.sampled_from(["docs", "**"]), filters)
def test_each_mode_lies_between_its_neighbours(
    question: dict[str, Any], name: str, operations: OperationFilter
) -> None:
    for less, more in NARROWER:
        narrow, wide = (granted(grant(name, mode, operations)) for mode in (less, more))
        assert decide(wide, **question).allowed or not decide(narrow, **question).allowed, (less, more)
    for narrow_global, wide_global in ((GlobalMode.PR, GlobalMode.R), (GlobalMode.R, GlobalMode.M)):
        assert decide(Rights(wide_global), **question).allowed or not decide(Rights(narrow_global), **question).allowed
    for mode, everywhere in (("pr", GlobalMode.PR), ("m", GlobalMode.M)):  # a grant is never more than its global kind
        assert decide(Rights(everywhere), **question).allowed or not decide(granted((name, mode)), **question).allowed


@pytest.mark.fuzz
@given(questions(), rights, filters)
def test_a_filter_of_operations_never_widens_and_denying_wins(
    question: dict[str, Any], held: Rights, operations: OperationFilter
) -> None:
    free = replace(held, operations=EVERY)
    narrowed = decide(replace(held, operations=operations), **question)
    used = (question["operation"], *question["names"].operations)
    everybodys = question["requirement"].scope in {Scope.NONE, Scope.CALLER}
    within = all(operation not in operations.deny for operation in used) and (
        operations.allow is None or operations.allow.issuperset(used)
    )
    assert narrowed.allowed is (decide(free, **question).allowed and (within or everybodys))
    fewer = Grants(*(replace(one, operations=operations) for one in held.grants))
    if all(one.operations is EVERY for one in held.grants):
        assert decide(held, **question).allowed or not decide(replace(held, grants=fewer), **question).allowed


@pytest.mark.fuzz
@given(questions(), rights, grants)
def test_a_grant_more_never_refuses(question: dict[str, Any], held: Rights, more: Grant) -> None:
    if held.limited and decide(held, **question).allowed:
        assert decide(replace(held, grants=Grants(*held.grants, more)), **question).allowed


def test_one_grant_must_both_permit_and_have_the_operation() -> None:
    held = granted(grant("docs", "r"), grant("docs*", "rw", deny("delete_points")))
    assert rest("PUT", "/collections/docs/points", {}, held).allowed
    assert rest("POST", "/collections/docs/points/scroll", {}, held).allowed
    refusal = rest("POST", "/collections/docs/points/delete", {}, held)
    assert (refusal.status, refusal.reason) == (403, "operation")
    assert refusal.text == "Forbidden: Operation delete_points is not allowed for collection docs"
    both = granted(*held.grants, ("docs", "rw"))
    assert rest("POST", "/collections/docs/points/delete", {}, both).allowed
    denied = rest("POST", "/collections/docs/points/delete", {}, replace(both, operations=deny("delete_points")))
    assert denied.text == "Forbidden: Operation delete_points is not allowed"


# Aliases

ALIASES = "/collections/aliases"
MANAGER = granted(("docs-*", "m"), ("logs", "rw"))


def alias_actions(*actions: dict[str, Any]) -> dict[str, Any]:
    return {"actions": list(actions)}


def create(collection: str, alias: str) -> dict[str, Any]:
    return {"create_alias": {"collection_name": collection, "alias_name": alias}}


def rename(old: str, new: str) -> dict[str, Any]:
    return {"rename_alias": {"old_alias_name": old, "new_alias_name": new}}


def delete(alias: str) -> dict[str, Any]:
    return {"delete_alias": {"alias_name": alias}}


ACTIONS = [
    ([create("docs-a", "docs-now")], ""),
    ([create("docs-a", "docs-now"), rename("docs-now", "docs-x"), delete("docs-x")], ""),
    ([create("logs", "docs-now")], "logs"),
    ([create("docs-a", "now")], "now"),
    ([create("secret", "docs-now")], "secret"),
    ([rename("now", "docs-now")], "now"),
    ([rename("docs-now", "now")], "now"),
    ([delete("now")], "now"),
    ([create("docs-a", "docs-now"), delete("docs-b"), delete("now")], "now"),
    ([create("docs-a", "docs.now")], "docs.now"),
]


def message_of(actions: list[dict[str, Any]]) -> Any:
    return pb.ChangeAliases(actions=[pb.AliasOperations(**one) for one in actions])


@rows(("actions", "missing"), ACTIONS)
def test_every_name_of_every_action_must_be_under_m(actions: list[dict[str, Any]], missing: str) -> None:
    for decision in (
        rest("POST", ALIASES, alias_actions(*actions), MANAGER),
        rest("POST", ALIASES, alias_actions(*actions), Rights(GlobalMode.M), MANAGER),
        called("Collections/UpdateAliases", message_of(actions), MANAGER),
        called("Collections/UpdateAliases", message_of(actions), Rights(GlobalMode.M), MANAGER),
    ):
        assert decision.allowed is (not missing)
        if missing:
            wanted = "Manage access for this operation" if missing == "logs" else f"Access to collection {missing}"
            assert decision.text == f"Forbidden: {wanted} is required"
    assert rest("POST", ALIASES, alias_actions(*actions), Rights(GlobalMode.M)).allowed
    for others in (granted(("**", "rw")), granted(), replace(MANAGER, conditions=(Condition("tenant", ("a",)),))):
        assert not rest("POST", ALIASES, alias_actions(*actions), others).allowed
        assert not called("Collections/UpdateAliases", message_of(actions), others).allowed
    without = replace(MANAGER, operations=deny("change_aliases"))
    assert rest("POST", ALIASES, alias_actions(*actions), without).reason == "operation"
    assert called("Collections/UpdateAliases", message_of(actions), without).reason == "operation"


@rows(
    "body",
    [
        [],
        {},
        {"actions": None},
        {"actions": {}},
        {"actions": [[]]},
        {"actions": [{}]},
        {"actions": [{"swap_alias": {"alias_name": "docs-a"}}]},
        {"actions": [{**delete("docs-a"), **create("docs-a", "docs-b")}]},
        {"actions": [{"create_alias": ["docs-a", "docs-b"]}]},
        {"actions": [{"create_alias": {"collection_name": "docs-a"}}]},
        {"actions": [{"delete_alias": {"alias_name": None}}]},
        alias_actions(delete("")),
        alias_actions(create("docs-a", "")),
        {"actions": [{"delete_alias": {"alias_name": "docs-a", "collection_name": "docs-b"}}]},
        {"actions": [delete("docs-a")], "more": []},
    ],
)
def test_actions_of_another_form_are_refused(body: Any) -> None:
    with pytest.raises(BadRequest):
        rest("POST", ALIASES, body, MANAGER)


def test_actions_without_a_name_are_refused() -> None:
    assert not rest("POST", ALIASES, alias_actions(), MANAGER).allowed
    assert not called("Collections/UpdateAliases", pb.ChangeAliases(), MANAGER).allowed
    assert not called("Collections/UpdateAliases", message_of([{}]), MANAGER).allowed
    with pytest.raises(BadRequest):
        called("Collections/UpdateAliases", message_of([delete("")]), MANAGER)


# Collections


@pytest.mark.parametrize(
    ("method", "path", "call", "message"),
    [
        ("PUT", "/collections/{}", "Create", pb.CreateCollection),
        ("PATCH", "/collections/{}", "Update", pb.UpdateCollection),
        ("DELETE", "/collections/{}", "Delete", pb.DeleteCollection),
        ("POST", "/collections/{}/cluster", "UpdateCollectionClusterSetup", pb.UpdateCollectionClusterSetupRequest),
        ("PUT", "/collections/{}/shards", "CreateShardKey", pb.CreateShardKeyRequest),
        ("POST", "/collections/{}/shards/delete", "DeleteShardKey", pb.DeleteShardKeyRequest),
    ],
)
def test_collections_are_managed_by_name(method: str, path: str, call: str, message: Any) -> None:
    def both(name: str, *rights: Rights) -> set[bool]:
        by_rest = rest(method, path.format(name), {}, *rights)
        return {by_rest.allowed, called(f"Collections/{call}", message(collection_name=name), *rights).allowed}

    assert both("docs-a", MANAGER) == {True}
    assert both("docs-a", Rights(GlobalMode.M), MANAGER) == {True}
    assert both("docs-a", MANAGER, granted(("docs-a", "m"))) == {True}
    for name in ("docs.a", "docs", "other", "logs", "docs-a.b", "Docs-a"):
        assert both(name, MANAGER) == {False}
    assert both("docs-a", MANAGER, Rights(GlobalMode.R)) == {False}
    assert both("docs-a", MANAGER, granted(("docs-a", "rw"))) == {False}
    assert both("docs-a", replace(MANAGER, conditions=(Condition("tenant", ("a",)),))) == {False}


def test_a_collection_that_is_made_from_another_needs_access_to_that_one() -> None:
    for source, allowed in (("docs-b", True), ("logs", True), ("other", False)):
        decision = rest("PUT", "/collections/docs-a", {"init_from": {"collection": source}}, MANAGER)
        assert decision.allowed is allowed
    only = granted(grant("docs-*", "m"), grant("logs", "r", allow("scroll")))
    assert not rest("PUT", "/collections/docs-a", {"init_from": {"collection": "logs"}}, only).allowed


def test_snapshots_from_elsewhere_stay_global() -> None:
    for method, path in (
        ("PUT", "/collections/docs-a/snapshots/recover"),
        ("POST", "/collections/docs-a/snapshots/upload"),
        ("PUT", "/collections/docs-a/shards/0/snapshots/recover"),
        ("POST", "/collections/docs-a/shards/0/snapshots/upload"),
        ("POST", "/collections/docs-a/shards/0/snapshot/partial/recover"),
        ("POST", "/collections/docs-a/shards/0/snapshot/partial/recover_from"),
        ("POST", "/collections/docs-a/truncate_unapplied_wal"),
    ):
        assert rest(method, path, {}, MANAGER).reason == "needs_global"
        assert rest(method, path, {}, Rights(GlobalMode.M)).allowed


# Listings


def test_who_reads_points_alone_sees_listings_by_name_and_without_sums() -> None:
    answer = {
        "result": {"id": "x", "collections": {"collections": [{"id": "docs"}]}, "memory": {"all": 1}},
        "time": 0.1,
    }
    for rights in (CLASSES["pr"], granted(("**", "pr")), granted(("docs", "pr"))):
        listing = decide_request(admission(rights), recognise("GET", "/telemetry")).listing
        assert listing is not None
        shown = json.loads(at_once(listing.reducing(json.dumps(answer).encode())))["result"]
        assert shown == {"id": "x", "collections": {"number_of_collections": 1, "collections": [{"id": "docs"}]}}


def test_a_listing_names_what_a_grant_with_its_operation_covers() -> None:
    held = granted(grant("docs", "r"), grant("logs", "rw", deny("list_collections")), grant("l*", "r", allow("scroll")))
    listing = decide_request(admission(held), recognise("GET", "/collections")).listing
    assert listing is not None
    answer = {"result": {"collections": [{"name": "docs"}, {"name": "logs"}]}}
    assert json.loads(at_once(listing.reducing(json.dumps(answer).encode()))) == {
        "result": {"collections": [{"name": "docs"}]}
    }
    hidden = granted(grant("logs", "rw", allow("scroll")))
    assert rest("GET", "/collections", {}, hidden).reason == "operation"
    assert rest("POST", "/collections/logs/points/query", {"lookup_from": {"collection": "docs"}}, held).allowed
    named = {"lookup_from": {"collection": "logs"}}
    assert rest("POST", "/collections/docs/points/query", named, held).allowed
    assert not rest("POST", "/collections/docs/points/query", named, granted(("docs", "r"), *hidden.grants)).allowed


# Batches

BATCH = "/collections/docs/points/batch"
UPSERT, DELETE = {"upsert": {"points": []}}, {"delete": {"points": [1]}}


def batched(*kinds: str) -> Any:
    operations = [pb.PointsUpdateOperation() for _ in kinds]
    for operation, kind in zip(operations, kinds, strict=True):
        getattr(operation, kind).SetInParent()
    return pb.UpdateBatchPoints(collection_name="docs", operations=operations)


@pytest.mark.parametrize(
    "held",
    [
        Rights(GlobalMode.M, operations=deny("delete_points")),
        Rights(GlobalMode.M, operations=allow("update_batch", "upsert_points")),
        granted(grant("docs", "rw", deny("delete_points"))),
        granted(grant("docs", "rw", deny("delete_points")), grant("docs", "r")),
    ],
)
def test_a_batch_carries_no_operation_that_may_not_be_used(held: Rights) -> None:
    assert rest("POST", BATCH, {"operations": [UPSERT]}, held).allowed
    assert called("Points/UpdateBatch", batched("upsert"), held).allowed
    for refusal in (
        rest("POST", BATCH, {"operations": [UPSERT, DELETE]}, held),
        called("Points/UpdateBatch", batched("upsert", "delete_points"), held),
        called("Points/UpdateBatch", batched("delete_deprecated"), held),
    ):
        assert (refusal.status, refusal.reason) == (403, "operation")
        assert "Operation delete_points is not allowed" in refusal.text
    assert decide_request(admission(Rights(GlobalMode.M)), recognise("POST", BATCH)).decision.allowed


@pytest.mark.parametrize(
    "operations", [None, {}, [[]], [{}], [{"replace": {}}], [{**UPSERT, **DELETE}], [{"delete": [1]}]]
)
def test_a_batch_of_another_form_is_refused(operations: Any) -> None:
    with pytest.raises(BadRequest):
        rest("POST", BATCH, {"operations": operations}, Rights(GlobalMode.M, operations=deny("delete_points")))


# What is under way


def test_a_request_under_way_is_decided_again_by_its_names() -> None:
    aliases = recognise("POST", ALIASES)
    facts = BodyFacts(BodyNames(change=("docs-a", "docs-now")), ())
    assert decide_again(admission(MANAGER), aliases, facts).allowed
    assert not decide_again(admission(granted(("docs-a", "m"))), aliases, facts).allowed
    called_so = operation_of("/qdrant.Collections/UpdateAliases")
    assert called_so is not None
    assert decide_call_again(admission(MANAGER), called_so, facts).allowed
    assert not decide_call_again(admission(granted(("docs-a", "m"))), called_so, facts).allowed
    batch, carried = recognise("POST", BATCH), BodyFacts(BodyNames(operations=("delete_points",)), ())
    assert decide_again(admission(Rights(GlobalMode.M)), batch, carried).allowed
    assert not decide_again(admission(Rights(GlobalMode.M, operations=deny("delete_points"))), batch, carried).allowed


@pytest.mark.fuzz
@given(st.sampled_from(GRPC), rights, names, bodies)
def test_a_refusal_before_the_message_holds_for_every_message(
    operation: Operation, held: Rights, collection: str, body: BodyNames
) -> None:
    caller = admission(held)
    head, best = decide_call(caller, operation).decision, decide_at_best(caller, operation)
    name = None if operation.names_changed else collection
    whole = decide_message(caller, operation, name, body, confined=False)
    if whole.allowed:
        assert best.allowed
        assert head.allowed or head is UNREAD
    elif head.allowed:  # what the message names does not matter then
        assert body.operations
        assert not operation.carries


@pytest.mark.fuzz
@given(st.sampled_from(REST), rights, names, bodies)
def test_a_decision_by_the_head_holds_for_every_body(
    operation: Operation, held: Rights, collection: str, body: BodyNames
) -> None:
    target = operation.path.replace("{collection_name}", collection).replace("{tail...}", "x")
    asked, caller = recognise(operation.method, re.sub(r"\{\w+\}", "7", target)), admission(held)
    assert asked.operation is operation
    possible = BodyNames(
        body.read if operation.names_others else (),
        body.change if operation.names_changed else (),
        body.operations if operation.carries else (),
    )
    head = decide_request(caller, asked)
    reduced = head.listing is not None
    whole = decide_all(caller.rights, operation, asked.collection, names=possible, reduced=reduced, confined=False)
    if head.decision is not UNREAD:
        assert head.decision.allowed is whole.allowed
    elif operation.requirement.listing:
        assert not whole.allowed


# Qdrant's own tokens


@pytest.mark.parametrize(
    "access",
    [
        "pr",
        [{"collection": "docs", "access": "pr"}],
        [{"collection": "docs", "access": "m"}],
        [{"collection": "docs*", "access": "m"}],
    ],
)
def test_a_token_cannot_have_them(access: object) -> None:
    with pytest.raises(MalformedToken):
        read_claims(json.dumps({"access": access}).encode())


def test_a_token_cannot_name_operations() -> None:
    claims = {"access": [{"collection": "docs", "access": "rw", "operations": {"allow": []}}], "operations": {}}
    assert read_claims(json.dumps(claims).encode()).rights == granted(("docs", "rw"))


@pytest.mark.parametrize(
    ("held", "spelled"),
    [
        (Rights(GlobalMode.PR), "pr"),
        (granted(("docs", "pr"), ("docs-*", "m")), "docs pr, docs-* m"),
        (granted(grant("docs", "rw", deny("b", "a"))), "docs rw (except a, b)"),
        (Rights(GlobalMode.R, operations=allow("scroll")), "r; only scroll"),
        (
            granted(("docs", "r"), operations=OperationFilter(frozenset(), frozenset("a"))),
            "docs r; only nothing except a",
        ),
    ],
)
def test_rights_are_spelled(held: Rights, spelled: str) -> None:
    assert str(held) == spelled
