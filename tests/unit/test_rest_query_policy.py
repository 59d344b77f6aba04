"""REST requests under query policies: each member by example, and what nobody learns of hidden parts as properties."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args, get_origin

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client.http import models as m
from support import fake_points
from support.fake_points import Point
from support.rows import rows
from support.tenant_roles import confinement

from tlsproxy.authz.access import UNREAD, Decision, GlobalMode, Rights
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.query_policy import QueryPolicy, hidden_keys, parse_key_path
from tlsproxy.authz.roles import Principal
from tlsproxy.cli.matrix import matrix_of
from tlsproxy.config.model import Role
from tlsproxy.errors import BadRequest, PolicyRefused, RequestError
from tlsproxy.qdrant.operations import REST
from tlsproxy.qdrant.rest_decision import BodyDecision, decide_request, deciding_body
from tlsproxy.qdrant.rest_hidden import strip_payloads
from tlsproxy.qdrant.rest_query_policy import reading_under
from tlsproxy.qdrant.router import recognise
from tlsproxy.wire.cooperative import at_once

IDENTITY = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9)


def hiding(*paths: str) -> QueryPolicy:
    return QueryPolicy(hidden=hidden_keys(map(parse_key_path, paths)))


SALARY = hiding("salary", "contact.email")
BOUNDS = QueryPolicy(max_limit=20, max_offset=5, max_prefetch=2, forbids_exact=True)
VECTORS = QueryPolicy(hides_vectors=True)


def admission(policy: QueryPolicy, **more: Any) -> Admission:
    rights = Rights(everywhere=GlobalMode.M, queries=policy, **more)
    return Admission(Principal(IDENTITY, "rule", "role", rights, None), None)


def read(policy: QueryPolicy, path: str, body: Any, method: str = "POST") -> BodyDecision:
    asked = recognise(method, f"/collections/docs{path}")
    assert decide_request(admission(policy), asked).decision is UNREAD
    return at_once(deciding_body(admission(policy), asked, json.dumps(body).encode()))


def sent(policy: QueryPolicy, path: str, body: Any, method: str = "POST") -> Any:
    """The body that goes upstream."""
    changed = read(policy, path, body, method).body
    assert changed is not None
    return orjson.loads(changed)


EMAIL = {"key": "email", "match": {"value": "x"}}
RANGE = {"key": "salary", "range": {"gte": 1}}
REFUSED: list[tuple[QueryPolicy, str, Any]] = [
    # Bounds
    (BOUNDS, "/points/scroll", {"limit": 21}),
    (BOUNDS, "/points", {"ids": list(range(21))}),
    (BOUNDS, "/points/search", {"vector": [1], "top": 21}),
    (BOUNDS, "/points/search/batch", {"searches": [{"vector": [1], "limit": 1}, {"vector": [1], "limit": 21}]}),
    (BOUNDS, "/points/recommend", {"positive": [1], "top": 21}),
    (BOUNDS, "/points/discover", {"target": 1, "limit": 21}),
    (BOUNDS, "/points/query/groups", {"limit": 7, "group_size": 3}),
    (BOUNDS, "/points/search/groups", {"vector": [1], "group_by": "a", "limit": 21, "group_size": 1}),
    (BOUNDS, "/points/search/matrix/pairs", {"sample": 7, "limit": 3}),
    (BOUNDS, "/points/search/matrix/offsets", {"sample": 21}),
    (BOUNDS, "/facet", {"key": "a", "limit": 21}),
    (BOUNDS, "/points/query", {"prefetch": {"limit": 21}}),
    (BOUNDS, "/points/query", {"prefetch": [{"prefetch": [{}]}, {}]}),
    (BOUNDS, "/points/query/batch", {"searches": [{"prefetch": [{}, {}]}, {"prefetch": [{}, {}, {}]}]}),
    (BOUNDS, "/points/query", {"offset": 6}),
    (BOUNDS, "/points/query", {"query": {"nearest": [1], "mmr": {"candidates_limit": 21}}}),
    (BOUNDS, "/points/count", {"exact": True}),
    (BOUNDS, "/facet", {"key": "a", "exact": True}),
    (BOUNDS, "/points/query", {"params": {"exact": True}}),
    (BOUNDS, "/points/query", {"prefetch": [{"params": {"exact": True}}]}),
    (BOUNDS, "/points/query", {"surprise": 1}),
    (BOUNDS, "/points/query", {"prefetch": [{"top": 3, "surprise": 1}]}),
    # Filters, at every depth and of every form
    *(
        (SALARY, "/points/scroll", {"filter": asked})
        for asked in (
            {"must": [RANGE]},
            {"must": RANGE},
            {"should": [{"must_not": [{"must": RANGE}]}]},
            {"min_should": {"conditions": [RANGE], "min_count": 1}},
            {"must": [{"is_empty": {"key": "salary"}}]},
            {"must": [{"is_null": {"key": '"salary"'}}]},
            {"must": [{"key": "salary", "values_count": {"gt": 1}}]},
            {"must": [{"key": "salary[]", "is_empty": True}]},
            {"must": [{"key": "salary.x", "geo_radius": {"center": {"lat": 1, "lon": 1}, "radius": 1}}]},
            {"must": [{"key": "contact.email", "match": {"text": "x"}}]},
            {"must": [{"key": "contact[].email", "match": {"any": ["x"]}}]},
            {"must": [{"key": "contact", "is_null": False}]},
            {"must": [{"nested": {"key": "contact", "filter": {"must": [EMAIL]}}}]},
            {"must": [{"nested": {"key": "contact[]", "filter": {"must_not": [{"must": [EMAIL]}]}}}]},
            # Forms that serde takes for others
            {"must": [{"key": "a", "is_empty": {"key": "salary"}}]},
            {"must": [["salary", {"value": 1}]]},
            {"must": [{"must": [RANGE], "key": "a"}]},
            {"must": [{"nested": {"key": "a", "filter": {}, "more": 1}}]},
            {"must": [{"surprise": {"key": "salary"}}]},
            {"surprise": [RANGE]},
        )
    ),
    (SALARY, "/points/count", {"filter": {"must": RANGE}}),
    (SALARY, "/facet", {"key": "salary"}),
    (SALARY, "/facet", {"key": "a", "filter": {"must": RANGE}}),
    (SALARY, "/points/query", {"params": {"idf": {"corpus": {"must": RANGE}}}}),
    (SALARY, "/points/query", {"prefetch": [{"prefetch": {"filter": {"must": RANGE}}}]}),
    (SALARY, "/points/search/matrix/pairs", {"filter": {"must": RANGE}}),
    (SALARY, "/points/recommend/batch", {"searches": [{"positive": [1], "filter": {"must": RANGE}}]}),
    # Groups, orders, formulas, texts
    (SALARY, "/points/query/groups", {"group_by": "contact.email"}),
    (SALARY, "/points/search/groups", {"vector": [1], "group_by": "salary", "limit": 1, "group_size": 1}),
    (SALARY, "/points/scroll", {"order_by": "salary"}),
    (SALARY, "/points/scroll", {"order_by": {"key": "salary", "start_from": 1}}),
    (SALARY, "/points/scroll", {"order_by": ["salary"]}),
    (SALARY, "/points/query", {"query": {"order_by": {"key": "salary"}}}),
    (SALARY, "/points/query", {"query": ["salary"]}),
    (SALARY, "/points/query", {"query": [["salary", "asc", None]]}),
    (SALARY, "/points/query", {"prefetch": {"query": [["salary", None, None]]}}),
    (SALARY, "/points/query", {"query": [[0.5], [["salary"]]]}),
    (SALARY, "/points/query", {"query": {"text": "words"}, "using": "salary"}),
    (SALARY, "/points/query", {"query": {"surprise": "salary"}}),
    *(
        (SALARY, "/points/query", {"query": {"formula": formula}})
        for formula in (
            "salary",
            {"sum": ["$score", {"mult": [2, {"neg": "salary"}]}]},
            {"div": {"left": 1, "right": "contact.email"}},
            {"exp_decay": {"x": {"datetime_key": "salary"}}},
            {"geo_distance": {"origin": {"lat": 1, "lon": 1}, "to": "salary"}},
            {"sum": [RANGE]},
            {"sum": ["$score", {"must": [RANGE]}]},
            {"datetime_key": "contact"},
            ["salary"],
            {"surprise": "salary"},
            {"sum": ["a"], "mult": ["salary"]},
        )
    ),
    (SALARY, "/points/query", {"query": {"formula": "a", "defaults": {"salary": 1}}}),
    # Changes
    (SALARY, "/points/delete", {"filter": {"must": RANGE}}),
    (SALARY, "/points/delete", {"points": [1], "filter": {"must": RANGE}}),
    (SALARY, "/points/payload", {"payload": {"salary": 1}, "points": [1]}),
    (SALARY, "/points/payload", {"payload": {"contact": {}}, "points": [1]}),
    (SALARY, "/points/payload", {"payload": {"email": 1}, "key": "contact", "points": [1]}),
    (SALARY, "/points/payload", {"payload": {"a": 1}, "key": "contact", "points": [1]}),
    (SALARY, "/points/payload", {"payload": {"a": 1}, "filter": {"must": RANGE}}),
    (SALARY, "/points/payload/delete", {"keys": ["a", "contact"], "points": [1]}),
    (SALARY, "/points/vectors/delete", {"filter": {"must": RANGE}, "vectors": ["a"]}),
    (SALARY, "/points/batch", {"operations": [{"delete": {"filter": {"must": RANGE}}}]}),
    (SALARY, "/points/batch", {"operations": [{"set_payload": {"payload": {"salary": 1}, "points": [1]}}]}),
    (SALARY, "/points/batch", {"operations": [{"overwrite_payload": {"payload": {}, "points": [1]}}]}),
    (SALARY, "/points/batch", {"operations": [{"clear_payload": {"points": [1]}}]}),
    (SALARY, "/points/batch", {"operations": [{"delete": {"points": [1]}, "clear_payload": {"points": [1]}}]}),
]


@rows(("policy", "path", "body"), REFUSED, ids=lambda value: str(value)[:80])
def test_too_much_and_hidden_keys_are_refused(policy: QueryPolicy, path: str, body: Any) -> None:
    with pytest.raises((PolicyRefused, BadRequest)) as caught:
        read(policy, path, body)
    assert caught.value.status in {400, 403}
    operation = recognise("POST", f"/collections/docs{path}").operation
    assert operation is not None
    assert decide_request(admission(QueryPolicy()), recognise("POST", f"/collections/docs{path}")).decision.allowed


PUTS: list[tuple[str, Any]] = [
    ("/points", {"points": [{"id": 1, "vector": [1], "payload": {"a": [{"x": 1}], "contact": [{"email": 1}]}}]}),
    ("/points", {"points": [[1, [1.0], {"salary": 1}]]}),
    ("/points", {"batch": {"ids": [1, 2], "vectors": [[1], [1]], "payloads": [None, {"salary": 1}]}}),
    ("/points", {"points": [], "update_filter": {"must": RANGE}}),
    ("/points/vectors", {"points": [], "update_filter": {"must": RANGE}}),
    ("/index", {"field_name": "salary", "field_schema": "integer"}),
    ("/index", {"field_name": "contact[]", "field_type": "integer"}),
]


@pytest.mark.parametrize(("path", "body"), PUTS, ids=lambda value: str(value)[:80])
def test_changes_that_are_put_are_refused_too(path: str, body: Any) -> None:
    with pytest.raises((PolicyRefused, BadRequest)):
        read(SALARY, path, body, "PUT")


def head(policy: QueryPolicy, method: str, target: str) -> Decision:
    return decide_request(admission(policy), recognise(method, target)).decision


def test_heads_are_decided_too() -> None:
    assert head(SALARY, "DELETE", "/collections/docs/index/salary").reason == "query_policy"
    assert head(SALARY, "DELETE", "/collections/docs/index/a%5B%5D.b").allowed
    for policy in (SALARY, VECTORS):
        assert head(policy, "GET", "/collections/docs/snapshots/s").reason == "query_policy"
    assert head(BOUNDS, "GET", "/collections/docs/snapshots/s").allowed
    assert head(BOUNDS, "POST", "/collections/docs/snapshots/upload").reason == "query_policy"
    assert head(SALARY, "PUT", "/collections/docs/points/payload").reason == "query_policy"
    assert head(SALARY, "GET", "/healthz").allowed


def test_the_matrix_of_a_role_is_about_any_key() -> None:
    role = Role.model_validate({"access": "m", "queries": {"payload": {"hide": ["salary"]}}})
    cells = {row.operation: row.cells for _, rows in matrix_of("analyst", role).groups for row in rows}
    expected = {"drop_payload_index": "bounded", "scroll": "reduced", "get_snapshot": "no: policy"}
    assert {name: cells[name] for name in expected} == {name: (word,) for name, word in expected.items()}


CHANGED: list[tuple[QueryPolicy, str, Any, Any]] = [
    (BOUNDS, "/points/scroll", {}, {"limit": 10}),
    (replace(BOUNDS, max_limit=4), "/points/scroll", {"limit": None}, {"limit": 4}),
    (BOUNDS, "/points/query", {"prefetch": {"query": [1]}}, {"prefetch": {"query": [1], "limit": 10}, "limit": 10}),
    (BOUNDS, "/points/query/groups", {}, {"group_size": 3, "limit": 6}),
    (BOUNDS, "/points/query/groups", {"limit": 20}, {"limit": 20, "group_size": 1}),
    (BOUNDS, "/points/search/matrix/pairs", {}, {"limit": 3, "sample": 6}),
    (BOUNDS, "/points/search", {"vector": [1], "top": 20}, {"vector": [1], "limit": 20}),
    (BOUNDS, "/points/search", {"vector": [1]}, {"vector": [1]}),  # Qdrant refuses it
    (BOUNDS, "/points/count", {}, {"exact": False}),
    (BOUNDS, "/facet", {"key": "a"}, {"key": "a", "limit": 10}),
    (SALARY, "/points/scroll", {}, {"with_payload": {"exclude": ["contact.email", "salary"]}}),
    (SALARY, "/points/query", {}, {}),
    (SALARY, "/points/query", {"with_payload": True}, {"with_payload": {"exclude": ["contact.email", "salary"]}}),
    (SALARY, "/points/query", {"with_payload": ["a", "salary.x"]}, {"with_payload": ["a"]}),
    (
        SALARY,
        "/points",
        {"ids": [1], "with_payload": {"include": ["contact"]}},
        {"ids": [1], "with_payload": {"include": ["contact"]}},
    ),
    (
        SALARY,
        "/points/query",
        {"with_payload": {"exclude": ["a"]}},
        {"with_payload": {"exclude": ["a", "contact.email", "salary"]}},
    ),
    (
        SALARY.merged(VECTORS),
        "/points/query/groups",
        {"group_by": "a", "with_lookup": "docs"},
        {
            "group_by": "a",
            "with_lookup": {
                "collection": "docs",
                "with_payload": {"exclude": ["contact.email", "salary"]},
                "with_vectors": False,
            },
            "with_vector": False,
        },
    ),
    (VECTORS, "/points/scroll", {}, {"with_vector": False}),
    (VECTORS, "/points/query/batch", {"searches": [{}]}, {"searches": [{"with_vector": False}]}),
    (VECTORS, "/points/query", {"with_vectors": ["a"]}, {"with_vector": False}),
    (
        VECTORS,
        "/points/query/groups",
        {"with_lookup": {"collection": "a", "with_vector": True}},
        {"with_lookup": {"collection": "a", "with_vectors": False}, "with_vector": False},
    ),
]


@rows(("policy", "path", "body", "expected"), CHANGED, ids=lambda value: str(value)[:60])
def test_what_is_absent_or_hidden_is_written(policy: QueryPolicy, path: str, body: Any, expected: Any) -> None:
    assert sent(policy, path, body) == expected


def test_the_conditions_of_a_role_are_not_held_against_its_policy() -> None:
    of_tenant = admission(hiding("tenant"), conditions=confinement(tenant="acme")[0].conditions)
    asked = recognise("POST", "/collections/docs/points/count")
    changed = at_once(deciding_body(of_tenant, asked, b"{}")).body
    assert changed is not None
    assert b'"key":"tenant"' in changed
    with pytest.raises(PolicyRefused):
        at_once(deciding_body(of_tenant, asked, changed))


@rows("operation", REST, ids=lambda one: f"{one.method} {one.path}")
def test_every_body_that_is_to_be_read_can_be(operation: Any) -> None:
    """An operation without members is refused, not passed."""
    path = operation.path.replace("{collection_name}", "docs").replace("{tail...}", "x")
    asked = recognise(operation.method, path.replace("{", "").replace("}", ""))
    everything = SALARY.merged(BOUNDS).merged(VECTORS)
    if decide_request(admission(everything), asked).decision is UNREAD:
        with pytest.raises(RequestError, match=r"cannot be checked|must be an array"):
            at_once(reading_under(operation, {"surprise": 1}, everything))


MODELS: list[tuple[str, str, Any]] = [
    ("POST", "/points", m.PointRequest),
    ("POST", "/points/scroll", m.ScrollRequest),
    ("POST", "/points/count", m.CountRequest),
    ("POST", "/facet", m.FacetRequest),
    ("POST", "/points/query", m.QueryRequest),
    ("POST", "/points/query/groups", m.QueryGroupsRequest),
    ("POST", "/points/search/matrix/pairs", m.SearchMatrixRequest),
    ("PUT", "/points", m.PointsList),
    ("PUT", "/points", m.PointsBatch),
    ("PUT", "/points/vectors", m.UpdateVectors),
    ("POST", "/points/vectors/delete", m.DeleteVectors),
    ("POST", "/points/payload", m.SetPayload),
    ("POST", "/points/payload/delete", m.DeletePayload),
    ("POST", "/points/delete", m.FilterSelector),
    ("POST", "/points/delete", m.PointIdsList),
    ("PUT", "/index", m.CreateFieldIndex),
]
INNER: list[tuple[str, Any]] = [("prefetch", m.Prefetch), ("params", m.SearchParams), ("with_lookup", m.WithLookup)]


def refusal(method: str, path: str, body: dict[str, Any]) -> str:
    operation = recognise(method, f"/collections/docs{path}").operation
    assert operation is not None
    try:
        at_once(reading_under(operation, body, SALARY.merged(BOUNDS).merged(VECTORS)))
    except PolicyRefused as error:
        return str(error)
    except BadRequest:
        pass
    return ""


@rows(("method", "path", "model"), MODELS, ids=lambda value: getattr(value, "__name__", value))
def test_every_member_of_the_client_library_is_known(method: str, path: str, model: Any) -> None:
    for name in model.model_fields:
        assert refusal(method, path, {name: None}) == ""
    assert "cannot be checked" in refusal(method, path, {"surprise": None})


@pytest.mark.parametrize(("member", "model"), INNER, ids=lambda value: getattr(value, "__name__", value))
def test_every_member_of_an_inner_object_is_known(member: str, model: Any) -> None:
    for name in model.model_fields:
        assert refusal("POST", "/points/query/groups", {member: {name: None}}) == ""
    assert "cannot be checked" in refusal("POST", "/points/query/groups", {member: {"surprise": None}})


def test_every_kind_of_query_and_condition_is_known() -> None:
    """Those of the client library; a new one is refused until it is known here."""
    for query in (*get_args(m.Query), m.Document, m.Image, m.InferenceObject, m.SparseVector):
        assert refusal("POST", "/points/query", {"query": dict.fromkeys(query.model_fields)}) == ""
    for condition in get_args(m.Condition):
        if condition is m.NestedCondition:
            body: dict[str, Any] = {"nested": {"key": "a", "filter": {}}}
        elif condition in {m.IsEmptyCondition, m.IsNullCondition}:
            body = {next(iter(condition.model_fields)): {"key": "a"}}
        else:
            body = {name: "a" if name == "key" else None for name in condition.model_fields}
        assert refusal("POST", "/points/count", {"filter": {"must": [body]}}) == ""
    for expression in get_args(m.Expression):
        fields = getattr(expression, "model_fields", {})
        if len(fields) == 1 and expression not in get_args(m.Condition):
            (name,) = fields
            value: Any = [] if get_origin(fields[name].annotation) is list else 1
            for params in (m.DivParams, m.PowParams, m.DecayParamsExpression, m.GeoDistanceParams):
                if params.__name__ in str(fields[name].annotation):
                    value = {each: "a" if each == "to" else 1 for each in params.model_fields}
            value = "a" if name in {"datetime", "datetime_key"} else value
            assert refusal("POST", "/points/query", {"query": {"formula": {name: value}}}) == ""


def test_large_answers_hold_up_nobody() -> None:
    """Payloads and points are stripped in steps; requests: test_body_steps.py."""
    many = 5000
    points = [{"id": 1, "payload": {"a": 1}}] * many
    (change,) = read(SALARY, "/points", {"ids": [1]}).reducer.changes  # type: ignore[union-attr]
    for steps in (
        strip_payloads([({"contact": [{}] * many}, SALARY.hidden.tree)]),
        strip_payloads([({"contact": [1] * many}, SALARY.hidden.tree)]),
        change(points),
    ):
        assert len(list(steps)) >= 4


# Properties over a stand-in for Qdrant

SCALARS = st.sampled_from(["x", "y", 1, 2, True, None])
SEVERAL = SCALARS | st.lists(SCALARS, max_size=2)
CONTACTS = st.fixed_dictionaries({"email": SEVERAL}, optional={"n": SCALARS, "contact": SCALARS})
PAYLOADS = st.lists(
    st.fixed_dictionaries(
        {"salary": SEVERAL, "contact": CONTACTS | st.lists(CONTACTS | SCALARS, max_size=2)},
        optional=dict.fromkeys(("name", "n", "email"), SEVERAL),
    ),
    min_size=1,
    max_size=2,
)
MATCHES = st.sampled_from(
    [
        {"match": {"value": "x"}},
        {"match": {"any": [1, 2]}},
        {"range": {"gte": 2}},
        {"values_count": {"gte": 2}},
        {"is_empty": True},
        {"is_null": True},
    ]
)
Asked = tuple[str, dict[str, Any]]


def requests(*keys: str) -> st.SearchStrategy[Asked]:
    """Reads that refer to these paths."""
    paths = st.sampled_from(keys)
    conditions = st.recursive(
        st.builds(lambda key, match: {"key": key, **match}, paths, MATCHES)
        | st.builds(lambda kind, key: {kind: {"key": key}}, st.sampled_from(["is_empty", "is_null"]), paths)
        | st.builds(lambda ids: {"has_id": ids}, st.lists(st.integers(1, 3), max_size=2)),
        lambda inner: (
            st.builds(
                lambda clause, some: {clause: some},
                st.sampled_from(["must", "must_not", "should"]),
                st.lists(inner, min_size=1, max_size=2),
            )
            | st.builds(lambda key, one: {"nested": {"key": key, "filter": {"must": [one]}}}, paths, inner)
        ),
        max_leaves=4,
    )
    formulas = st.recursive(
        paths | st.just("$score") | conditions,
        lambda inner: (
            st.builds(lambda some: {"sum": some}, st.lists(inner, max_size=2))
            | st.builds(lambda one: {"neg": one}, inner)
            | st.builds(lambda one: {"exp_decay": {"x": one}}, inner)
        ),
        max_leaves=3,
    )
    filters = st.builds(lambda some: {"must": some}, st.lists(conditions, max_size=2))
    queries = st.builds(lambda key: {"order_by": {"key": key}}, paths) | st.builds(
        lambda one: {"formula": one}, formulas
    )
    selected = {
        "filter": filters,
        "with_payload": st.sampled_from([True, False, None]) | st.lists(paths, max_size=2),
        "with_vector": st.booleans(),
        "limit": st.integers(1, 4),
    }

    def request(path: str, optional: dict[str, Any], **required: Any) -> st.SearchStrategy[Asked]:
        return st.tuples(st.just(path), st.fixed_dictionaries(required, optional=optional))

    return st.one_of(
        request("/points/scroll", {**selected, "order_by": paths}),
        request("/points/query", {**selected, "query": queries, "offset": st.integers(0, 3)}),
        request("/points/count", {"filter": filters}),
        request("/facet", {"filter": filters}, key=paths),
        request(
            "/points/query/groups",
            {**selected, "group_size": st.integers(1, 2), "with_lookup": st.just("docs")},
            group_by=paths,
        ),
        request("/points", {"with_payload": selected["with_payload"]}, ids=st.lists(st.integers(1, 3), max_size=3)),
    )


REQUESTS = requests(
    *(
        "salary",
        '"salary"',
        "salary[]",
        "contact",
        "contact.email",
        "contact[].email",
        "contact.n",
        "name",
        "n",
        "email",
    )
)
POLICIES = st.builds(
    QueryPolicy,
    max_limit=st.none() | st.integers(1, 4),
    max_offset=st.none() | st.integers(0, 3),
    forbids_exact=st.booleans(),
    hides_vectors=st.booleans(),
    hidden=st.sampled_from([("salary",), ("contact.email",), ("contact.email", "salary"), ("email", "name"), ()]).map(
        lambda paths: hidden_keys(map(parse_key_path, paths))
    ),
)


def points(payloads: list[dict[str, Any]]) -> list[Point]:
    return [{"id": number, "payload": one, "vector": [number / 8]} for number, one in enumerate(payloads, start=1)]


def outcome(policy: QueryPolicy, request: Asked, stored: list[Point]) -> Any:
    """The result that the caller gets; None for a refusal."""
    path, body = request
    asked, held, raw = recognise("POST", f"/collections/docs{path}"), admission(policy), json.dumps(body).encode()
    decision = BodyDecision(decide_request(held, asked).decision, body=raw)
    if decision.decision is UNREAD:
        try:
            decision = at_once(deciding_body(held, asked, raw))
        except RequestError:
            return None
    assert decision.decision.allowed
    assert decision.body is not None
    answer = fake_points.answer(path.removeprefix("/points"), orjson.loads(decision.body), stored)
    return orjson.loads(at_once(decision.reducer.reducing(answer)) if decision.reducer is not None else answer)[
        "result"
    ]


def without_hidden(policy: QueryPolicy, payload: dict[str, Any]) -> dict[str, Any]:
    copy = orjson.loads(orjson.dumps(payload))
    at_once(strip_payloads([(copy, policy.hidden.tree)]))
    return dict(copy)


@pytest.mark.fuzz
@given(POLICIES, REQUESTS, PAYLOADS)
def test_answers_do_not_depend_on_what_is_hidden(
    policy: QueryPolicy, request: Asked, payloads: list[dict[str, Any]]
) -> None:
    """No hidden value appears, and no filter, order, formula, facet or group tells of one."""
    stored = points(payloads)
    other = points([without_hidden(policy, one) for one in payloads])
    if policy.hides_vectors:
        other = [one | {"vector": [0.5]} for one in other]
    assert outcome(policy, request, stored) == outcome(policy, request, other)


def shown(result: Any) -> dict[Any, Any]:
    """Points of a result by id, or its values and numbers."""
    if isinstance(result, list):
        return {one["id"]: one for one in result}
    if "groups" in result:
        return {(group["id"], hit["id"]): hit for group in result["groups"] for hit in group["hits"]}
    return {one["id"]: one for one in result["points"]} if "points" in result else {"": result}


@pytest.mark.fuzz
@given(POLICIES, POLICIES, REQUESTS, PAYLOADS)
def test_a_further_policy_never_widens(
    one: QueryPolicy, other: QueryPolicy, request: Asked, payloads: list[dict[str, Any]]
) -> None:
    stored = points(payloads)
    merged, alone = outcome(one.merged(other), request, stored), outcome(one, request, stored)
    if merged is None:
        return
    for name, value in shown(merged).items():
        whole = shown(alone)[name]
        for member, inner in value.items():
            if member == "payload" and inner is not None:
                assert without_hidden(one, inner) == inner
            else:
                assert whole[member] == inner


@pytest.mark.fuzz
@given(POLICIES, requests("name", "n", "name.n", "n[].name"), PAYLOADS)
def test_what_is_within_a_policy_passes_unchanged(
    policy: QueryPolicy, request: Asked, payloads: list[dict[str, Any]]
) -> None:
    wide = replace(policy, max_limit=30, max_offset=3, max_prefetch=1, timeout=1, hidden=SALARY.hidden)
    stored = points([without_hidden(wide, one) for one in payloads])
    path, body = request
    body = {name: value for name, value in body.items() if name not in {"with_vector", "with_lookup"}}
    assert outcome(wide, (path, body), stored) == outcome(QueryPolicy(), (path, body), stored)
