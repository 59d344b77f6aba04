from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.authz.globs import LONGEST, glob_error, glob_matches, literal_beginning, literal_ending

PIECES = st.sampled_from(["*", "**", "?", "a", "b", ".", "/", "-", "[", "\\", "\n"])


def obvious(pattern: str, value: str) -> bool:
    pieces = re.findall(r"\*\*|\*|\?|.", pattern, re.DOTALL)
    spelled = {"**": "(?s:.*)", "*": "[^/.]*", "?": "[^/.]"}
    return re.fullmatch("".join(spelled.get(piece, re.escape(piece)) for piece in pieces), value) is not None


@rows(
    ("pattern", "value", "expected"),
    [
        ("docs", "docs", True),
        ("docs", "Docs", False),
        ("*", "docs", True),
        ("*", "", True),
        ("*", "docs.v2", False),
        ("**", "docs.v2", True),
        ("ingest-*", "ingest-1", True),
        ("ingest-*", "xingest-1", False),
        ("ingest-*", "ingest-1.evil", False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "a.b.example.org", False),
        ("spiffe://example.org/search/*", "spiffe://example.org/search/a", True),
        ("spiffe://example.org/search/*", "spiffe://example.org/search/a/b", False),
        ("spiffe://example.org/search/*", "spiffe://example.org.evil/search/a", False),
        ("spiffe://example.org/**", "spiffe://example.org/search/a/b", True),
        ("spiffe://example.org/**", "spiffe://example.orgevil/x", False),
        ("a?c", "abc", True),
        ("a?c", "a.c", False),
        ("a?c", "ac", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("a.c", "abc", False),
        ("**a*b", "a.ab", True),
        ("a*", "a\n", True),
        ("a", "a\n", False),
    ],
)
def test_pattern(pattern: str, value: str, *, expected: bool) -> None:
    assert glob_matches(pattern, value) is expected


@given(st.lists(PIECES, max_size=8).map("".join), st.text(alphabet="ab./-[\\\n", max_size=12))
def test_a_value_that_matches_begins_and_ends_as_the_pattern_does(pattern: str, value: str) -> None:
    if glob_matches(pattern, value):
        assert value.startswith(literal_beginning(pattern))
        assert value.endswith(literal_ending(pattern))


@given(st.lists(PIECES, max_size=8).map("".join), st.text(alphabet="ab./-[\\\n", max_size=12))
def test_equals_the_obvious_regex(pattern: str, value: str) -> None:
    assert glob_matches(pattern, value) is obvious(pattern, value)


@given(st.text(alphabet="ab./-*?", max_size=30))
def test_double_star_matches_everything(value: str) -> None:
    assert glob_matches("**", value)


def test_hostile_value_costs_linear_time() -> None:
    began = time.perf_counter()
    assert not glob_matches("*-" * 100 + "x", "-" * 20_000)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "an empty pattern matches nothing"),
        ("a" * (LONGEST + 1), f"longer than {LONGEST} characters"),
        ("a\x00", "holds a control character"),
        ("a***", "'***' is neither '*' (stops at separators) nor '**' (does not)"),
    ],
)
def test_refused_pattern(pattern: str, says: str) -> None:
    assert glob_error(pattern) == says


@pytest.mark.parametrize(("pattern", "ending"), [("a*bcd", "bcd"), ("*.b?cd", "cd"), ("abc", "abc"), ("ab*", "")])
def test_the_ending_is_all_that_is_behind_the_last_wildcard(pattern: str, ending: str) -> None:
    assert literal_ending(pattern) == ending


def test_the_longest_pattern_is_accepted() -> None:
    assert glob_error("a" * LONGEST) is None


@pytest.mark.parametrize("pattern", ["*", "**", "a*b**c?", "docs.v2", "[ab]", "ünï"])
def test_accepted_pattern(pattern: str) -> None:
    assert glob_error(pattern) is None
