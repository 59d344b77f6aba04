"""Random calls of random tenants, rewritten as the gateway does it, against an upstream in memory: as over REST."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import assume, event, given
from hypothesis import strategies as st
from qdrant_client import grpc as pb
from qdrant_client import models as m
from qdrant_client.conversions.conversion import GrpcToRest
from support import qdrant_messages as qdrant
from support.qdrant_messages import ids_in
from support.tenancy_messages import Refused, call, called
from support.tenancy_oracle import is_changeable, is_owned, is_readable
from support.tenancy_requests import CHANGES, READS, Points, Request, Upstream, confinements, of_own, points, unmarked

from tlsproxy.authz.access import Confinements
from tlsproxy.errors import RequestError
from tlsproxy.qdrant import tenant_filters
from tlsproxy.qdrant.answer_statistics import AnswerReducer
from tlsproxy.qdrant.grpc_conditions import narrowed
from tlsproxy.qdrant.grpc_decision import confine_message, operation_of
from tlsproxy.qdrant.grpc_tenancy import method_of_confined, reshaping_of
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.qdrant.tenant_examples import refusal_in
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.grpc import message as framed

FACTS = Facts((1, 20), frozenset(), frozenset())
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


def asked(upstream: Upstream, method: str, message: Any, confined: Confinements) -> Any:
    """The tenant's answer. Raises :class:`Refused`."""
    operation = operation_of(f"/qdrant.Points/{method}")
    assert operation is not None
    try:
        made = at_once(confine_message(operation, "docs", message.SerializeToString(), confined, FACTS))
    except RequestError as error:
        raise Refused(error.status, str(error)) from None
    for question in made.questions:
        found = upstream.ask("POST", "points/query/batch", orjson.loads(question.body))
        refusal = refusal_in(orjson.dumps({"result": found.result}), question)
        if refusal is not None:
            raise Refused(refusal.status, refusal.text)
    path = method_of_confined(operation)
    sent = qdrant.parse(qdrant.REQUESTS[path], made.content)
    answer = call(upstream, path.rpartition("/")[2], sent).SerializeToString()
    reshaping = reshaping_of(operation, framed(made.content))
    if reshaping is not None:
        answer = at_once(reshaping.reducing(answer))
    return qdrant.parse(qdrant.RESPONSES[operation.path], at_once(AnswerReducer(operation).reducing(answer)))


@pytest.mark.fuzz
@given(points, confinements, READS)
def test_a_read_is_of_the_tenants_points_alone(found: Points, confined: Confinements, request: Request) -> None:
    over_grpc = called(request)
    assume(over_grpc is not None)
    assert over_grpc is not None
    own = {one: each for one, each in found.items() if is_readable(each, confined)}
    answer, expected = outcome(asked, Upstream(found), *over_grpc, confined), outcome(call, Upstream(own), *over_grpc)
    if isinstance(answer, str):
        event(f"{over_grpc[0]} {answer[:3]}")
        missing = [int(one) for one in re.findall(r"id ([0-9]+) found", answer)]
        assert not set(missing) & own.keys()
        if isinstance(expected, str) and expected.startswith("404"):
            assert re.sub("[0-9]+", "N", expected) == re.sub("[0-9]+", "N", answer)
        else:  # its form is wrong, too
            assert isinstance(expected, str)
    elif isinstance(expected, str):  # the local mode has no discovery without points
        assert (own, ids_in(answer)) == ({}, [])
    else:
        event(f"{over_grpc[0]} OK")
        assert in_any_order(MessageToDict(answer)) == in_any_order(MessageToDict(expected))


def outcome(ask: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or the refusal as a text."""
    try:
        return ask(*arguments)
    except Refused as refused:
        return f"{refused.status} {refused}"


def in_any_order(value: Any) -> Any:
    """Equal scores and counts come in any order, and a matrix is a sample."""
    if isinstance(value, dict) and value.keys() >= {"a", "b"}:
        return sorted((value["a"]["num"], value["b"]["num"])), in_any_order(value.get("score"))
    if isinstance(value, dict):
        return {name: in_any_order(one) for name, one in value.items()}
    if isinstance(value, list):
        return sorted(map(in_any_order, value), key=repr)
    return round(value, 3) if isinstance(value, float) else value


@pytest.mark.fuzz
@given(points, confinements, CHANGES)
def test_a_change_is_of_the_tenants_points_alone(found: Points, confined: Confinements, request: Request) -> None:
    over_grpc = called(request)
    assume(over_grpc is not None)
    assert over_grpc is not None
    own = {one: each for one, each in found.items() if is_changeable(each, confined)}
    shared = Upstream(found)
    before = shared.points()
    answer = outcome(asked, shared, *over_grpc, confined)
    event(f"{over_grpc[0]} {answer[:3] if isinstance(answer, str) else 'OK'}")
    after = shared.points()
    others = {one: point for one, point in before.items() if one not in own}
    assert {one: after.get(one) for one in others} == others
    if isinstance(answer, str):
        assert answer[:3] in {"400", "403"}
        assert after == before
        return
    assert all(is_owned(point.get("payload"), confined) for one, point in after.items() if one not in others)
    alone = Upstream(own)
    assert alone.ask(request.method, request.path, of_own(request.body)).status == 200
    left = {one: point for one, point in alone.points().items() if one not in others}
    assert unmarked({one: point for one, point in after.items() if one not in others}) == unmarked(left)


@given(confinements, st.booleans())
def test_both_apis_have_one_filter(confined: Confinements, alone: bool) -> None:  # noqa: FBT001
    """As the client's own conversion reads it: numbers of fields are those of the descriptors."""
    written = GrpcToRest.convert_filter(pb.Filter.FromString(narrowed(b"", confined, alone=alone)))
    expected = m.Filter(**tenant_filters.narrowed(None, confined, alone=alone))
    assert without_empty(written.model_dump(exclude_none=True)) == without_empty(expected.model_dump(exclude_none=True))


def without_empty(value: Any) -> Any:
    """An empty list of conditions is none: the client's conversions have either."""
    if isinstance(value, dict):
        return {name: without_empty(one) for name, one in value.items() if one != []}
    return [without_empty(one) for one in value] if isinstance(value, list) else (type(value), value)
