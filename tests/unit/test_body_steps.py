"""Long REST bodies are decided in steps: no run of work between two of them is long, in any member of a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.rows import rows
from support.steps import MOST_CALLS, longest_run
from support.tenant_roles import confinement

from tlsproxy.authz.query_policy import QueryPolicy, hidden_keys, parse_key_path
from tlsproxy.errors import BadRequest, RequestError
from tlsproxy.qdrant.rest_collections import MOST_NAMES, are_numbers, body_names
from tlsproxy.qdrant.rest_query_policy import reading_under
from tlsproxy.qdrant.rest_tenancy import confine
from tlsproxy.qdrant.router import recognise
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.wire.cooperative import STEP, Pace, Steps, at_once

TENANT = confinement(tenant="acme")
DEEP_TENANT = confinement(**{"parts[].tenant": "acme"})
HIDING = QueryPolicy(hidden=hidden_keys(map(parse_key_path, ["salary", "contact.email"])))
FACTS = Facts((1, 20), frozenset(), frozenset())

LONG = STEP + STEP // 4
VECTOR = [0.5]
PAIR = {"positive": VECTOR, "negative": VECTOR}
FIELD = {"key": "a", "match": {"value": 1}}
QUERY, BATCH = ("POST", "points/query"), ("POST", "points/query/batch")
UPSERT, DELETION = ("PUT", "points"), ("POST", "points/delete")

names, policed, confined = "names", "policed", "confined"

LONG_BODIES: list[tuple[tuple[str, str], Callable[[int], Any], str]] = [
    (QUERY, lambda n: {"query": {"recommend": {"positive": [VECTOR] * n}}}, confined),
    (QUERY, lambda n: {"query": {"recommend": {"negative": [VECTOR] * n}}}, confined),
    (QUERY, lambda n: {"query": {"context": [PAIR] * n}}, confined),
    (QUERY, lambda n: {"query": {"discover": {"target": VECTOR, "context": [PAIR] * n}}}, confined),
    (
        QUERY,
        lambda n: {"query": {"relevance_feedback": {"feedback": [{"example": VECTOR}] * n, "target": [1]}}},
        confined,
    ),
    (QUERY, lambda n: {"query": [VECTOR] * n}, confined),
    (QUERY, lambda n: {"query": {"nearest": [VECTOR] * n}}, confined),
    (
        QUERY,
        lambda n: {"prefetch": [{"query": {"recommend": {"positive": [VECTOR] * 20}}} for _ in range(n // 20)]},
        confined,
    ),
    (("POST", "points/recommend"), lambda n: {"positive": [VECTOR] * n}, confined),
    (("POST", "points/discover"), lambda n: {"context": [PAIR] * n}, confined),
    (BATCH, lambda n: {"searches": [{} for _ in range(n)]}, confined),
    (("POST", "points/search/batch"), lambda n: {"searches": [{"vector": VECTOR} for _ in range(n)]}, confined),
    (UPSERT, lambda n: {"points": [{"id": 1, "vector": [1]} for _ in range(n)]}, confined),
    (UPSERT, lambda n: {"batch": {"ids": [1] * n, "vectors": []}}, confined),
    (UPSERT, lambda n: {"points": [{"id": 1, "payload": {"parts": [{} for _ in range(n)]}}]}, confined),
    (("POST", "points"), lambda n: {"ids": [1] * n}, confined),
    (DELETION, lambda n: {"points": [1] * n}, confined),
    (("POST", "points/payload/delete"), lambda n: {"points": [1], "keys": ["n"] * n}, confined),
    (
        ("POST", "points/batch"),
        lambda n: {"operations": [{"delete": {"points": [1] * 20}} for _ in range(n // 20)]},
        confined,
    ),
    (QUERY, lambda n: {"query": [VECTOR] * n}, policed),
    (QUERY, lambda n: {"with_payload": ["abc.def"] * n}, policed),
    (QUERY, lambda n: {"with_payload": {"include": ["abc.def"] * n}}, policed),
    (QUERY, lambda n: {"prefetch": [{"limit": 1} for _ in range(n)]}, policed),
    (QUERY, lambda n: {"filter": {"must": [FIELD] * n}}, policed),
    (QUERY, lambda n: {"filter": {"should": [{"must": [FIELD] * 20}] * (n // 20)}}, policed),
    (QUERY, lambda n: {"query": {"formula": {"sum": ["abc"] * n}}}, policed),
    (QUERY, lambda n: {"query": {"formula": {"sum": [{"abs": 1}] * n}}}, policed),
    (QUERY, lambda n: {"query": {"formula": 1, "defaults": {str(one): 1 for one in range(n)}}}, policed),
    (BATCH, lambda n: {"searches": [{"limit": 1} for _ in range(n)]}, policed),
    (BATCH, lambda n: {"searches": [{"prefetch": [{"limit": 1} for _ in range(20)]} for _ in range(n // 20)]}, policed),
    (UPSERT, lambda n: {"points": [{"id": 1, "payload": {}} for _ in range(n)]}, policed),
    (UPSERT, lambda n: {"points": [{"payload": {"contact": [{}] * n}}]}, policed),
    (UPSERT, lambda n: {"batch": {"payloads": [{}] * n}}, policed),
    (("POST", "points/payload"), lambda n: {"payload": {str(one): 1 for one in range(n)}}, policed),
    (("POST", "points/payload/delete"), lambda n: {"keys": ["abc.def"] * n}, policed),
    (("POST", "points/batch"), lambda n: {"operations": [{"delete": {"points": [1]}} for _ in range(n)]}, policed),
    (QUERY, lambda n: {"prefetch": [{}] * n}, names),
    (BATCH, lambda n: {"searches": [{}] * n}, names),
    (BATCH, lambda n: {"searches": [{"prefetch": [{}] * 20}] * (n // 20)}, names),
    (("POST", "points/batch"), lambda n: {"operations": [{"delete": {}}] * n}, names),
    (("POST", "/aliases"), lambda n: {"actions": [{"delete_alias": {"alias_name": "a"}}] * n}, names),
]


def work(route: tuple[str, str], body: Any, stage: str) -> Steps[Any]:
    method, path = route
    asked = recognise(method, f"/collections{path}" if path.startswith("/") else f"/collections/docs/{path}")
    assert asked.operation is not None
    if stage == names:
        return body_names(asked.operation, body)
    if stage == confined:
        deep = "parts" in str(body)[:200]
        return confine(asked, body, DEEP_TENANT if deep else TENANT, FACTS)
    return reading_under(asked.operation, body, HIDING)


@rows(("route", "body", "stage"), LONG_BODIES)
def test_a_long_body_is_decided_in_steps(route: tuple[str, str], body: Callable[[int], Any], stage: str) -> None:
    try:
        longest, count = longest_run(work(route, body(LONG), stage))
    except RequestError as error:
        pytest.fail(f"refused: {error}")
    assert count >= 1
    assert longest < MOST_CALLS


def test_a_long_vector_is_looked_at_in_steps() -> None:
    assert sum(1 for _ in are_numbers([0.5] * 400_000, Pace())) >= 3
    assert at_once(are_numbers([0.5] * 200_000, Pace()))
    assert not at_once(are_numbers([*[0.5] * 200_000, "a"], Pace()))


def test_a_body_has_a_bounded_number_of_names() -> None:
    """Each is held against the rights of the caller, also when these change."""
    operation = recognise("POST", "/collections/docs/points/query").operation
    assert operation is not None
    prefetches = [{"lookup_from": {"collection": str(number)}} for number in range(MOST_NAMES)]
    assert len(at_once(body_names(operation, {"prefetch": prefetches})).read) == MOST_NAMES
    with pytest.raises(BadRequest, match="more than 1000 names of collections"):
        at_once(body_names(operation, {"prefetch": prefetches, "lookup_from": {"collection": "one more"}}))
