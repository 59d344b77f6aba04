"""Bodies confined to a tenant's points: what is changed in them, and what cannot be."""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows
from support.tenant_roles import confinement

from tlsproxy.authz.access import (
    UNREAD,
    Condition,
    Confinement,
    Confinements,
    GlobalMode,
    Grant,
    Grants,
    Rights,
    decide,
)
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import Keys
from tlsproxy.authz.matcher import Matcher
from tlsproxy.authz.roles import Policy, Principal
from tlsproxy.authz.rules import Rule
from tlsproxy.authz.templates import Template, parse_template
from tlsproxy.errors import BadRequest, PointMissing, Unconfined
from tlsproxy.qdrant.descriptions import is_described
from tlsproxy.qdrant.operations import OPEN, REST, Operation
from tlsproxy.qdrant.rest_decision import decide_request
from tlsproxy.qdrant.rest_tenancy import Confined, confine, is_confinable, touches_no_points
from tlsproxy.qdrant.router import recognise
from tlsproxy.qdrant.scoring import MATRIX, Facts
from tlsproxy.qdrant.tenant_examples import Question, refusal_in
from tlsproxy.qdrant.tenant_texts import (
    BELOW_A_KEY,
    LOOKS_UP,
    MARKED,
    NOT_CONFINED,
    NOT_OF_A_BATCH,
    SET,
    UNUSUAL,
)
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.target import parse_target

ACME = confinement(tenant="acme")
MUST = {"key": "tenant", "match": {"value": "acme"}}
ONLY = {"must": [MUST]}
OTHERS = {"key": "tenant", "match": {"except": ["acme"]}}
ALONE = {"must": [MUST], "must_not": [OTHERS]}
NO_IDF = Facts((1, 20), frozenset(), frozenset())
RESCORED = {"quantization": {"rescore": True}}


def confining(
    method: str, path: str, body: Any, confinements: Confinements = ACME, facts: Facts | None = NO_IDF
) -> Confined:
    asked = recognise(method, f"/collections/docs/{path}")
    return at_once(confine(asked, copy.deepcopy(body), confinements, facts))


def confined(method: str, path: str, body: Any, confinements: Confinements = ACME, facts: Facts | None = NO_IDF) -> Any:
    return confining(method, path, body, confinements, facts).body


def test_which_operations_a_tenant_has() -> None:
    """Written down once more: whatever is new in the table of operations stays refused until somebody says how."""
    confinable = {(row.method, row.path.partition("{collection_name}")[2]) for row in REST if is_confinable(row)}
    assert confinable == {
        ("GET", "/points/{id}"),
        ("POST", "/facet"),
        ("POST", "/points"),
        ("POST", "/points/batch"),
        ("POST", "/points/count"),
        ("POST", "/points/delete"),
        ("POST", "/points/discover"),
        ("POST", "/points/discover/batch"),
        ("POST", "/points/payload"),
        ("POST", "/points/payload/clear"),
        ("POST", "/points/payload/delete"),
        ("POST", "/points/query"),
        ("POST", "/points/query/batch"),
        ("POST", "/points/query/groups"),
        ("POST", "/points/recommend"),
        ("POST", "/points/recommend/batch"),
        ("POST", "/points/recommend/groups"),
        ("POST", "/points/scroll"),
        ("POST", "/points/search"),
        ("POST", "/points/search/batch"),
        ("POST", "/points/search/groups"),
        ("POST", "/points/search/matrix/offsets"),
        ("POST", "/points/search/matrix/pairs"),
        ("POST", "/points/vectors/delete"),
        ("PUT", "/points"),
        ("PUT", "/points/payload"),
        ("PUT", "/points/vectors"),
    }
    told = {row.path for row in REST if touches_no_points(row)}
    assert told == {
        "/collections",
        "/aliases",
        "/collections/{collection_name}/aliases",
        "/collections/{collection_name}/exists",
        "/collections/{collection_name}",
    }


def test_the_documents_have_every_route_on_a_collection() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tenants.md").read_text(encoding="utf-8")
    listed = text.partition("The other 39 are refused")[2].partition("\n## ")[0]
    told = set(re.findall(r"`((?:GET|PUT|POST|PATCH|DELETE)(?: [^`]+)?)`", listed))
    rows = [row for row in REST if row.path.startswith("/collections/{collection_name}")]
    routes = {
        f"{row.method} {row.path.removeprefix('/collections/{collection_name}').removeprefix('/')}".strip()
        for row in rows
        if not (is_confinable(row) or touches_no_points(row) or is_described(row))
    }
    assert told == routes
    assert (len(rows), len(routes), sum(map(is_confinable, rows))) == (69, 39, 27)


@pytest.mark.parametrize("everywhere", [GlobalMode.M, None])
def test_conditions_never_allow_more(everywhere: GlobalMode | None) -> None:
    """Of every operation: not one is allowed by its head that would reach points, and none that was refused without."""
    grants = Grants() if everywhere else Grants(Grant("docs", write=True, extras=True))
    identity = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9)
    free = Principal(identity, "rule", "role", Rights(everywhere, grants), refusal=None)
    tenant = Principal(identity, "rule", "role", Rights(everywhere, grants, ACME[0].conditions), refusal=None)
    for row in REST:
        target = (
            row.path.replace("{collection_name}", "docs").replace("{tail...}", "x").replace("{", "").replace("}", "")
        )
        asked = recognise(row.method, target)
        decision = decide_request(Admission(tenant, None), asked).decision
        without = decide_request(Admission(free, None), asked).decision
        if row.requirement is OPEN or touches_no_points(row):
            assert decision.allowed
        elif is_confinable(row):
            assert decision is UNREAD
        else:
            assert not decision.allowed
            assert decision.reason == (
                without.reason if not without.allowed and without is not UNREAD else "not_confined"
            )


