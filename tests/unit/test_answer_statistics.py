"""Every field of every answer to a tenant has a row in the table of statistics."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from qdrant_client.grpc import points_service_pb2
from qdrant_client.http import models
from qdrant_client.http.api import points_api, search_api
from support import qdrant_messages as qdrant
from support.rows import rows

from tlsproxy.qdrant.answer_statistics import ENVELOPE, FIELDS, MESSAGES, STEP, AnswerReducer, Population
from tlsproxy.qdrant.grpc_decision import operation_of
from tlsproxy.qdrant.grpc_tenancy import CONFINED
from tlsproxy.qdrant.operations import REST
from tlsproxy.qdrant.rest_tenancy import is_confinable
from tlsproxy.wire.cooperative import at_once

_BUILT = re.compile(r'type_=m\.(\w+),\s*method="(\w+)",\s*url="([^"]+)"')
ANSWERS: dict[tuple[str, str], type[BaseModel]] = {
    (method, path): getattr(models, name)
    for module in (points_api, search_api)
    for name, method, path in _BUILT.findall(inspect.getsource(module))
}
GONE = {
    f"/collections/{{collection_name}}/points/{kind}{path}"
    for kind in ("search", "recommend", "discover")
    for path in ("", "/batch", "/groups")
}
"""Routes of Qdrant that its client no longer has. They answer as those of `query` did, before there were prefetches."""
OUTPUTS: dict[str, Descriptor] = {
    f"/qdrant.Points/{method.name}": method.output_type
    for method in points_service_pb2.DESCRIPTOR.services_by_name["Points"].methods
}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in typing.get_args(annotation):
        yield from models_in(one)


def below(model: type[BaseModel], fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each field of a model, and of those that stand within it and are looked into."""
    for name, over in fields.items():
        assert name in model.model_fields, (model, name)
        if over is not Population.WITHIN:
            continue
        for inner in models_in(model.model_fields[name].annotation):
            rows = FIELDS[inner.__name__]
            yield from ((inner.__name__, field) for field in inner.model_fields)
            yield from below(inner, {field: rows[field] for field in inner.model_fields if field in rows})


@rows("row", [row for row in REST if is_confinable(row)], ids=lambda row: f"{row.method} {row.path}")
def test_every_field_of_an_answer_has_a_row(row: Any) -> None:
    model = ANSWERS.get((row.method, row.path))
    if model is None:
        assert row.path in GONE
        return
    assert set(model.model_fields) == set(ENVELOPE)
    found = set(below(model, dict(ENVELOPE)))
    assert {(name, field) for name, field in found if field not in FIELDS[name]} == set()


def messages_below(
    descriptor: Descriptor, rows: dict[int, Population] | None
) -> Iterator[tuple[str, str, Population | None]]:
    for field in descriptor.fields:
        over = rows.get(field.number) if rows is not None else FIELDS[descriptor.name].get(field.name)
        yield descriptor.name, field.name, over
        if over is Population.WITHIN:
            yield from messages_below(field.message_type, None)


@rows("path", sorted(CONFINED))
def test_every_field_of_a_message_has_a_row(path: str) -> None:
    found = list(messages_below(OUTPUTS[path], dict(MESSAGES[path])))
    assert [(name, field) for name, field, over in found if over is None] == []
    removed = {field for _, field, over in found if over is Population.REMOVED}
    times = {field for _, field, over in found if over is Population.TIME}
    assert (removed, times) == ({"usage"}, {"time"})
    assert max(MESSAGES[path]) == len(OUTPUTS[path].fields)


def test_no_row_is_unused() -> None:
    assert set(MESSAGES) == set(CONFINED)
    models_of = [ANSWERS.get((row.method, row.path)) for row in REST if is_confinable(row)]
    rest = {name for model in models_of if model is not None for name, _ in below(model, dict(ENVELOPE))}
    grpc = {name for path in CONFINED for name, _, _ in messages_below(OUTPUTS[path], dict(MESSAGES[path]))}
    assert set(FIELDS) <= rest | grpc


@pytest.mark.fuzz
@given(st.data())
def test_what_is_removed_is_all_that_is(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(CONFINED)))
    operation = operation_of(path)
    assert operation is not None
    answer = data.draw(
        qdrant.messages(OUTPUTS[path], frozenset({"result", "usage", "hardware", "score", "time", "hits"}))
    )
    shown = qdrant.parse(OUTPUTS[path], at_once(AnswerReducer(operation).reducing(answer.SerializeToString())))
    answer.ClearField("usage")
    assert shown == answer


def test_a_long_answer_is_reduced_in_steps() -> None:
    operation = operation_of("/qdrant.Points/Query")
    assert operation is not None
    assert list(AnswerReducer(operation).reducing(b"\x0a\x00" * 3 * STEP)) == [None] * 3


def test_what_a_newer_qdrant_says_is_left_out() -> None:
    operation = operation_of("/qdrant.Points/Count")
    assert operation is not None
    assert at_once(AnswerReducer(operation).reducing(b"\x0a\x02\x08\x03\x22\x01x\x28\x01")) == b"\x0a\x02\x08\x03"
    with pytest.raises(ValueError, match="within a field"):
        at_once(AnswerReducer(operation).reducing(b"\x0a\x05"))
