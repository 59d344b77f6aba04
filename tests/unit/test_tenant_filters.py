"""Confinements as filters: their points by Qdrant's own rules, beside an oracle that knows the payload alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest
from qdrant_client.grpc import Filter
from qdrant_client.local.payload_filters import check_filter
from support.rows import rows
from support.tenancy_oracle import is_changeable, is_owned, is_readable
from support.tenant_roles import confinement, marked

from tlsproxy.authz.access import Condition, Confinement, Confinements, Rights, is_within
from tlsproxy.errors import Unconfined
from tlsproxy.qdrant.grpc_conditions import encoded
from tlsproxy.qdrant.tenant_filters import marks_of, narrowed
from tlsproxy.qdrant.tenant_texts import MARKED, MARKS_EXCLUDE

KEYS = ("a", "b", "n.a", "l[].a")
VALUES = ("x", "y", "", 0, 1, True, False)
conditions = st.builds(
    Condition, st.sampled_from(KEYS), st.lists(st.sampled_from(VALUES), min_size=1, max_size=3).map(tuple)
)
confinements = st.lists(
    st.builds(
        Confinement,
        st.lists(conditions, min_size=1, max_size=2).map(tuple),
        st.just(()) | st.lists(conditions, max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=2,
).map(tuple)
scalars = st.sampled_from((*VALUES, None, 1.0))
leaves = scalars | st.lists(scalars, max_size=2) | st.just([["x"]]) | st.just({"a": "x"})
payloads = st.fixed_dictionaries(
    {},
    optional={
        "a": leaves,
        "b": leaves,
        "n": st.fixed_dictionaries({}, optional={"a": leaves}) | leaves,
        "l": st.lists(st.fixed_dictionaries({}, optional={"a": leaves}) | scalars, max_size=3) | leaves,
    },
)


def meets(payload: dict[str, Any], confined: Confinements, *, alone: bool) -> bool:
    """As Qdrant's client library finds it, by the filter of both protocols."""
    clauses = narrowed(None, confined, alone=alone)
    by_rest = models.Filter(**clauses)
    by_grpc = GrpcToRest.convert_filter(Filter.FromString(encoded(clauses)))
    found = check_filter(by_rest, payload, 1, {})
    assert check_filter(by_grpc, payload, 1, {}) == found
    return found


@pytest.mark.fuzz
@given(confinements, payloads)
def test_the_points_of_a_confinement(confined: Confinements, payload: dict[str, Any]) -> None:
    assert meets(payload, confined, alone=False) == is_readable(payload, confined)
    assert meets(payload, confined, alone=True) == is_changeable(payload, confined)


@pytest.mark.fuzz
@given(confinements, payloads)
def test_a_marked_payload_is_the_tenants_alone(confined: Confinements, payload: dict[str, Any]) -> None:
    try:
        changed = marked(copy.deepcopy(payload), marks_of(confined))
    except Unconfined:
        return
    assert is_owned(changed, confined)
    assert meets(changed, confined, alone=True)
    assert marked(copy.deepcopy(changed), marks_of(confined)) == changed
    assert {key: value for key, value in changed.items() if key not in "abnl"} == {}
    assert all(changed[key] == payload[key] for key in payload if key in "ab")


@pytest.mark.fuzz
@given(confinements, confinements, payloads)
def test_a_narrower_confinement_has_no_other_points(
    held: Confinements, present: Confinements, payload: dict[str, Any]
) -> None:
    assert is_within(held, held)
    if is_within(held, present):
        assert is_readable(payload, present) or not is_readable(payload, held)
        assert is_owned(payload, present) or not is_owned(payload, held)


def test_the_forms_of_a_filter() -> None:
    acme = confinement(tenant="acme")
    own = {"should": [{"has_id": [1]}]}
    assert narrowed(own, acme) == {"must": [{"key": "tenant", "match": {"value": "acme"}}, own]}
    groups = (Confinement((Condition("group", ("a", "b")),), (Condition("visibility", ("public",)),)),)
    match = {"key": "group", "match": {"any": ["a", "b"]}}
    public = {"key": "visibility", "match": {"value": "public"}}
    assert narrowed({}, groups) == {"must": [{"should": [{"must": [match]}, {"must": [public]}]}]}
    assert narrowed(None, groups, alone=True) == {
        "must": [match],
        "must_not": [{"key": "group", "match": {"except": ["a", "b"]}}],
    }