def test_a_decision_needs_the_conditions_in_the_body() -> None:
    rights = Rights(everywhere=GlobalMode.M, conditions=ACME[0].conditions)
    requirement = recognise("POST", "/collections/docs/points/scroll").operation.requirement
    assert decide(rights, requirement, "scroll", "docs").reason == "not_confined"
    assert decide(rights, requirement, "scroll", "docs", confined=True).allowed


@rows("path", ["points/count", "points/scroll", "points/query", "points/search/matrix/pairs", "facet"])
@rows(
    ("own", "expected"),
    [
        ({}, ONLY),
        ({"filter": None}, ONLY),
        ({"filter": {}}, ONLY),
        ({"filter": {"should": [{"key": "a"}]}}, {"must": [MUST, {"should": [{"key": "a"}]}]}),
        ({"filter": {"must_not": MUST}}, {"must": [MUST, {"must_not": MUST}]}),
    ],
)
def test_a_filter_is_narrowed(path: str, own: dict[str, Any], expected: dict[str, Any]) -> None:
    changed = confined("POST", path, {"limit": 3, **own})
    assert {name: changed[name] for name in ("limit", "filter")} == {"limit": 3, "filter": expected}


@pytest.mark.parametrize("path", ["points/count", "facet"])
@pytest.mark.parametrize("asked", [{}, {"exact": False}, {"exact": None}])
def test_counts_are_exact(path: str, asked: dict[str, Any]) -> None:
    """An estimate is made over all points."""
    assert confined("POST", path, asked) == {"exact": True, "filter": ONLY}


@pytest.mark.parametrize("kind", ["pairs", "offsets"])
def test_a_matrix_over_words_or_codes_is_refused(kind: str) -> None:
    path, facts = f"points/search/matrix/{kind}", Facts((1, 20), frozenset({"words"}), frozenset({""}))
    for body in ({"using": "words"}, {}, {"using": None}):
        with pytest.raises(Unconfined, match=MATRIX):
            confined("POST", path, body, facts=facts)
    assert confined("POST", path, {"using": "images"}, facts=facts)["filter"] == ONLY


QUERIES: list[Any] = [
    None,
    [0.5, 1],
    [[0.5], [1]],
    {"indices": [1], "values": [0.5]},
    {"text": "x", "model": "m", "options": {}},
    {"nearest": [0.5], "mmr": {"diversity": 0.5}},
    {"nearest": {"indices": [1], "values": [0.5]}},
    {"fusion": "rrf"},
    {"rrf": {"k": 2}},
    {"order_by": {"key": "a"}},
    {"sample": "random"},
    {"formula": {"sum": ["$score", 1]}, "defaults": {"a": 1}},
]
UUID = "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"
BY_EXAMPLES: list[tuple[Any, list[Any]]] = [
    (1, [1]),
    (UUID, [UUID]),
    (UUID.upper(), [UUID]),
    ({"nearest": 1}, [1]),
    ({"nearest": 1, "mmr": {"diversity": 0.5}}, [1]),
    ({"recommend": {"positive": [1, [0.5], 2], "negative": [UUID, 1]}}, [1, 2, UUID]),
    ({"recommend": {"positive": [[0.5]], "strategy": "best_score"}}, []),
    ({"recommend": {"positive": None}}, []),
    ({"discover": {"target": 1, "context": []}}, [1]),
    ({"discover": {"target": [0.5], "context": {"positive": 2, "negative": [1]}}}, [2]),
    ({"discover": {"target": 3, "context": [{"positive": 2, "negative": 1}]}}, [3, 2, 1]),
    ({"context": {"positive": 1, "negative": 2}}, [1, 2]),
    ({"context": [{"positive": 1, "negative": [0.5]}, {"positive": 2, "negative": 3}]}, [1, 2, 3]),
    (
        {"relevance_feedback": {"target": 1, "feedback": [{"example": 2, "score": 1}], "strategy": {"naive": {}}}},
        [1, 2],
    ),
]
NOT_QUERIES: list[Any] = [
    "no id",
    True,
    -1,
    1 << 64,
    1.5,
    {},
    [1, None],
    [[1, None]],
    [UUID],
    [True],
    {"nearest": {"nearest": [1]}},
    {"nearest": [1, None]},
    {"nearest": [1], "recommend": {"positive": [1]}},
    {"recommend": {"positive": [1], "examples": [2]}},
    {"recommend": {"positive": [True]}},
    {"discover": {"target": 1, "also": 2}},
    {"context": [{"positive": 1, "negative": 2, "neutral": 3}]},
    {"relevance_feedback": {"target": 1, "feedback": [{"example": {}}]}},
    {"relevance_feedback": {"feedback": []}},
    {"fusion": "rrf", "nearest": 1},
    {"text": "x", "model": "m", "nearest": 1},
    {"text": ["x"]},
    {"text": "x", "nearest": 1},
    {"indices": 1, "values": [1]},
    {"unheard_of": [1]},
]
NOT_DOCUMENTED: list[Any] = [
    {"recommend": [[1], [2]]},
    {"recommend": {"positive": 1}},
    {"discover": [1, []]},
    {"context": [[1, 2]]},
    {"context": 1},
    {"relevance_feedback": {"target": 1, "feedback": [[1, 0.5]]}},
]


