"""A target has one reading, Qdrant's: each name in it is decoded exactly once, and the path upstream says it again."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.actix_paths import names_of
from support.rows import rows

from tlsproxy.errors import AmbiguousPath, BadRequest, Form
from tlsproxy.qdrant.router import recognise
from tlsproxy.wire.target import parse_target


@rows(
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
        ("/collections/a%2Fb", "/collections/a%2Fb", ("collections", "a/b")),
        ("/collections/a%2fb%2F", "/collections/a%2Fb%2F", ("collections", "a/b/")),
        ("/collections/a%2F..%2Fb", "/collections/a%2F..%2Fb", ("collections", "a/../b")),
        ("/collections/a%5Cb", "/collections/a%5Cb", ("collections", "a\\b")),
        ("/collections/%2561", "/collections/%2561", ("collections", "%61")),
        ("/collections/a%252Fb", "/collections/a%252Fb", ("collections", "a%2Fb")),
        ("/collections/100%25", "/collections/100%25", ("collections", "100%")),
        ("/collections/%25%32%46", "/collections/%252F", ("collections", "%2F")),
        ("/collections/a%0d%0a", "/collections/a%0D%0A", ("collections", "a\r\n")),
        ("/collections/%7F", "/collections/%7F", ("collections", "\x7f")),
        ("/a[].b|c^", "/a%5B%5D.b%7Cc%5E", ("a[].b|c^",)),
    ],
)
def test_the_canonical_form(target: str, path: str, segments: tuple[str, ...]) -> None:
    parsed = parse_target(target)
    assert (parsed.path, parsed.segments) == (path, segments)


@given(st.text("/a-_~9", max_size=12).map(lambda path: "/" + path))
def test_a_plain_path_is_merged_and_trimmed(path: str) -> None:
    parsed = parse_target(path)
    assert parsed.segments == tuple(segment for segment in path.split("/") if segment)
    assert parsed.path == "/" + "/".join(parsed.segments)


@rows(
    "target",
    [
        "*",
        "collections",
        "http://other/collections",
        "/collections/a\\b",
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
def test_the_malformed(target: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_target(target)
    assert refused.value.status == 400


@rows(
    "target",
    [
        "/collections/..",
        "/collections/./docs",
        "/%2e%2e/collections",
        "/collections/%2E",
        "/collections/%00",
        "/collections/a%00b",
        "/collections/%C0%AF",
        "/collections/%FF",
        "/collections/%ED%A0%80",
        "/collections/docs/snapshots/..%2Fother%2Fx.snapshot",
        "/collections/docs/snapshots/x%2F..%5Cy",
        "/collections/docs/snapshots/%2Fetc%2Fpasswd",
        "/collections/docs/shards/0/snapshots/%5C%5Chost",
        "/snapshots/a%2F.",
        "/dashboard/..%2Fcollections",
        "/dashboard/assets/%2Fetc",
    ],
)
def test_a_second_reading_is_refused(target: str) -> None:
    with pytest.raises(AmbiguousPath) as refused:
        recognise("GET", target)
    assert (refused.value.status, refused.value.form) == (404, Form.EMPTY)


def test_the_query_passes_as_it_is() -> None:
    parsed = parse_target("/collections/a?wait=true&x=%2F&y[]=1")
    assert str(parsed) == "/collections/a?wait=true&x=%2F&y[]=1"


names = st.text(
    st.one_of(st.sampled_from("%/ 25aFf.+[]"), st.characters(exclude_categories=["Cs"])), min_size=1
).filter(lambda name: name not in {".", ".."} and "\0" not in name and len(name.encode()) <= 255)
"""As people call collections, fields and vectors."""
raw_targets = st.text("/abc.%25eEfF0;+-_~", max_size=24).map(lambda path: "/" + path)


@pytest.mark.fuzz
@given(names, names, st.sampled_from(["", "!$&'()*,;=:@", "-._~"]))
@example("a%20b", "clip/v1", "")
@example("100%", "%2F", "")
def test_a_client_s_names_are_those_that_are_decided_on_and_those_that_qdrant_gets(
    name: str, field: str, safe: str
) -> None:
    request = recognise("DELETE", f"/collections/{quote(name, safe=safe)}/index/{quote(field, safe=safe)}?wait=true")
    assert request.operation is not None
    assert request.operation.name == "drop_payload_index"
    assert request.collection == name
    assert request.target.segments == ("collections", name, "index", field)
    assert names_of(str(request.target)) == ["collections", name, "index", field]


@pytest.mark.fuzz
@given(raw_targets)
def test_what_is_accepted_is_its_own_canonical_form_and_is_read_alike(target: str) -> None:
    try:
        parsed = parse_target(target)
    except BadRequest:
        return
    again = parse_target(parsed.path)
    assert (again.path, again.segments) == (parsed.path, parsed.segments)
    assert (
        list(parsed.segments) == [name for name in names_of(parsed.path) if name] == [*filter(None, names_of(target))]
    )
    assert not {"", ".", ".."} & set(parsed.segments)
