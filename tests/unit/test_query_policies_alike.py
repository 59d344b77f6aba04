"""A query policy means the same for a body of REST and for its message of gRPC: one refusal, or one request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from qdrant_client import models
from qdrant_client.conversions.conversion import RestToGrpc

from tlsproxy.authz.query_policy import HiddenKeys, QueryPolicy, hidden_keys
from tlsproxy.errors import BadRequest, PolicyRefused
from tlsproxy.qdrant.grpc_decision import message_under_policy, operation_of
from tlsproxy.qdrant.rest_query_policy import reading_under
from tlsproxy.qdrant.router import recognise
from tlsproxy.wire.cooperative import at_once

KEY = st.sampled_from(["n", "salary", "contact", "contact.email", "contact[].phone", "contact.phone", "a b", "a..b"])
VALUE = models.MatchValue(value=1)
leaf: st.SearchStrategy[Any] = st.one_of(
    st.builds(models.FieldCondition, key=KEY, match=st.just(VALUE)),
    st.builds(models.IsEmptyCondition, is_empty=st.builds(models.PayloadField, key=KEY)),
    st.builds(models.IsNullCondition, is_null=st.builds(models.PayloadField, key=KEY)),
    st.just(models.HasIdCondition(has_id=[1])),
)


def clauses(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[models.Filter]:
    some = st.none() | st.lists(inner, min_size=1, max_size=2)
    least = st.builds(models.MinShould, conditions=st.lists(inner, min_size=1, max_size=2), min_count=st.just(1))
    return st.builds(models.Filter, must=some, should=some, must_not=some, min_should=st.none() | least)


conditions = st.recursive(
    leaf,
    lambda inner: (
        clauses(inner)
        | st.builds(models.NestedCondition, nested=st.builds(models.Nested, key=KEY, filter=clauses(inner)))
    ),
    max_leaves=3,
)
number = st.sampled_from([1, 3, 5, 6, 50])
queries: st.SearchStrategy[Any] = st.one_of(
    st.just(models.NearestQuery(nearest=[0.5])),
    st.builds(
        models.NearestQuery,
        nearest=st.just([0.5]),
        mmr=st.builds(models.Mmr, diversity=st.just(0.5), candidates_limit=st.none() | number),
    ),
    st.builds(models.OrderByQuery, order_by=KEY),
    st.just(models.TextQuery(text="x")),
    st.builds(models.FormulaQuery, formula=st.builds(models.SumExpression, sum=st.lists(KEY | st.just("$score")))),
    st.builds(models.FormulaQuery, formula=leaf),
    st.just(models.FusionQuery(fusion=models.Fusion.RRF)),
)
params = st.builds(
    models.SearchParams,
    exact=st.booleans(),
    idf=st.none() | st.builds(models.IdfCorpusParams, corpus=clauses(leaf)),
)
common = {
    "query": st.none() | queries,
    "using": st.none() | st.sampled_from(["salary", "n"]),
    "filter": st.none() | clauses(conditions),
    "params": st.none() | params,
    "limit": st.none() | number,
}
prefetches = st.builds(models.Prefetch, **common, prefetch=st.none() | st.lists(st.builds(models.Prefetch), max_size=1))
asked_of_both = st.builds(
    models.QueryRequest,
    **common,
    prefetch=st.none() | st.lists(prefetches, max_size=2),
    offset=st.none() | number,
    with_vector=st.none() | st.booleans() | st.just(["v"]),
    with_payload=st.none()
    | st.booleans()
    | st.lists(KEY, max_size=2)
    | st.builds(models.PayloadSelectorExclude, exclude=st.lists(KEY, max_size=2)),
)
BOTH = st.builds(
    QueryPolicy,
    max_limit=st.none() | st.just(5),
    max_offset=st.none() | st.just(3),
    max_prefetch=st.none() | st.integers(0, 2),
    forbids_exact=st.booleans(),
    hides_vectors=st.booleans(),
    hidden=st.sampled_from([HiddenKeys(), hidden_keys([("salary",), ("contact", "email")])]),
)


@pytest.mark.fuzz
@settings(suppress_health_check=[HealthCheck.too_slow])  # the client's models are slow to make on a busy machine
@given(asked_of_both, BOTH)
def test_both_apis_say_the_same(request: models.QueryRequest, policy: QueryPolicy) -> None:
    body = json.loads(request.model_dump_json(exclude_none=True))
    message = RestToGrpc.convert_query_request(request, "docs")
    operation = recognise("POST", "/collections/docs/points/query").operation
    method = operation_of("/qdrant.Points/Query")
    assert operation is not None
    assert method is not None
    try:
        at_once(reading_under(operation, body, policy))
    except (PolicyRefused, BadRequest):
        with pytest.raises((PolicyRefused, BadRequest)):
            at_once(message_under_policy(method, message.SerializeToString(), policy))
    else:
        expected = RestToGrpc.convert_query_request(models.QueryRequest(**body), "docs")
        if policy.hides_vectors:
            expected.with_vectors.enable = False
        made = at_once(message_under_policy(method, message.SerializeToString(), policy))
        assert pb.QueryPoints.FromString(made) == expected