def asked(questions: tuple[Question, ...]) -> list[tuple[str, list[Any]]]:
    """The points that are asked about; what is asked of each is whether it is the caller's, and nobody else's."""
    for question in questions:
        own, others = orjson.loads(question.body)["searches"]
        one_of = {"has_id": list(question.ids)}
        assert own["filter"] == {"must": [one_of, ONLY]}
        assert others["filter"] == {"must": [one_of], "must_not": [ONLY]}
        assert (own["limit"], others["limit"]) == (len(question.ids), 1)
    return [(question.collection, list(question.ids)) for question in questions]


@rows(("query", "ids"), BY_EXAMPLES)
def test_examples_are_asked_of_first(query: Any, ids: list[Any]) -> None:
    expected = [("docs", ids)] if ids else []
    alone = confining("POST", "points/query", {"query": query})
    assert asked(alone.questions) == expected
    assert (alone.body["query"], alone.body["filter"]) == (query, ONLY)
    nested = {"prefetch": [{"prefetch": [{}, {"query": query}]}]}
    assert asked(confining("POST", "points/query", nested).questions) == expected
    batch = {"searches": [nested, {"query": query}, {"query": 1}]}
    (places, found) = ({place for place, _ in asked(confining("POST", "points/query/batch", batch).questions)}, set())
    for _, each in asked(confining("POST", "points/query/batch", batch).questions):
        found |= set(each)
    assert (places, found) == ({"docs"}, {*ids, 1})


def test_the_older_routes_have_examples_too() -> None:
    recommend = {"positive": [1, [0.5]], "negative": [2], "limit": 1, "using": "images"}
    for path, body in (
        ("recommend", recommend),
        ("recommend/groups", recommend | {"group_by": "a"}),
        ("recommend/batch", {"searches": [recommend, {"positive": [1]}]}),
    ):
        found = confining("POST", f"points/{path}", body)
        ((place, ids),) = asked(found.questions)
        assert (place, sorted(ids)) == ("docs", [1, 2])
    groups = confined("POST", "points/recommend/groups", recommend | {"group_by": "a"})
    assert groups["params"] == {"exact": True, **RESCORED}
    discover = {"target": 3, "context": [{"positive": 1, "negative": [0.5]}], "limit": 1}
    for path, body in (("discover", discover), ("discover/batch", {"searches": [discover]})):
        found = confining("POST", f"points/{path}", body)
        assert asked(found.questions) == [("docs", [3, 1])]
    assert confined("POST", "points/discover", discover)["filter"] == ONLY


def test_examples_of_another_collection() -> None:
    lookup = {"collection": "dogs", "vector": "v"}
    sharded = {"collection": "dogs", "shard_key": ["a"]}
    body = {
        "query": 1,
        "prefetch": [{"query": 1, "lookup_from": lookup}, {"query": [0.5], "lookup_from": lookup}],
    }
    assert asked(confining("POST", "points/query", body).questions) == [("docs", [1]), ("dogs", [1])]
    (question,) = confining("POST", "points/query", {"query": 2, "lookup_from": sharded}).questions
    assert all(one["shard_key"] == ["a"] for one in orjson.loads(question.body)["searches"])
    assert confining("POST", "points/query", {"query": [0.5], "lookup_from": lookup}).questions == ()


def test_examples_are_few() -> None:
    many = {"query": {"recommend": {"positive": list(range(1001))}}}
    places = {"searches": [{"query": 1, "lookup_from": {"collection": f"c{n}"}} for n in range(17)]}
    for path, body in (("points/query", many), ("points/query/batch", places)):
        with pytest.raises(BadRequest, match="at most 1000 points as examples, in 16 collections"):
            confined("POST", path, body)


@pytest.mark.parametrize(
    ("own", "others", "missing"),
    [
        ([1, UUID], [], None),
        ([UUID, 1], [], None),
        ([1], [], UUID),
        ([], [1], 1),
        ([1, UUID], [1], 1),
        ([], [], 1),
    ],
)
def test_the_answer_about_examples(own: list[Any], others: list[Any], missing: Any) -> None:
    question = Question("docs", (1, UUID), b"")
    found = [{"points": [{"id": one, "version": 1, "score": 0.0} for one in each]} for each in (own, others)]
    refusal = refusal_in(orjson.dumps({"result": found}), question)
    text = None if refusal is None else (refusal.status, refusal.text)
    assert text == (None if missing is None else (404, f"Not found: No point with id {missing} found"))
    for unusual in (b"{}", b'{"result": []}', b'{"result": [{"points": [{}]}, {"points": []}]}', b"x"):
        with pytest.raises(ValueError, match=r"."):
            refusal_in(unusual, question)


@rows("query", QUERIES)
def test_queries_that_are_about_no_point(query: Any) -> None:
    changed = confined("POST", "points/query", {"query": query})
    assert changed.pop("params", RESCORED) == RESCORED
    assert changed == {"query": query, "filter": ONLY}


@pytest.mark.parametrize("query", NOT_DOCUMENTED)
def test_queries_of_another_form(query: Any) -> None:
    with pytest.raises(BadRequest):
        confined("POST", "points/query", {"query": query})


@rows("query", NOT_QUERIES)
def test_queries_of_unknown_forms(query: Any) -> None:
    for body in (
        {"query": query},
        {"prefetch": {"query": query}},
        {"prefetch": [{"prefetch": [{}, {"query": query}]}]},
    ):
        with pytest.raises(Unconfined):
            confined("POST", "points/query", body)
        with pytest.raises(Unconfined):
            confined("POST", "points/query/batch", {"searches": [{}, body]})


def test_a_lookup_of_groups_is_of_all_points() -> None:
    with pytest.raises(Unconfined):
        confined("POST", "points/query/groups", {"with_lookup": {"collection": "docs"}})
    assert confined("POST", "points/query/groups", {"with_lookup": None, "lookup_from": None})["filter"] == ONLY


