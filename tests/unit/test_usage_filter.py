"""`usage` is cut out of an answer wherever it stands, and nothing else is changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.wire.usage_filter import REACH, UsageFilter

HARDWARE = {"cpu": 160, "payload_io_read": 130, "vector_io_read": 0}
USAGE: list[Any] = [
    None,
    {},
    {"hardware": HARDWARE, "inference": None},
    {"hardware": None, "inference": {"models": {'a "model" }': {"tokens": 3}, "usage": {"tokens": 1}}}},
]


def cut(body: bytes, *sizes: int) -> bytes:
    """Fed in pieces of these sizes, and then the rest."""
    without, out = UsageFilter(), b""
    for size in sizes:
        out += without.feed(body[:size])
        body = body[size:]
    return out + without.feed(body) + without.close()


tricky = st.sampled_from(
    [
        "usage",
        '"usage":{}',
        ',"usage":{"hardware":null}}',
        '\\"usage":1}',
        "}",
        "{",
        '"',
        "\\",
        "a, b: [c]",
        "x" * 200,
        "é\n",
    ]
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | tricky,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("usage") | tricky, inner, max_size=3),
    max_leaves=8,
)
results = values | st.builds(lambda value, count: {"points": [value] * count}, values, st.integers(0, 3000))


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    members = [("result", draw(results)), ("status", draw(st.just("ok") | tricky)), ("time", 1.5e-05)]
    members = draw(st.permutations(members[draw(st.integers(0, 2)) :]))
    whole = [*members]
    if draw(st.booleans()):
        whole.insert(draw(st.integers(0, len(members))), ("usage", draw(st.sampled_from(USAGE))))
    separators, indent = draw(st.sampled_from([((",", ":"), None), ((", ", ": "), None), ((" , ", " : "), 1)]))
    return dict(members), json.dumps(dict(whole), separators=separators, indent=indent).encode()


@pytest.mark.fuzz
@given(answers(), st.lists(st.integers(0, 3 * REACH), max_size=4))
def test_it_goes_and_all_else_stays(asked: tuple[dict[str, Any], bytes], sizes: list[int]) -> None:
    expected, body = asked
    assert json.loads(cut(body, *sizes)) == expected


@pytest.mark.fuzz
@given(answers())
def test_what_has_none_is_the_same_to_the_byte(asked: tuple[dict[str, Any], bytes]) -> None:
    expected, _ = asked
    body = json.dumps(expected, indent=1).encode()
    assert cut(body, 10, 100) == body


@rows("body", [b"", b"null", b"[]", b"{}", b"healthz check passed", b'"usage"', b'{"usage"', b"\xff"])
def test_what_is_no_such_answer_stays(body: bytes) -> None:
    assert cut(body) == body
    assert cut(body, *[1] * len(body)) == body


def test_little_is_kept_of_a_large_answer() -> None:
    points = [{"id": n, "score": n / 7, "payload": {"usage": {"hardware": HARDWARE}}} for n in range(20_000)]
    body = json.dumps({"result": points, "status": "ok", "time": 0.1, "usage": USAGE[2]}).encode()
    without, out = UsageFilter(), b""
    for begin in range(0, len(body), 50_000):
        out += without.feed(body[begin : begin + 50_000])
        assert begin + 50_000 - len(out) <= 2 * REACH + 50_000
    out += without.close()
    assert out == json.dumps({"result": points, "status": "ok", "time": 0.1}).encode()


@pytest.mark.fuzz
@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,usage \\1', max_size=200).map(str.encode))
def test_nothing_breaks_it(body: bytes) -> None:
    cut(body, 3)


def test_many_names_take_no_time() -> None:
    """What is tried is bounded by what is kept, whatever stands there (counted by the steps of the pattern: none)."""
    for text in (b'{"usage":' * 3000, b'[{"usage":1},' * 3000, b'"usage":{"usage":1},' * 3000, b',"usage"' * 3000):
        assert cut(b'{"result":' + text).endswith(text[-10:])
