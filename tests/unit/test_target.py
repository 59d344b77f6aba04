"""A target has one reading: decoding it once more, or normalising it, changes nothing."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.errors import BadRequest
from tlsproxy.wire.target import parse_target


@pytest.mark.parametrize(
    ("target", "path", "segments"),
    [
        ("/", "/", ()),
        ("/collections", "/collections", ("collections",)),
        ("/collections/", "/collections", ("collections",)),
        ("//collections///docs//", "/collections/docs", ("collections", "docs")),
        ("/collections/a%20b", "/collections/a%20b", ("collections", "a b")),
        ("/%63ollections", "/collections", ("collections",)),
        ("/collections/a+b", "/collections/a%2Bb", ("collections", "a+b")),
        ("/collections/%C3%A9", "/collections/%C3%A9", ("collections", "é")),
        ("/collections/a.b", "/collections/a.b", ("collections", "a.b")),
        ("/collections/...", "/collections/...", ("collections", "...")),
        ("/collections/a;b=1", "/collections/a%3Bb%3D1", ("collections", "a;b=1")),
    ],
)
def test_the_canonical_form(target: str, path: str, segments: tuple[str, ...]) -> None:
    parsed = parse_target(target)
    assert (parsed.path, parsed.segments) == (path, segments)


@pytest.mark.parametrize(
    "target",
    [
        "*",
        "collections",
        "http://other/collections",
        "/collections/..",
        "/collections/./docs",
        "/%2e%2e/collections",
        "/collections/%2E",
        "/collections/a%2Fb",
        "/collections/a%2fb",
        "/collections/a%5Cb",
        "/collections/a\\b",
        "/collections/%2561",
        "/collections/%25",
        "/collections/%00",
        "/collections/a%0d%0a",
        "/collections/%7F",
        "/collections/%C0%AF",
        "/collections/%FF",
        "/collections/%zz",
        "/collections/%4",
        "/collections/a#b",
        '/collections/"a"',
        "/collections/<a>",
        "/collections/a?x=#",
        "/collections/a?x=%zz",
        "/collections/" + "a" * 1025 + "%20",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(target: str) -> None:
    with pytest.raises(BadRequest):
        parse_target(target)


def test_the_query_passes_as_it_is() -> None:
    parsed = parse_target("/collections/a?wait=true&x=%2F&y[]=1")
    assert str(parsed) == "/collections/a?wait=true&x=%2F&y[]=1"


segment = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
raw_targets = st.text("/abc.%25eEfF0;+-_~", max_size=24).map(lambda path: "/" + path)


@pytest.mark.fuzz
@given(raw_targets)
def test_what_is_accepted_is_its_own_canonical_form_and_decodes_only_once(target: str) -> None:
    try:
        parsed = parse_target(target)
    except BadRequest:
        return
    again = parse_target(parsed.path)
    assert again == parsed or (again.path, again.segments) == (parsed.path, parsed.segments)
    for decoded in parsed.segments:
        assert decoded not in {"", ".", ".."}
        assert "/" not in decoded
        assert unquote(decoded) == decoded  # a second decoding finds nothing
    assert "/".join(unquote(part) for part in parsed.path.split("/")) == "/" + "/".join(parsed.segments)