def test_words_are_counted_over_ones_own_points() -> None:
    """The scores of a search over sparse vectors tell how rare its words are in the points of ``corpus``."""
    others = {"must": [{"key": "tenant", "match": {"value": "other"}}]}
    asked = {"params": {"exact": True, "idf": {"corpus": others}}}
    narrowed = {"exact": True, "idf": {"corpus": {"must": [MUST, others]}}}
    for path in ("points/search", "points/query"):
        assert confined("POST", path, asked)["params"] == narrowed
    assert confined("POST", "points/query", {"prefetch": asked})["prefetch"]["params"] == narrowed
    for params in (None, {}, {"idf": None}):
        assert confined("POST", "points/query", {"params": params})["params"] == params
    assert confined("POST", "points/query", {"params": {"idf": "global"}})["params"] == {"idf": {"corpus": ONLY}}
    for unusual in ([], [None, True, {"corpus": others}], {"idf": [others]}, {"idf": {"corpus": [others]}}):
        with pytest.raises(BadRequest):
            confined("POST", "points/query", {"params": unusual})


requests: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.fixed_dictionaries(
        {"query": st.sampled_from(QUERIES)}, optional={"filter": st.sampled_from([None, {}, {"must": []}])}
    ),
    lambda inner: st.fixed_dictionaries({"prefetch": inner | st.lists(inner, max_size=3)}),
    max_leaves=10,
)


def every_request(value: Any) -> list[dict[str, Any]]:
    requests = [value] if isinstance(value, dict) else value
    return [*requests, *(one for request in requests for one in every_request(request.get("prefetch") or []))]


@pytest.mark.fuzz
@given(requests, st.integers(1, 3))
def test_every_level_is_filtered(body: dict[str, Any], count: int) -> None:
    confinements = confinement(**{f"key{number}": "value" for number in range(count)})
    must = [{"key": f"key{number}", "match": {"value": "value"}} for number in range(count)]
    changed = confined("POST", "points/query/batch", {"searches": [body, body]}, confinements)
    found = every_request(changed["searches"])
    assert len(found) == 2 * len(every_request(body))
    assert all(request["filter"]["must"][:count] == must for request in found)
    assert all(request["filter"].keys() == {"must"} for request in found)


def test_new_points_are_marked() -> None:
    points = [{"id": 1, "vector": [1]}, {"id": 2, "payload": None}, {"id": 3, "payload": {"a": 1, "tenant": "acme"}}]
    assert confined("PUT", "points", {"points": points, "update_filter": {"must": []}}) == {
        "points": [
            {"id": 1, "vector": [1], "payload": {"tenant": "acme"}},
            {"id": 2, "payload": {"tenant": "acme"}},
            {"id": 3, "payload": {"a": 1, "tenant": "acme"}},
        ],
        "update_filter": {"must": [MUST, {"must": []}], "must_not": [OTHERS]},
    }
    assert confined("PUT", "points", {"batch": {"ids": [1, 2], "vectors": [[1], [2]]}}) == {
        "batch": {"ids": [1, 2], "vectors": [[1], [2]], "payloads": [{"tenant": "acme"}] * 2},
        "update_filter": ALONE,
    }
    batch = {"ids": [1, 2], "payloads": [None, {"a": 1}]}
    payloads = [{"tenant": "acme"}, {"a": 1, "tenant": "acme"}]
    assert confined("PUT", "points", {"batch": batch})["batch"]["payloads"] == payloads


FILTER = {"must": [{"has_id": [1]}]}
NARROWED = {"must": [MUST, FILTER], "must_not": [OTHERS]}
BY_IDS = {"must": [MUST, {"has_id": [1]}], "must_not": [OTHERS]}
CHANGES: list[tuple[str, str, str, dict[str, Any], dict[str, Any]]] = [
    ("delete", "POST", "points/delete", {"filter": FILTER}, {"filter": NARROWED}),
    ("delete", "POST", "points/delete", {"points": [1], "shard_key": "a"}, {"filter": BY_IDS, "shard_key": "a"}),
    ("delete", "POST", "points/delete", {"points": []}, {"filter": {**BY_IDS, "must": [MUST, {"has_id": []}]}}),
    ("delete_vectors", "POST", "points/vectors/delete", {"filter": FILTER, "vector": ["v"], "points": None},
     {"filter": NARROWED, "vector": ["v"]}),
    ("delete_vectors", "POST", "points/vectors/delete", {"points": [1], "vector": ["v"]},
     {"filter": BY_IDS, "vector": ["v"]}),
    ("update_vectors", "PUT", "points/vectors", {"points": [{"id": 1}]},
     {"points": [{"id": 1}], "update_filter": ALONE}),
    ("set_payload", "POST", "points/payload", {"payload": {"a": 1}, "filter": FILTER},
     {"payload": {"a": 1}, "filter": NARROWED}),
    ("set_payload", "POST", "points/payload", {"payload": {"tenant": 1}, "key": "a.b", "points": [1], "filter": None},
     {"payload": {"tenant": 1}, "key": "a.b", "filter": BY_IDS}),
    ("overwrite_payload", "PUT", "points/payload", {"payload": {}, "points": [1]},
     {"payload": {"tenant": "acme"}, "filter": BY_IDS}),
    ("overwrite_payload", "PUT", "points/payload", {"payload": {"a": 1}, "filter": FILTER},
     {"payload": {"a": 1, "tenant": "acme"}, "filter": NARROWED}),
    ("delete_payload", "POST", "points/payload/delete", {"keys": ["a", "b.tenant", "c[].d"], "filter": FILTER},
     {"keys": ["a", "b.tenant", "c[].d"], "filter": NARROWED}),
]  # fmt: skip