def test_one_is_not_true() -> None:
    """To Python they are equal; as a key of a memo one would stand for the other."""
    assert Condition("a", (1,)) != Condition("a", (True,))
    assert len({Condition("a", (1,)), Condition("a", (True,)), Condition("a", (1,))}) == 2
    assert Rights(conditions=(Condition("a", (1,)),)) != Rights(conditions=(Condition("a", (True,)),))
    with pytest.raises(Unconfined, match=MARKED.format("a")):
        marked({"a": True}, marks_of(confinement(a=1)))


@rows(
    ("key", "payload", "expected"),
    [
        ("tenant", {}, {"tenant": "acme"}),
        ("meta.tenant", {"meta": {"b": 1}}, {"meta": {"b": 1, "tenant": "acme"}}),
        ("meta.tenant", {"a": 1}, {"a": 1, "meta": {"tenant": "acme"}}),
        ("acl[].tenant", {}, {"acl": [{"tenant": "acme"}]}),
        ("acl[].tenant", {"acl": []}, {"acl": [{"tenant": "acme"}]}),
        ("acl[].tenant", {"acl": [{}, {"b": 1}]}, {"acl": [{"tenant": "acme"}, {"b": 1, "tenant": "acme"}]}),
        ("tenant", {"tenant": None}, None),
        ("meta.tenant", {"meta": {"tenant": None}}, None),
        ("meta.tenant", {"meta": None}, {"meta": {"tenant": "acme"}}),
        ("acl[].tenant", {"acl": None}, {"acl": [{"tenant": "acme"}]}),
        ("acl[].tenant", {"acl": [None]}, None),
        ("meta.tenant", {"meta": "acme"}, None),
        ("meta.tenant", {"meta": [{"tenant": "acme"}]}, None),
        ("meta.tenant", {"meta": {"tenant": ["acme"]}}, None),
        ("acl[].tenant", {"acl": {"tenant": "acme"}}, None),
        ("acl[].tenant", {"acl": [{"tenant": "acme"}, {"tenant": "other"}]}, None),
        ("acl[].tenant", {"acl": [{"tenant": "acme"}, "other"]}, None),
    ],
)
def test_marks_below_a_key(key: str, payload: dict[str, Any], expected: dict[str, Any] | None) -> None:
    confined = confinement(**{key: "acme"})
    if expected is None:
        with pytest.raises(Unconfined, match=r"is not yours to choose$"):
            marked(payload, marks_of(confined))
    else:
        assert marked(payload, marks_of(confined)) == expected


def test_one_of_several_marks_is_chosen_by_the_caller() -> None:
    groups = (Confinement((Condition("group", ("a", "b", 1)),)),)
    for value in ("a", "b", 1):
        assert marked({"group": value}, marks_of(groups)) == {"group": value}
    for payload in ({}, {"group": "c"}, {"group": ["a"]}, {"group": True}, {"group": 1.0}, {"group": None}):
        with pytest.raises(Unconfined, match=MARKED.format("group")):
            marked(payload, marks_of(groups))


def test_the_marks_of_two_roles_are_those_that_both_allow() -> None:
    both = (Confinement((Condition("group", ("a", "b")),)), Confinement((Condition("group", ("b", "c")),)))
    assert marks_of(both) == (Condition("group", ("b",)),)
    assert marked({}, marks_of(both)) == {"group": "b"}
    with pytest.raises(Unconfined, match=MARKS_EXCLUDE.format("group")):
        marks_of(both + confinement(group="a"))


def test_conditions_as_text() -> None:
    many = Condition("group", tuple(f"g{number}" for number in range(1000)))
    confined = Confinement((Condition("tenant", ("acme",)), Condition("level", (3,))), (Condition("open", (True,)),))
    assert str(many) == 'group in "g0", "g1", "g2", "g3", "g4" and 995 more'
    assert str(confined) == 'tenant = "acme" and level = 3 (to read, or open = true)'
    rights = Rights(conditions=confined.conditions, public=confined.public)
    assert str(rights) == f"none where {confined}"
