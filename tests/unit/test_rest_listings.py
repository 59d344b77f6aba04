"""What a collection-limited caller is shown of a listing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.access import GlobalMode, Grant, Grants, Rights
from tlsproxy.qdrant.operations import REST
from tlsproxy.qdrant.rest_listings import REDUCTIONS, STEP, Listing, listing_of
from tlsproxy.wire.cooperative import at_once

DOCS = Grants(Grant("docs", write=False, extras=True), Grant("team.*", write=True, extras=False))


def reduced(operation: str, result: Any, grants: tuple[Grant, ...] = DOCS, **envelope: Any) -> Any:
    answer = {"result": result, "status": "ok", "time": 0.5, **envelope}
    return json.loads(at_once(Listing(operation, (grants,)).reducing(json.dumps(answer).encode())))


def test_every_listing_has_a_reduction() -> None:
    listings = {row.name for row in REST if row.requirement.listing}
    assert listings == set(REDUCTIONS)
    for row in REST:
        limited = listing_of(row, (Rights(grants=DOCS),))
        assert (limited is not None) is (row.name in listings)
        assert listing_of(row, (Rights(everywhere=GlobalMode.R),)) is None


def test_collections() -> None:
    names = ["docs", "Docs", "docs2", "team.a", "team.a.b", "team", "secret"]
    answer = reduced("list_collections", {"collections": [{"name": name, "new": "secret"} for name in names]}, new=1)
    assert answer == {
        "result": {"collections": [{"name": "docs"}, {"name": "team.a"}]},
        "status": "ok",
        "time": 0.5,
    }


@pytest.mark.parametrize("operation", ["list_aliases", "list_collection_aliases"])
def test_aliases_show_when_both_names_may_be_known(operation: str) -> None:
    pairs = [("docs", "team.a"), ("docs", "secret"), ("secret", "docs"), ("secret", "hidden")]
    aliases = [{"alias_name": alias, "collection_name": collection} for alias, collection in pairs]
    assert reduced(operation, {"aliases": aliases})["result"] == {"aliases": aliases[:1]}


def test_telemetry() -> None:
    full = {"id": "docs", "config": {}}
    result = {
        "id": "process",
        "app": {"version": "1.19.0"},
        "collections": {
            "number_of_collections": 3,
            "max_collections": 9,
            "collections": [full, {"id": "secret"}, {"vectors": 7, "optimizers_status": "ok", "params": {}}],
            "snapshots": [{"id": "docs", "running_snapshots": 0}, {"id": "secret"}],
        },
        "cluster": {"enabled": True},
        "requests": {"rest": {"/collections/secret": 1}},
        "memory": {},
        "quota": {},
        "hardware": {"collection_data": {"docs": {"cpu": 1}, "secret": {"cpu": 2}}, "new": 1},
    }
    assert reduced("telemetry", result)["result"] == {
        "id": "process",
        "app": {"version": "1.19.0"},
        "collections": {
            "number_of_collections": 1,
            "collections": [full],
            "snapshots": [{"id": "docs", "running_snapshots": 0}],
        },
        "hardware": {"collection_data": {"docs": {"cpu": 1}}},
    }
    assert reduced("telemetry", {"collections": {"number_of_collections": 3}})["result"] == {
        "collections": {"number_of_collections": 0}
    }


def test_cluster_telemetry_and_issues() -> None:
    collections = {"docs": {"id": "docs"}, "secret": {"id": "secret"}}
    assert reduced("get_cluster_telemetry", {"collections": collections, "cluster": {"peers": {}}})["result"] == {
        "collections": {"docs": {"id": "docs"}}
    }
    issues = [{"id": "1", "related_collection": "docs"}, {"id": "2", "related_collection": "secret"}, {"id": "3"}]
    assert reduced("issues", {"issues": issues})["result"] == {"issues": issues[:1]}


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        ("list_collections", {"collections": [{"name": "docs"}] * 3 * STEP}),
        ("issues", {"issues": [None] * 3 * STEP}),
        ("get_cluster_telemetry", {"collections": {str(number): {} for number in range(3 * STEP)}}),
    ],
)
def test_a_long_listing_is_reduced_in_steps(operation: str, result: Any) -> None:
    steps = list(Listing(operation, (DOCS,)).reducing(json.dumps({"result": result}).encode()))
    few = list(Listing(operation, (DOCS,)).reducing(b'{"result":{}}'))
    assert steps[-3:] == [None] * 3
    assert len(steps) == len(few) + 3


@rows("operation", REDUCTIONS)
@rows("answer", [b"", b"{", b"[]", b'{"result":[]}', b'{"result":null}', b"\x1f\x8b\x08", b"null"])
def test_what_is_not_qdrants_is_not_passed(operation: str, answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        at_once(Listing(operation, (DOCS,)).reducing(answer))


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.sampled_from(["docs", "secret-name"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "collections",
                    "aliases",
                    "issues",
                    "snapshots",
                    "name",
                    "alias_name",
                    "collection_name",
                    "id",
                    "hardware",
                    "related_collection",
                    "collection_data",
                    "secret-name",
                    "docs",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@pytest.mark.fuzz
@given(
    st.sampled_from(sorted(REDUCTIONS)),
    st.dictionaries(st.sampled_from(["collections", "aliases", "issues"]), json_values),
)
def test_whatever_is_answered_nobody_without_grants_sees_an_entry(operation: str, result: Any) -> None:
    shown = reduced(operation, result, grants=Grants(Grant("nothing-here", write=True, extras=True)))["result"]
    assert "secret-name" not in json.dumps(shown)
    assert "docs" not in json.dumps(shown)