@rows(("name", "method", "path", "body", "expected"), CHANGES)
def test_changes_by_filter(name: str, method: str, path: str, body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert confined(method, path, body) == expected
    batch = {"operations": [{name: body}, {name: copy.deepcopy(body)}]}
    assert confined("POST", "points/batch", batch) == {"operations": [{name: expected}, {name: expected}]}


def test_a_payload_is_cleared_but_for_its_marks() -> None:
    nested = confinement(**{"tenant": "acme", "acl[].level": 3, "meta.open": True})
    for body, own in (({"points": [1], "shard_key": "a"}, {"has_id": [1]}), ({"filter": FILTER, "key": "a"}, FILTER)):
        found = confining("POST", "points/payload/clear", body, nested)
        assert (found.method, str(found.target(parse_target("/collections/a%2Fb/points/payload/clear?wait=true")))) == (
            "PUT",
            "/collections/a%2Fb/points/payload?wait=true",
        )
        assert found.body["payload"] == {"tenant": "acme", "acl": [{"level": 3}], "meta": {"open": True}}
        assert found.body["filter"]["must"][-1] == own
        assert found.body.get("shard_key") == body.get("shard_key")
        assert "key" not in found.body
        batch = {"operations": [{"clear_payload": body}, {"delete": {"points": [1]}}]}
        changed = confined("POST", "points/batch", batch, nested)["operations"]
        assert [list(one) for one in changed] == [["overwrite_payload"], ["delete"]]
        assert changed[0]["overwrite_payload"] == found.body


def test_a_payload_that_one_of_several_values_marks_is_overwritten() -> None:
    groups = (Confinement((Condition("group", ("a", "b")),)),)
    for method, path, body in (
        ("POST", "points/payload/clear", {"points": [1]}),
        ("POST", "points/batch", {"operations": [{"clear_payload": {"points": [1]}}]}),
    ):
        with pytest.raises(Unconfined, match="overwrite it with the one to keep"):
            confined(method, path, body, groups)
    over = {"payload": {"group": "b"}, "points": [1]}
    assert confined("PUT", "points/payload", over, groups)["payload"] == {"group": "b"}
    with pytest.raises(Unconfined, match=MARKED.format("group")):
        confined("PUT", "points/payload", {"payload": {"a": 1}, "points": [1]}, groups)


RETRIEVALS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"ids": [3, 1]}, {"with_payload": False}),
    ({"ids": [3, 1], "with_payload": None}, {"with_payload": False}),
    ({"ids": [3, 1], "with_payload": True, "with_vector": ["v"]}, {"with_payload": True, "with_vector": ["v"]}),
    ({"ids": [3, 1], "with_payload": ["a"], "with_vectors": True}, {"with_payload": ["a"], "with_vectors": True}),
    ({"ids": [3, 1], "shard_key": "a"}, {"with_payload": False, "shard_key": "a"}),
    ({"ids": [3, 1], "offset": 2, "order_by": "a", "limit": 9, "filter": {}}, {"with_payload": False}),
]


@pytest.mark.parametrize(("body", "expected"), RETRIEVALS)
def test_a_retrieval_is_a_scroll(body: dict[str, Any], expected: dict[str, Any]) -> None:
    found = confining("POST", "points", body)
    assert found.body == {"filter": {"must": [MUST, {"has_id": [3, 1]}]}, "limit": 2, **expected}
    target = parse_target("/collections/a%2Fb/points?consistency=all&timeout=3")
    assert str(found.target(target)) == "/collections/a%2Fb/points/scroll?consistency=all&timeout=3"
    assert found.method == "POST"


def record(number: Any) -> dict[str, Any]:
    return {"id": number, "payload": {"n": number}}


def test_retrieved_points_come_in_the_order_of_their_ids() -> None:
    ids = [3, UUID.upper(), 1, 3, UUID.replace("-", ""), 7]
    found = confining("POST", "points", {"ids": ids})
    assert found.body["limit"] == 4
    assert found.body["filter"]["must"][-1] == {"has_id": [3, UUID, 1, 7]}
    assert found.answered is not None
    page = {"points": [record(1), record(3), record(UUID)], "next_page_offset": None}
    assert at_once(found.answered(page)) == [record(3), record(UUID), record(1)]
    for unusual in (None, [], {}, {"points": {}}, {"points": [{}]}, {"points": [1]}):
        with pytest.raises(ValueError, match=r"."):
            at_once(found.answered(unusual))
    nothing = confining("POST", "points", {"ids": []})
    assert (nothing.body["limit"], nothing.body["filter"]["must"][-1]) == (1, {"has_id": []})


@pytest.mark.parametrize(
    ("segment", "found"),
    [("5", 5), ("+5", 5), ("007", 7), ("0", 0), (str((1 << 64) - 1), (1 << 64) - 1), (UUID.upper(), UUID)],
)
def test_one_point_by_its_id_in_the_path(segment: str, found: Any) -> None:
    one = confining("GET", f"points/{segment}", None)
    scroll = {"with_payload": True, "with_vector": True, "limit": 1}
    assert one.body == {"filter": {"must": [MUST, {"has_id": [found]}]}, **scroll}
    assert one.answered is not None
    assert at_once(one.answered({"points": [record(found)]})) == record(found)
    with pytest.raises(PointMissing, match=f"^Not found: Point with id {found} does not exists!$"):
        at_once(one.answered({"points": []}))


