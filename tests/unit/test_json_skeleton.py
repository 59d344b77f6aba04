"""What is left out of a body before it is read changes nothing of what can be found in it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.rest_collections import body_names
from tlsproxy.qdrant.router import recognise
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.json_skeleton import LONG, MOST, long_arrays, marked, template_of, without
from tlsproxy.wire.strict_json import reading_json

_numbers = st.lists(st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.none() | st.booleans())
_texts = st.text(st.sampled_from('ab[]{}",:\\1 é'), max_size=12)
_values: st.SearchStrategy[Any] = st.recursive(
    _texts | _numbers | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
)
_spaces = st.sampled_from([(",", ":"), (" , ", " : "), (",\n\t", ":\r\n")])
QUERY = recognise("POST", "/collections/docs/points/query").operation


def outline(text: Content, long: int = LONG, most: int = MOST) -> Content:
    return without(text, long_arrays(text, long, most))


def emptied(value: Any) -> Any:
    """The obvious twin, on the value: each array of scalars alone is empty."""
    if isinstance(value, dict):
        return {name: emptied(inner) for name, inner in value.items()}
    if not isinstance(value, list):
        return value
    return [emptied(inner) for inner in value] if any(isinstance(one, str | list | dict) for one in value) else []


@given(_values, _spaces, st.booleans())
def test_arrays_of_scalars_are_empty_and_nothing_else_is_changed(
    value: Any,
    spaces: tuple[str, str],
    ascii_: bool,  # noqa: FBT001
) -> None:
    text = json.dumps(value, separators=spaces, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
    assert json.loads(outline(text, long=0, most=10_000)) == emptied(value)


@given(_values, st.integers(0, 40), st.integers(0, 8))
def test_a_look_that_ends_early_leaves_the_rest_as_it_is(value: Any, long: int, most: int) -> None:
    assert emptied(json.loads(outline(json.dumps(value).encode(), long, most))) == emptied(value)


@pytest.mark.parametrize(
    "body",
    [
        b'{"query":[%b],"lookup_from":{"collection":"a[%b]"}}',
        b'{"lookup_from":{"collection":"a\\"[%b]"},"query":[%b]}',
        b'{"prefetch":[{"query":[%b]},{"lookup_from":{"collection":"other"},"query":[%b]}]}',
        b'{"q":"[","query":[%b],"x":"]","with_lookup":"[%b]"}',
    ],
)
def test_names_are_found_as_in_the_whole_text(body: bytes) -> None:
    assert QUERY is not None
    numbers = b",".join([b"0.25"] * LONG)
    text = body.replace(b"%b", numbers)
    shown = outline(text)
    assert len(shown) < len(text)
    found = at_once(body_names(QUERY, at_once(reading_json(shown))))
    assert found == at_once(body_names(QUERY, at_once(reading_json(text))))
    assert found


def test_a_string_without_an_end_is_not_waited_for() -> None:
    text = b'{"a":"' + b"[" * 100_000
    assert outline(text) == text
    with pytest.raises(BadRequest):
        at_once(reading_json(outline(text)))


def test_many_brackets_are_not_looked_at_one_by_one() -> None:
    text = b"[" * 1_000_000
    assert outline(text) == text


@given(_values, _spaces)
def test_marked_parts_are_put_back(value: Any, spaces: tuple[str, str]) -> None:
    text = json.dumps(value, separators=spaces).encode()
    parts = long_arrays(text, 0)
    stands_in = marked(text, parts)
    assert emptied(json.loads(stands_in)) == emptied(value)
    assert template_of(bytes(stands_in), len(parts)).filled(text, parts) == text
    if parts:
        with pytest.raises(ValueError, match="one mark"):
            template_of(bytes(stands_in) * 2, len(parts))
        with pytest.raises(ValueError, match="one mark"):
            template_of(text, len(parts))


def test_marked_parts_may_change_places() -> None:
    text = b'{"a":[1, 2],"b":[3,4 ],"c":[]}'
    parts = long_arrays(text, 0)
    of_a, of_b, of_c = re.findall(rb"-\d+", marked(text, parts))
    assert template_of(b"[%b][%b][%b]" % (of_b, of_c, of_a), len(parts)).filled(text, parts) == b"[3,4 ][][1, 2]"
