"""JSON bodies: one reading, or none."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.errors import BadRequest
from tlsproxy.wire import strict_json
from tlsproxy.wire.cooperative import at_once
from tlsproxy.wire.strict_json import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_STRINGS,
    MAX_VALUES,
    counting,
    memory_of,
    reading_json,
)


@rows(
    "text",
    [
        b"",
        b"{",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        '"é"'.encode("latin-1"),
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b"NaN",
        b"[Infinity]",
        b"1e999",
        b"[1,]",
        b"{'a':1}",
        b"{}{}",
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'[{"b":{"a":1,"a":{"c":2}}}]',
        b'{"a:":1,"a:":2,"b":":"}',
        b"18446744073709551616",
        b'{"id":-9223372036854775809}',
        b"[123456789012345678901234567890]",
        b"1" * 5000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'"' + b'\\"' * 1_000_000,
    ],
    ids=lambda text: repr(text[:24]),
)
def test_what_readers_may_differ_about_is_refused(text: bytes) -> None:
    with pytest.raises(BadRequest, match="Format error in JSON body: "):
        at_once(reading_json(text))


@pytest.mark.parametrize(
    "text",
    [
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[18446744073709551615,-9223372036854775808,0.00012345678901234567,1e-9999999999999999999999]",
        b'{"12345678901234567890123":"[[[[","a:b":{"a":1},"c":{"a":1}," ":"\\"a\\":1, \\\\"}',
        b' [ null , true , -0.0 , 1E5 , "\\ud83d\\ude00" ] \r\n',
    ],
)
def test_what_they_agree_about_is_read(text: bytes) -> None:
    assert repr(at_once(reading_json(text))) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"{}," * MAX_CONTAINERS + b"0]",
        b"[" + b"0," * (MAX_VALUES + 1) + b"0]",
        b"[" + b'"",' * MAX_STRINGS + b'""]',
        b"{" + b'"":0,' * MAX_STRINGS + b'"":0}',
    ],
    ids=lambda text: repr(text[:8]),
)
def test_what_would_take_too_much_memory_is_not_read(text: bytes) -> None:
    with pytest.raises(BadRequest, match="too many values"):
        at_once(reading_json(text))


def test_ten_megabytes_of_one_key() -> None:
    with pytest.raises(BadRequest, match="duplicate field"):
        at_once(reading_json(b"{" + b",".join([b'"lookup_from":null'] * 550_000) + b"}"))


@given(st.text('[{",:]a1', max_size=20), st.sampled_from([1, 20_000]))
def test_marks_are_counted_in_long_texts_too(text: str, times: int) -> None:
    body = bytearray((text * times).encode())
    assert at_once(counting(body)) == tuple(body.count(mark) for mark in b'[{",')


@pytest.mark.parametrize(
    ("text", "copies"),
    [(b"1", 1), (b'"a"', 2), (b'"\\n"', 2), (b'"\\u00e9"', 7), ('"é"'.encode(), 7), (b'"\\\\u"', 7)],
)
def test_memory_of_a_string_that_may_not_be_ascii(text: bytes, copies: int) -> None:
    assert memory_of(text, at_once(counting(text))) == copies * len(text) + 64 * text.count(b'"')


def slowly(text: bytes) -> Any:
    """The obvious reader. Raises ValueError for what it knows that another could read differently."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if any(count > 1 for count in Counter(key for key, _ in found).values()):
            raise ValueError("duplicate")
        return dict(found)

    def constant(name: str) -> None:
        raise ValueError(name)

    return json.loads(text.decode(), object_pairs_hook=pairs, parse_constant=constant)


keys = st.sampled_from(["a", "b", "\\u0061", "a:", '\\"', "\\\\", "é", "[", ""])
scalars = st.one_of(
    st.sampled_from(["null", "true", "NaN", "-0", "1e400", "0.1e1", "18446744073709551616", "9223372036854775808"]),
    st.integers(-(1 << 66), 1 << 66).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(max_size=6).map(json.dumps),
    keys.map('"{}"'.format),
)


def containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(keys, inner).map(lambda pair: f'"{pair[0]}":{pair[1]}')
    return st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]"),
        st.lists(pairs, max_size=4).map(lambda items: f"{{{','.join(items)}}}"),
    )


texts = st.recursive(scalars, containers, max_leaves=12).map(str.encode)


@pytest.mark.fuzz
@given(texts | st.binary(max_size=30))
@example(b'{"a":{"b":1},"a":{"c":1}}')
@example(b'{"a":1,"\\u0061":{"b":{}}}')
def test_what_is_read_is_what_the_obvious_reader_reads(text: bytes) -> None:
    try:
        value = at_once(reading_json(text))
    except BadRequest:
        return
    assert repr(value) == repr(slowly(text))


@pytest.mark.fuzz
@given(st.lists(texts, max_size=6).map(lambda pieces: b"[%b]" % b",".join(pieces)))
@example(b'["a\\"", "\\\\", "b\\\\\\"c", ""]')
def test_a_long_text_is_read_as_a_short_one(text: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "_SHORT", 0)
        patch.setattr(strict_json, "_WINDOW", 3)
        patch.setattr(strict_json, "_PIECE", 2)
        patch.setattr(
            strict_json, "_SOME_STRINGS", re.compile(strict_json._SOME_STRINGS.pattern.replace(b"5000", b"2"))
        )
        long = outcome(text)
    assert long == outcome(text)


def outcome(text: bytes) -> str:
    try:
        return repr(at_once(reading_json(text)))
    except BadRequest as refused:
        return f"refused: {refused}"


@pytest.mark.fuzz
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
        max_leaves=20,
    ),
    st.booleans(),
)
def test_every_ordinary_value_is_read(value: Any, ascii_only: bool) -> None:  # noqa: FBT001
    assert repr(at_once(reading_json(json.dumps(value, ensure_ascii=ascii_only).encode()))) == repr(value)
