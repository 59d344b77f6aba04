"""Every gRPC method × every kind of caller: who passes is who passes in Qdrant, by the method or by the message."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from support.access_table import ROWS
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
    Scope,
    forbidden,
)
from tlsproxy.authz.admission import NO_CREDENTIAL, Admission, Credential
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.answer_statistics import AnswerReducer
from tlsproxy.qdrant.grpc_decision import (
    collection_finder,
    decide_at_best,
    decide_call,
    decide_call_again,
    decide_message,
    operation_of,
)
from tlsproxy.qdrant.grpc_tenancy import is_confinable_call
from tlsproxy.qdrant.operations import ANY_CALLER, GRPC, OPEN, READ_LISTING, Operation
from tlsproxy.qdrant.rest_decision import BodyFacts
from tlsproxy.qdrant.rest_tenancy import touches_no_points
from tlsproxy.wire.protobuf import delimited

PASSES = {row["path"]: row["passes"].split() for row in ROWS if row["surface"] == "grpc"}
PASSES["/qdrant.StorageRead/ReadMulti"] = PASSES["/qdrant.StorageRead/ReadBatch"]  # until 1.18

CLASSES = {
    "m": Rights(everywhere=GlobalMode.M),
    "r": Rights(everywhere=GlobalMode.R),
    "cr": Rights(grants=Grants(Grant("docs", write=False, extras=True))),
    "crw": Rights(grants=Grants(Grant("docs", write=True, extras=True))),
    "cprw": Rights(grants=Grants(Grant("docs", write=True, extras=False))),
}
IDENTITY = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9)
ACME = (Condition("tenant", ("acme",)),)
CONFINED = BodyFacts(NO_NAMES, confinement(tenant="acme"), "docs")
ABOUT_DOCS = pb.GetCollectionInfoRequest(collection_name="docs").SerializeToString()


def admission(*rights: Rights) -> Admission:
    first, *more = rights
    principal = Principal(IDENTITY, rule="rule", role="role", rights=first, refusal=None)
    return Admission(principal, Credential("Jwt", "key", tuple(more)) if more else None)


def method(path: str) -> Operation:
    found = operation_of(path)
    assert found is not None
    return found


def outcome(operation: Operation, message: bytes, *rights: Rights, confined: bool = False) -> Decision:
    """What is decided in the end: of a call that is left open, by its message."""
    caller = admission(*rights)
    decision = decide_call(caller, operation).decision
    if decision is not UNREAD:
        return decision
    reading = collection_finder(operation)
    reading.feed(message)
    return decide_message(caller, operation, *reading.named(), confined=confined)


METHODS = [pytest.param(row, id=row.path) for row in GRPC]


@rows("operation", METHODS)
@rows("name", CLASSES)
def test_who_passes_is_who_passes_in_qdrant(operation: Operation, name: str) -> None:
    decision = outcome(operation, ABOUT_DOCS, CLASSES[name])
    assert decision.allowed is (name in PASSES[operation.path])
    if not decision.allowed:
        assert decision.status == 403
        assert decision.text.startswith("Forbidden: ")
    if CLASSES[name].limited and operation.requirement.scope is Scope.COLLECTION:
        elsewhere = pb.GetCollectionInfoRequest(collection_name="other").SerializeToString()
        refused = outcome(operation, elsewhere, CLASSES[name])
        assert not refused.allowed
        assert outcome(operation, elsewhere, Rights(grants=Grants(Grant("*", write=True, extras=True)))).allowed is (
            "crw" in PASSES[operation.path]
        )


@rows("operation", METHODS)
def test_global_rights_are_decided_without_the_message(operation: Operation) -> None:
    for rights in (CLASSES["m"], CLASSES["r"]):
        assert decide_call(admission(rights), operation).decision is not UNREAD
        assert decide_call(admission(rights), operation).listing is None


@rows("operation", METHODS)
def test_qdrants_order_of_checks(operation: Operation) -> None:
    refusal = forbidden("no_role", "no role for CN=a")
    is_open = "none" in PASSES[operation.path]
    for refused in (refusal, NO_CREDENTIAL):
        assert decide_call(refused, operation).decision is (ALLOWED if is_open else refused)
        assert decide_call(refused, None).decision is refused
    nobody = outcome(operation, ABOUT_DOCS, Rights())
    assert nobody.allowed is (operation.requirement in (OPEN, ANY_CALLER))


@rows(
    "path",
    [
        "",
        "/",
        "/qdrant.Points/search",
        "/qdrant.Points/Search/",
        "//qdrant.Points/Search",
        "qdrant.Points/Search",
        "/qdrant.Points/Search?a=b",
        "/qdrant.Points/%53earch",
        "/qdrant.PointsInternal/Upsert",
        "/grpc.health.v1.Health/Watch",
        "/collections",
        "/healthz",
    ],
)
def test_a_method_is_exactly_itself(path: str) -> None:
    assert operation_of(path) is None
    decision = decide_call(admission(CLASSES["m"]), None).decision
    assert (decision.allowed, decision.reason, decision.status) == (False, "unknown_operation", 404)


def test_every_method_is_found() -> None:
    assert [operation_of(row.path) for row in GRPC] == list(GRPC)


READER = Rights(grants=Grants(Grant("docs", write=False, extras=True), Grant("logs.*", write=False, extras=False)))
WRITER = Rights(grants=Grants(Grant("docs", write=True, extras=True)))


@rows(
    ("path", "rights", "reason"),
    [
        ("/qdrant.Points/Upsert", [READER], "needs_write"),
        ("/qdrant.Points/Upsert", [WRITER, CLASSES["r"]], "needs_manage"),
        ("/qdrant.Points/Upsert", [CLASSES["r"], WRITER], "needs_manage"),
        ("/qdrant.Points/Upsert", [WRITER, READER], "needs_write"),
        ("/qdrant.Snapshots/List", [CLASSES["cprw"]], "needs_extras"),
        ("/qdrant.Collections/CreateShardKey", [WRITER], "needs_manage"),
        ("/qdrant.Collections/Delete", [WRITER], "needs_global"),
        ("/qdrant.Points/Get", [Rights()], "collection"),
        ("/qdrant.Collections/List", [Rights()], "no_rights"),
        ("/qdrant.Collections/ListShardKeys", [Rights(grants=WRITER.grants, conditions=ACME)], "not_confined"),
        ("/qdrant.Points/Scroll", [Rights(grants=WRITER.grants, conditions=ACME)], "allowed"),
        ("/qdrant.Collections/CollectionExists", [Rights(grants=WRITER.grants, conditions=ACME)], "allowed"),
        ("/qdrant.Points/Search", [READER], "allowed"),
        ("/qdrant.Points/Search", [WRITER, CLASSES["r"]], "allowed"),
        ("/qdrant.Points/Upsert", [WRITER], "allowed"),
    ],
)
def test_what_no_message_could_save(path: str, rights: list[Rights], reason: str) -> None:
    """It is refused all the same by its message, since the refusal names the collection, where that is at stake."""
    operation, caller = method(path), admission(*rights)
    assert decide_at_best(caller, operation).reason == reason
    decision = decide_call(caller, operation).decision
    of_collection = operation.requirement.scope is Scope.COLLECTION
    assert decision.reason == ("body_not_read" if of_collection else reason)


@rows("operation", METHODS)
@rows("name", CLASSES)
def test_at_best_is_what_the_right_message_gets(operation: Operation, name: str) -> None:
    assert (
        decide_at_best(admission(CLASSES[name]), operation).reason
        == outcome(operation, ABOUT_DOCS, CLASSES[name]).reason
    )


def test_the_texts_name_the_collection_once_it_is_known() -> None:
    message = pb.UpsertPoints(collection_name="logs.a").SerializeToString()
    assert outcome(method("/qdrant.Points/Upsert"), message, WRITER).text == (
        "Forbidden: Access to collection logs.a is required"
    )
    both = Rights(grants=Grants(*WRITER.grants, *READER.grants))
    assert outcome(method("/qdrant.Points/Upsert"), message, both).text == (
        "Forbidden: Write access to collection logs.a is required"
    )


def test_further_collections_need_a_grant_of_any_mode() -> None:
    query = pb.QueryPoints(collection_name="docs", lookup_from=pb.LookupLocation(collection_name="logs.a"))
    message, operation = query.SerializeToString(), method("/qdrant.Points/Query")
    assert outcome(operation, message, READER).allowed
    assert outcome(operation, message, CLASSES["r"]).allowed
    assert outcome(operation, message, WRITER).text == "Forbidden: Access to collection logs.a is required"
    assert outcome(operation, message, READER, WRITER).reason == "collection"


def test_filters_nest_as_deep_as_qdrants_parser_lets_them() -> None:
    def filters(depth: int) -> bytes:
        nested = b""
        for _ in range(depth):
            nested = delimited(2, delimited(4, nested))  # a filter's condition that is a filter
        return delimited(1, b"docs") + delimited(2, nested)

    for depth, allowed in ((40, True), (60, False)):
        finder = collection_finder(method("/qdrant.Points/Scroll"))
        if allowed:
            finder.feed(filters(depth))
            assert finder.named() == ("docs", NO_NAMES)
        else:
            with pytest.raises(BadRequest, match="nested too deeply"):
                finder.feed(filters(depth))


@pytest.mark.parametrize("path", [row.path for row in GRPC if "Reflection" in row.path])
def test_reflection_is_for_any_caller(path: str) -> None:
    for rights in (*CLASSES.values(), Rights(), Rights(grants=WRITER.grants, conditions=ACME)):
        assert decide_call(admission(rights), method(path)).decision is ALLOWED


@pytest.mark.parametrize("name", ["List", "ListAliases", "ListCollectionAliases"])
def test_a_limited_callers_listing_is_reduced(name: str) -> None:
    operation = method(f"/qdrant.Collections/{name}")
    for rights in ([WRITER], [WRITER, CLASSES["m"]], [Rights(grants=WRITER.grants, conditions=ACME)]):
        judgement = decide_call(admission(*rights), operation)
        assert judgement.decision is (UNREAD if name == "ListCollectionAliases" else ALLOWED)
        assert judgement.listing is not None
        assert judgement.listing.grants == (WRITER.grants,)
    tenant = decide_call(admission(Rights(everywhere=GlobalMode.R, conditions=ACME)), operation)
    assert (tenant.decision, tenant.listing) == (ALLOWED, None)


@rows("operation", METHODS)
@rows("free", [CLASSES["m"], CLASSES["crw"]])
def test_conditions_never_allow_more(operation: Operation, free: Rights) -> None:
    tenant = Rights(free.everywhere, free.grants, ACME)
    decision = outcome(operation, ABOUT_DOCS, tenant)
    without = outcome(operation, ABOUT_DOCS, free)
    if operation.requirement in (OPEN, ANY_CALLER) or touches_no_points(operation):
        assert decision.allowed
    else:
        assert decision.reason == ("not_confined" if without.allowed else without.reason)
        if is_confinable_call(operation):
            assert decide_call(admission(tenant), operation).decision is UNREAD
            assert outcome(operation, ABOUT_DOCS, tenant, confined=True).allowed


@rows(
    ("path", "rights", "facts", "reason"),
    [
        ("Points/Scroll", Rights(GlobalMode.M, conditions=ACME), CONFINED, "allowed"),
        ("Points/Scroll", Rights(GlobalMode.M, conditions=ACME), BodyFacts(NO_NAMES, (), "docs"), "not_confined"),
        (
            "Collections/ListShardKeys",
            Rights(GlobalMode.M, conditions=ACME),
            CONFINED,
            "not_confined",
        ),
        ("Points/Scroll", WRITER, BodyFacts(NO_NAMES, (), "docs"), "allowed"),
        ("Points/Scroll", WRITER, BodyFacts(NO_NAMES, (), "other"), "collection"),
        ("Points/Query", WRITER, BodyFacts(BodyNames(read=("docs",)), (), "docs"), "allowed"),
        ("Points/Query", WRITER, BodyFacts(BodyNames(read=("docs", "other")), (), "docs"), "collection"),
        ("Points/Upsert", READER, BodyFacts(NO_NAMES, (), "docs"), "needs_write"),
        ("Collections/ListCollectionAliases", WRITER, BodyFacts(NO_NAMES, (), "docs"), "allowed"),
        ("Collections/ListCollectionAliases", WRITER, BodyFacts(NO_NAMES, (), "other"), "collection"),
    ],
)
def test_a_call_in_progress_is_decided_again_by_what_its_message_was(
    path: str, rights: Rights, facts: BodyFacts, reason: str
) -> None:
    decision = decide_call_again(admission(rights), method(f"/qdrant.{path}"), facts)
    assert (decision.reason, decision.allowed) == (reason, reason == "allowed")


def test_a_listing_that_cannot_be_reduced_is_refused() -> None:
    """Qdrant has none of one collection over gRPC today: a new one is refused until there is a reduction for it."""
    new = Operation("list_parts", "POST", "/qdrant.Collections/ListParts", READ_LISTING)
    aliases = Operation("list_collection_aliases", "POST", "/qdrant.Collections/ListCollectionAliases", READ_LISTING)
    for rights in (CLASSES["cr"], CLASSES["crw"]):
        caller = admission(rights)
        refused = decide_message(caller, new, "docs", NO_NAMES, confined=False)
        assert (refused.allowed, refused.reason) == (False, "unfiltered_listing")
        assert decide_call_again(caller, new, BodyFacts(NO_NAMES, (), "docs")) == refused
        assert decide_message(caller, aliases, "docs", NO_NAMES, confined=False).allowed
    assert decide_message(admission(CLASSES["r"]), new, "docs", NO_NAMES, confined=False).allowed


@pytest.mark.parametrize("free", [CLASSES["m"], CLASSES["crw"]])
def test_a_tenants_answer_is_reduced_too(free: Rights) -> None:
    """To statistics of its own points, whether its rights are for one collection or for all."""
    judged = decide_call(admission(replace(free, conditions=ACME)), method("/qdrant.Points/Search"))
    assert judged.decision is UNREAD
    assert isinstance(judged.listing, AnswerReducer)


collections = st.sampled_from(["docs", "docs.a", "other"])
grants = st.builds(Grant, st.sampled_from(["docs", "docs.*", "**", "other"]), write=st.booleans(), extras=st.booleans())
rights = st.builds(
    Rights, st.none() | st.sampled_from(GlobalMode), st.lists(grants, max_size=3).map(lambda each: Grants(*each))
).map(lambda one: one if one.limited else Rights(one.everywhere))


@st.composite
def calls(draw: st.DrawFn) -> tuple[Operation, bytes]:
    operation = draw(st.sampled_from(GRPC))
    if operation.path != "/qdrant.Points/Query":
        return operation, pb.GetCollectionInfoRequest(collection_name=draw(collections)).SerializeToString()
    lookups = draw(st.lists(collections, max_size=2))
    prefetch = [pb.PrefetchQuery(lookup_from=pb.LookupLocation(collection_name=name)) for name in lookups]
    return operation, pb.QueryPoints(collection_name=draw(collections), prefetch=prefetch).SerializeToString()


@pytest.mark.fuzz
@given(calls(), rights, rights, grants)
def test_more_grants_never_refuse_and_more_rights_never_allow(
    call: tuple[Operation, bytes], one: Rights, other: Rights, grant: Grant
) -> None:
    alone = outcome(*call, one).allowed
    if one.limited and alone:
        assert outcome(*call, Rights(grants=Grants(*one.grants, grant))).allowed
    assert outcome(*call, one, other).allowed is (alone and outcome(*call, other).allowed)