@rows("segment", ["0x1", "-1", "1.0", "a", str(1 << 64), f"{UUID}0", "٣", "1_0"])
def test_a_path_without_an_id(segment: str) -> None:
    with pytest.raises(BadRequest, match=f'^Wrong input: Can not recognize "{segment}" as point id$'):
        confining("GET", f"points/{quote(segment)}", None)


@rows(
    ("name", "method", "path", "body"),
    [
        ("upsert", "PUT", "points", {"points": [{"id": 1, "payload": {"tenant": "other"}}]}),
        ("upsert", "PUT", "points", {"points": [{"id": 1, "payload": {"tenant": ["acme", "other"]}}]}),
        ("upsert", "PUT", "points", {"points": [{"id": 1, "payload": {"tenant": None}}]}),
        ("upsert", "PUT", "points", {"batch": {"ids": [1], "payloads": [{"tenant": "other"}]}}),
        ("set_payload", "POST", "points/payload", {"payload": {"tenant": "other"}, "filter": FILTER}),
        ("set_payload", "POST", "points/payload", {"payload": {"tenant": "acme"}, "filter": FILTER}),
        ("set_payload", "POST", "points/payload", {"payload": {"tenant": None}, "filter": FILTER}),
        ("set_payload", "POST", "points/payload", {"payload": {"x": "other"}, "key": "tenant", "filter": FILTER}),
        ("set_payload", "POST", "points/payload", {"payload": {}, "key": "a b", "filter": FILTER}),
        ("overwrite_payload", "PUT", "points/payload", {"payload": {}, "key": "a", "filter": FILTER}),
        ("overwrite_payload", "PUT", "points/payload", {"payload": {"tenant": "acme"}, "filter": FILTER}),
        ("overwrite_payload", "PUT", "points/payload", {"payload": {"tenant": "other"}, "filter": FILTER}),
        ("delete_payload", "POST", "points/payload/delete", {"keys": ["tenant"], "filter": FILTER}),
        ("delete_payload", "POST", "points/payload/delete", {"keys": ["tenant.x"], "filter": FILTER}),
        ("delete_payload", "POST", "points/payload/delete", {"keys": ["tenant[]"], "filter": FILTER}),
        ("delete_payload", "POST", "points/payload/delete", {"keys": ['"tenant"'], "filter": FILTER}),
        ("delete_payload", "POST", "points/payload/delete", {"keys": [1], "filter": FILTER}),
        ("create_index", "POST", "points/batch", {}),
    ],
)
def test_what_cannot_be_confined(name: str, method: str, path: str, body: dict[str, Any]) -> None:
    if not path.endswith("batch"):
        with pytest.raises(Unconfined):
            confined(method, path, body)
    with pytest.raises(Unconfined):
        confined("POST", "points/batch", {"operations": [{name: body}]})


