"""Each refusal of the access decision: its reason for the audit log, and Qdrant's text."""

from __future__ import annotations

import pytest
from support.rows import rows

from tlsproxy.authz.access import BodyNames, Condition, GlobalMode, Grant, Grants, Requirement, Rights, Scope, decide

READER = Rights(everywhere=GlobalMode.R)
DOCS = Rights(grants=Grants(Grant("docs", write=False, extras=True)))
POINTS = Rights(grants=Grants(Grant("docs", write=True, extras=False)))
TENANT = Rights(everywhere=GlobalMode.M, conditions=(Condition("tenant", ("a",)),))
MANY = Rights(
    grants=Grants(Grant("docs", write=True, extras=True), Grant("logs.*", write=False, extras=True)),
    conditions=(Condition("tenant", ("a",)), Condition("team", ("b",))),
)


@rows(
    ("rights", "requirement", "collection", "reason", "text"),
    [
        (DOCS, Requirement(Scope.GLOBAL), None, "needs_global", "Global access is required"),
        (Rights(), Requirement(Scope.CREDENTIAL), None, "no_rights", "Global access is required"),
        (
            DOCS,
            Requirement(Scope.CREDENTIAL, listing=True),
            None,
            "unfiltered_listing",
            "Global access is required for this listing",
        ),
        (DOCS, Requirement(Scope.COLLECTION), None, "no_collection", "Global access is required"),
        (DOCS, Requirement(Scope.COLLECTION), "logs", "collection", "Access to collection logs is required"),
        (
            POINTS,
            Requirement(Scope.COLLECTION, extras=True),
            "docs",
            "needs_extras",
            "Only points access is allowed for collection docs",
        ),
        (
            DOCS,
            Requirement(Scope.COLLECTION, write=True),
            "docs",
            "needs_write",
            "Write access to collection docs is required",
        ),
        (
            MANY,
            Requirement(Scope.COLLECTION, manage=True),
            "docs",
            "needs_manage",
            "Manage access for this operation is required",
        ),
        (READER, Requirement(Scope.GLOBAL, write=True), None, "needs_manage", "Global manage access is required"),
        (
            TENANT,
            Requirement(Scope.COLLECTION),
            "docs",
            "not_confined",
            "This operation cannot be confined to a tenant",
        ),
    ],
)
def test_a_refusal_has_its_reason_and_text(
    rights: Rights, requirement: Requirement, collection: str | None, reason: str, text: str
) -> None:
    refusal = decide(rights, requirement, "scroll", collection)
    assert (refusal.allowed, refusal.status, refusal.reason) == (False, 403, reason)
    assert refusal.text == f"Forbidden: {text}"


def test_a_refused_further_collection_is_named() -> None:
    refusal = decide(DOCS, Requirement(Scope.COLLECTION), "query", "docs", names=BodyNames(read=("docs", "logs")))
    assert (refusal.allowed, refusal.status, refusal.reason) == (False, 403, "collection")
    assert refusal.text == "Forbidden: Access to collection logs is required"


@pytest.mark.parametrize(
    ("rights", "spelled"),
    [
        (READER, "r"),
        (Rights(), "none"),
        (POINTS, "docs prw"),
        (TENANT, 'm where tenant = "a"'),
        (MANY, 'docs rw, logs.* r where tenant = "a" and team = "b"'),
    ],
)
def test_rights_are_spelled_as_in_tokens(rights: Rights, spelled: str) -> None:
    assert str(rights) == spelled
