"""The collections that a query's body names, and the content codings that it comes in."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.errors import BadRequest, BodyTooLarge, CodingRefused
from tlsproxy.qdrant.operations import REST, Operation
from tlsproxy.qdrant.rest_collections import body_names
from tlsproxy.wire.content_coding import decoding
from tlsproxy.wire.cooperative import at_once

INSPECTED = [operation for operation in REST if operation.names_others]
SINGLE = [operation for operation in INSPECTED if not operation.path.endswith("/batch")]
BATCH = [operation for operation in INSPECTED if operation.path.endswith("/batch")]
QUERY = next(operation for operation in SINGLE if operation.path.endswith("/points/query"))


def at(name: str) -> dict[str, Any]:
    return {"collection": name, "vector": "v"}


BODIES: list[tuple[dict[str, Any], set[str]]] = [
    ({"query": [1.0], "limit": 3}, set()),
    ({"lookup_from": None, "with_lookup": None, "prefetch": None}, set()),
    ({"lookup_from": at("a")}, {"a"}),
    ({"with_lookup": "a"}, {"a"}),
    ({"with_lookup": at("a"), "lookup_from": at("b")}, {"a", "b"}),
    ({"init_from": {"collection": "a"}}, {"a"}),
    ({"prefetch": {"prefetch": {"lookup_from": at("a")}}}, {"a"}),
    ({"prefetch": [{}, {"lookup_from": at("a"), "prefetch": [{"lookup_from": at("b")}, {}]}]}, {"a", "b"}),
    # where Qdrant does not look, a name is somebody's data
    (
        {"filter": {"must": [{"key": "lookup_from", "match": {"value": "a"}}]}, "params": {"lookup_from": at("a")}},
        set(),
    ),
]


def test_which_operations_are_inspected() -> None:
    assert len(SINGLE) == 7
    assert len(BATCH) == 3


@rows("operation", SINGLE, ids=lambda operation: operation.path)
@rows(("body", "names"), BODIES)
def test_every_place(operation: Operation, body: dict[str, Any], names: set[str]) -> None:
    assert set(at_once(body_names(operation, body)).read) == names


@rows("operation", BATCH, ids=lambda operation: operation.path)
@rows(("body", "names"), BODIES)
def test_every_place_of_a_batch(operation: Operation, body: dict[str, Any], names: set[str]) -> None:
    assert set(at_once(body_names(operation, {"searches": [{}, body, {"with_lookup": "z"}]})).read) == names | {"z"}


@rows(
    "body",
    [
        [],
        "a",
        None,
        [None, None, None, None, None, None, None, ["other"]],
        {"lookup_from": "other"},
        {"lookup_from": ["other"]},
        {"lookup_from": {}},
        {"lookup_from": {"collection": ["other"]}},
        {"lookup_from": {"Collection": "other"}},
        {"with_lookup": ["other"]},
        {"with_lookup": {"collection": None}},
        {"with_lookup": 1},
        {"prefetch": "x"},
        {"prefetch": [None]},
        {"prefetch": [[]]},
        {"prefetch": {"prefetch": [{"lookup_from": ["other"]}]}},
    ],
)
def test_a_form_that_is_not_documented_is_refused(body: Any) -> None:
    with pytest.raises(BadRequest, match="Format error in JSON body: "):
        at_once(body_names(QUERY, body))
    with pytest.raises(BadRequest, match="Format error in JSON body: "):
        at_once(body_names(BATCH[0], {"searches": [body]}))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"lookup_from": "other"}, "lookup_from must be an object"),
        ({"lookup_from": {}}, "lookup_from.collection must be a string"),
        ({"with_lookup": 1}, "with_lookup must be an object"),
        ({"with_lookup": {"collection": 1}}, "with_lookup.collection must be a string"),
        ({"prefetch": "x"}, "prefetch must be an object"),
        ([], "the body must be an object"),
    ],
)
def test_a_refusal_names_the_place(body: Any, text: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        at_once(body_names(QUERY, body))
    assert str(refusal.value) == f"Format error in JSON body: {text}"


@pytest.mark.parametrize(
    "body", [{}, {"searches": None}, {"searches": {}}, {"searches": [[]]}, {"lookup_from": at("a")}]
)
def test_a_batch_is_a_list(body: Any) -> None:
    with pytest.raises(BadRequest):
        at_once(body_names(BATCH[0], body))


names = st.sampled_from(["a", "b", "c"])
queries: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.fixed_dictionaries({}, optional={"lookup_from": names.map(at), "with_lookup": names | names.map(at)}),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"lookup_from": names.map(at), "prefetch": inner | st.lists(inner, max_size=3)}
    ),
)


def everywhere(value: Any) -> set[str]:
    """The slow twin: every name in a place of that name, however deep."""
    if isinstance(value, list):
        return set().union(*map(everywhere, value))
    if not isinstance(value, dict):
        return set()
    found = {value["with_lookup"]} if isinstance(value.get("with_lookup"), str) else set()
    found |= {value["collection"]} if "collection" in value else set()
    return found.union(*map(everywhere, value.values()))


@pytest.mark.fuzz
@given(queries)
def test_no_name_is_overlooked(body: dict[str, Any]) -> None:
    assert set(at_once(body_names(QUERY, body)).read) == everywhere(body)
    assert set(at_once(body_names(BATCH[0], {"searches": [body, body]})).read) == everywhere(body)


TEXT = json.dumps({"query": [0.5] * 100}).encode()


@pytest.mark.parametrize(
    ("coding", "content"),
    [
        (None, TEXT),
        ("identity", TEXT),
        ("gzip", gzip.compress(TEXT, mtime=0)),
        ("GZip", gzip.compress(TEXT, mtime=0)),
        ("deflate", zlib.compress(TEXT)),
    ],
)
def test_codings_that_are_undone(coding: str | None, content: bytes) -> None:
    assert at_once(decoding(content, coding, len(TEXT))) == TEXT


@pytest.mark.parametrize("coding", ["br", "zstd", "x-gzip", "gzip, gzip", "gzip,identity", "compress", ""])
def test_codings_that_are_not(coding: str) -> None:
    if coding:
        with pytest.raises(CodingRefused):
            at_once(decoding(TEXT, coding, 1000))
    else:
        assert at_once(decoding(TEXT, coding, 1000)) == TEXT


@pytest.mark.parametrize(
    "content",
    [
        b"",
        TEXT,
        gzip.compress(TEXT, mtime=0)[:-1],
        gzip.compress(TEXT, mtime=0) + b"x",
        gzip.compress(b"{}", mtime=0) + gzip.compress(TEXT, mtime=0),
        gzip.compress(TEXT, mtime=0)[:-8] + b"\0" * 8,
        zlib.compress(TEXT),
    ],
)
def test_malformed_gzip(content: bytes) -> None:
    with pytest.raises(BadRequest, match="Malformed gzip body"):
        at_once(decoding(content, "gzip", 1000))


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    with pytest.raises(BodyTooLarge):
        at_once(decoding(bomb, "gzip", 1 << 20))