@rows(
    ("method", "path", "body", "text"),
    [
        ("POST", "points/scroll", [], "the body must be an object"),
        ("POST", "points/scroll", {"filter": [[MUST]]}, "filter must be an object"),
        ("POST", "points/query", {"prefetch": [[]]}, "prefetch must be an object"),
        ("POST", "points/query", {"using": 1}, "using must be a string"),
        ("POST", "points/query", {"params": []}, "params must be an object"),
        ("POST", "points/query", {"params": {"quantization": []}}, "params.quantization must be an object"),
        ("POST", "points/query", {"params": {"idf": []}}, "params.idf must be an object"),
        ("POST", "points/query", {"params": {"idf": {"corpus": [1]}}}, "corpus must be an object"),
        ("POST", "points/query/batch", {"searches": {}}, "searches must be an array"),
        ("POST", "points/query/batch", {"searches": [1]}, "searches must be an object"),
        ("POST", "points/search", {"vector": "x"}, "vector must be an object"),
        ("POST", "points/search", {"vector": {"name": 1, "vector": [1]}}, "vector.name must be a string"),
        ("POST", "points/search", {"vector": {"name": 1, "vector": {}}}, "vector.name must be a string"),
        ("POST", "points/search", {"vector": {"vector": 1}}, "vector.vector must be numbers, or indices and values"),
        (
            "POST",
            "points/search",
            {"vector": {"vector": ["a"]}},
            "vector.vector must be numbers, or indices and values",
        ),
        ("PUT", "points", [], "the body must be an object"),
        ("PUT", "points", {}, "either points or batch is expected"),
        ("PUT", "points", {"points": [], "batch": {}}, "either points or batch is expected"),
        ("PUT", "points", {"points": {}}, "points must be an array"),
        ("PUT", "points", {"points": [[1, [1.0], {"tenant": "other"}]]}, "points must be an object"),
        ("PUT", "points", {"points": [{"payload": []}]}, "payload must be an object"),
        ("PUT", "points", {"batch": [[1], [[1.0]]]}, "batch must be an object"),
        ("PUT", "points", {"batch": {"ids": 1}}, "ids must be an array"),
        ("PUT", "points", {"batch": {"ids": [1], "payloads": {}}}, "payloads must be an array"),
        ("PUT", "points", {"points": [], "update_filter": []}, "update_filter must be an object"),
        ("POST", "points/delete", {}, "either points or filter is expected"),
        ("POST", "points/delete", {"filter": None}, "either points or filter is expected"),
        ("POST", "points/delete", {"points": [1], "filter": FILTER}, "either points or filter is expected"),
        ("POST", "points/delete", {"filter": [FILTER]}, "filter must be an object"),
        ("POST", "points/delete", {"points": 1}, "points must be an array"),
        ("POST", "points/delete", {"points": [1, True]}, "points must be ids: unsigned integers or UUIDs"),
        ("POST", "points", {"ids": ["1"]}, "ids must be ids: unsigned integers or UUIDs"),
        ("POST", "points", {}, "ids must be an array"),
        ("POST", "points/query", {"lookup_from": "dogs"}, "lookup_from must be an object"),
        ("POST", "points/query", {"lookup_from": {}}, "lookup_from.collection must be a string"),
        ("POST", "points/payload", {"filter": FILTER}, "payload must be an object"),
        ("POST", "points/payload/delete", {"filter": FILTER}, "keys must be an array"),
        ("POST", "points/batch", {"operations": {}}, "operations must be an array"),
        ("POST", "points/batch", {"operations": [["delete", {}]]}, "operations must be an object"),
        ("POST", "points/batch", {"operations": [{"delete": [FILTER]}]}, "delete must be an object"),
    ],
)
def test_forms_that_are_not_documented(method: str, path: str, body: Any, text: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        confined(method, path, body)
    assert str(refusal.value) == f"Format error in JSON body: {text}"


@rows(
    ("method", "path", "body", "text"),
    [
        ("POST", "points/payload", {"payload": {}, "key": "tenant.a", "filter": FILTER}, BELOW_A_KEY),
        ("POST", "points/payload", {"payload": {"tenant": "acme"}, "filter": FILTER}, SET.format("tenant")),
        ("PUT", "points", {"points": [{"payload": {"tenant": "other"}}]}, MARKED.format("tenant")),
        ("POST", "points/payload/delete", {"keys": ["tenant"]}, "The payload that marks a tenant's points"),
        ("POST", "points/batch", {"operations": [{}]}, NOT_OF_A_BATCH),
        ("POST", "points/query", {"query": {}}, UNUSUAL),
        ("POST", "points/query/groups", {"with_lookup": "docs"}, LOOKS_UP.format("with_lookup")),
        ("POST", "shards/1/points", {"ids": [1]}, NOT_CONFINED),
    ],
)
def test_a_refusal_says_what_cannot_be(method: str, path: str, body: Any, text: str) -> None:
    with pytest.raises(Unconfined) as refusal:
        confined(method, path, body)
    assert str(refusal.value).startswith(f"Forbidden: {text}")


SPARSE = {"indices": [1], "values": [0.5]}


@pytest.mark.parametrize(
    ("vector", "kind", "name"),
    [
        (None, None, ""),
        ([0.5, 1], "dense", ""),
        ({"vector": [0.5]}, "dense", ""),
        ({"name": None, "vector": [0.5]}, "dense", ""),
        ({"name": "images", "vector": [0.5]}, "dense", "images"),
        ({"vector": SPARSE}, "sparse", ""),
        ({"name": "words", "vector": SPARSE}, "sparse", "words"),
    ],
)
def test_the_older_search_has_the_kind_and_the_name_in_its_vector(vector: Any, kind: str | None, name: str) -> None:
    """Its scores are computed from vectors if it is dense, and over the caller's own words if it is sparse."""
    facts = Facts((1, 20), frozenset({name}), frozenset())
    changed = confined("POST", "points/search", {"vector": vector}, facts=facts)
    expected: dict[str | None, Any] = {"dense": RESCORED, "sparse": {"idf": {"corpus": ONLY}}}
    assert changed.get("params") == expected.get(kind)
    assert (changed["vector"], changed["filter"]) == (vector, ONLY)
    others = Facts((1, 20), frozenset({f"not {name}"}), frozenset())
    assert "idf" not in confined("POST", "points/search", {"vector": vector}, facts=others).get("params", {})


KEYS = """params idf corpus exact indexed_only indices values text using vector name
points batch ids payloads payload filter update_filter keys key operations searches prefetch query nearest
positive negative target context lookup_from collection ids with_payload clear_payload
upsert delete set_payload overwrite_payload delete_payload update_vectors delete_vectors tenant must"""
names = st.sampled_from(KEYS.split())
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["acme", "tenant", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.fuzz
@given(st.sampled_from([row for row in REST if is_confinable(row)]), anything)
def test_whatever_comes_is_confined_or_refused(row: Operation, body: Any) -> None:
    asked = recognise(row.method, row.path.replace("{collection_name}", "docs").replace("{id}", "1"))
    try:
        found = at_once(confine(asked, body, ACME, NO_IDF)).body
    except (BadRequest, Unconfined):
        return
    if not row.reads:
        changes = (
            [pair for one in found["operations"] for pair in one.items()]
            if "batch" in row.path
            else [(row.name, found)]
        )
        of_points = {"upsert", "upsert_points", "update_vectors"}
        filters = [change["update_filter" if name in of_points else "filter"] for name, change in changes]
        assert all(one["must"][0] == MUST and one["must_not"] == [OTHERS] for one in filters)
        assert all("points" not in change for name, change in changes if name not in of_points)
    elif not row.path.endswith("/batch"):
        assert all(request["filter"]["must"][0] == MUST for request in every_request(found))
        if row.path.endswith(("/count", "/facet")):
            assert found["exact"] is True


def test_a_list_of_values_is_not_multiplied_without_end() -> None:
    """A claim may have 1,000 values, and a batch many queries, each of which gets them all."""
    groups = (Confinement((Condition("group", tuple(f"g{number}" for number in range(1000))),)),)
    few, many = ({"searches": [{"prefetch": {}}] * count} for count in (100, 101))
    assert len(confined("POST", "points/query/batch", few, groups)["searches"]) == 100
    for method, path, body in (
        ("POST", "points/query/batch", many),
        ("POST", "points/batch", {"operations": [{"delete": {"points": [1]}}] * 201}),
    ):
        with pytest.raises(BadRequest, match=r"^Too many queries or operations at once: each gets 1000 values"):
            confined(method, path, body, groups)


def test_two_operations_in_one_place() -> None:
    with pytest.raises(Unconfined):
        confined("POST", "points/batch", {"operations": [{"delete": {"filter": FILTER}, "upsert": {"points": []}}]})


IDENTITY = Identity(
    subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9, common_name="a", organizations=("o", "p")
)
NAMELESS = replace(IDENTITY, common_name="", organizations=())


def test_templates() -> None:
    assert parse_template("tenant", "{cn}") == Template("tenant", "", "cn", "")
    assert parse_template("tenant", "x-{cn}-y").filled(IDENTITY, {}) == Condition("tenant", ("x-a-y",))
    assert parse_template("tenant", "same").filled(None, {}) == Condition("tenant", ("same",))
    assert parse_template("tenant", "{o}").filled(IDENTITY, {"o": "x"}) is None
    assert parse_template("tenant", "{ou}").filled(IDENTITY, {}) is None
    assert parse_template("tenant", "{cn}").filled(None, {"cn": "a"}) is None
    of_claim = parse_template("tenant", "x-{claim:https://example.org/team}-y")
    assert of_claim.filled(None, {"https://example.org/team": "a"}) == Condition("tenant", ("x-a-y",))
    for claims in ({}, {"https://example.org/team": ""}, {"team": "a"}):
        assert of_claim.filled(IDENTITY, claims) is None


def test_each_field_of_a_certificate_fills_a_template() -> None:
    every = replace(
        IDENTITY, organizations=("o",), organizational_units=("ou",), uris=("spiffe://a/b",), dns_names=("a.org",),
        emails=("a@a.org",),
    )  # fmt: skip
    values = {"cn": "a", "o": "o", "ou": "ou", "uri": "spiffe://a/b", "dns": "a.org", "email": "a@a.org"}
    for field, value in values.items():
        template = parse_template("tenant", f"{{{field}}}")
        assert (template.of_claim, template.of_certificate) == (False, True)
        assert template.filled(every, {field: "x"}) == Condition("tenant", (value,))
        assert template.filled(replace(every, doubted=frozenset({field})), {}) is None, "the CA is not believed"
        assert template.filled(replace(NAMELESS, common_name=""), {}) is None
    of_claim, same = parse_template("tenant", "{claim:a}"), parse_template("tenant", "a")
    assert (of_claim.of_claim, of_claim.of_certificate) == (True, False)
    assert (same.of_claim, same.of_certificate) == (False, False)


KEY_EXPECTED = (
    "a payload key of letters, digits, '_' and '-' is expected, or a path of them: \"a.b\", or \"a[].b\" where "
    "the payload has a list of objects"
)
FIELD_EXPECTED = 'a text with at most one field is expected, for example "{cn}" or "team-{ou}"'


@rows(
    ("key", "text", "says"),
    [
        ("a..b", "x", KEY_EXPECTED),
        ("a[0].b", "x", KEY_EXPECTED),
        ("a[]", "x", KEY_EXPECTED),
        (".".join("abcdefghi"), "x", KEY_EXPECTED),
        ("a", 1 << 63, "an integer of at most 64 bits is expected: Qdrant compares no others"),
        ("", "x", KEY_EXPECTED),
        ("a" * 65, "x", KEY_EXPECTED),
        ("a", "", FIELD_EXPECTED),
        ("a", "{}", FIELD_EXPECTED),
        ("a", "{o}{cn}", FIELD_EXPECTED),
        ("a", "{serial}", "{serial} is none of cn, o, ou, uri, dns, email, claim:NAME"),
        ("a", "{cn", FIELD_EXPECTED),
        ("a", "{claim:}", FIELD_EXPECTED),
        ("a", "{claim:a b}", FIELD_EXPECTED),
        ("a", "{claim:a}{cn}", FIELD_EXPECTED),
    ],
)
def test_a_template_that_is_refused(key: str, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_template(key, text)
    assert str(error.value) == says
    assert parse_template("a" * 64, "x")


def test_a_certificate_without_the_field_has_no_rights() -> None:
    rights = Rights(everywhere=GlobalMode.M)

    def policy(text: str) -> Policy:
        rule = Rule("rule", Matcher(cn="a"), "role")
        return Policy({"role": rights}, (rule,), Keys(), filters={"role": (parse_template("tenant", text),)})

    assert policy("{cn}").principal_of(IDENTITY).rights == Rights(
        GlobalMode.M, conditions=(Condition("tenant", ("a",)),)
    )
    for text in ("{o}", "{ou}", "{uri}"):
        principal = policy(text).principal_of(IDENTITY)
        assert principal.rights == Rights()
        assert principal.refusal is not None
        assert principal.refusal.reason == "no_tenant"


def steps_of(method: str, path: str, body: Any, confinements: Confinements) -> int:
    asked = recognise(method, f"/collections/docs/{path}")
    return sum(1 for _ in confine(asked, body, confinements, NO_IDF))


def test_a_point_costs_the_same_by_however_many_values() -> None:
    """A token's list may have 1,000 of them, and two roles a filter by it."""
    groups = (Confinement((Condition("group", tuple(f"group-{number}" for number in range(1000))),)),)
    points = [{"id": 1, "vector": [1], "payload": {"group": "group-999"}} for _ in range(200)]
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    sys.setprofile(count)
    try:
        steps_of("PUT", "points", {"points": points}, groups * 2)
    finally:
        sys.setprofile(None)
    assert calls[0] < 50_000
