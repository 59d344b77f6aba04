"""Routing, on a table of its own: literals before parameters, the other branch where one ends, tails last."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.errors import AmbiguousPath, BadRequest
from tlsproxy.qdrant.operations import MAX_NAME_BYTES, REST, Operation
from tlsproxy.qdrant.router import MEMO_TARGET, Recognised, Routes

SOME = next(row for row in REST if row.path == "/collections/{collection_name}")


def row(path: str, method: str = "GET") -> Operation:
    return replace(SOME, method=method, path=path)


ROWS = tuple(
    row(*one)
    for one in (
        ("/",),
        ("/a",),
        ("/a/{collection_name}",),
        ("/a/{collection_name}", "PUT"),
        ("/a/{collection_name}/b",),
        ("/a/{collection_name}/b/{id}",),
        ("/a/all/c",),
        ("/s/{id}",),
        ("/s/{id}/{collection_name}",),
        ("/t/{tail...}",),
        ("/t/own",),
        ("/u/{collection_name}/{tail...}",),
        ("/v/{collection_name}",),
        ("/v/{name}/c",),
        ("/f/{snapshot_name}",),
        ("/f/{name}/c",),
    )
)


@pytest.fixture
def routes() -> Routes:
    return Routes(ROWS)


@pytest.mark.parametrize(
    ("method", "target", "path", "collection"),
    [
        ("GET", "/", "/", None),
        ("GET", "/a", "/a", None),
        ("GET", "/a/docs", "/a/{collection_name}", "docs"),
        ("PUT", "/a/docs", "/a/{collection_name}", "docs"),
        ("GET", "/a/docs/b", "/a/{collection_name}/b", "docs"),
        ("GET", "/a/docs/b/7", "/a/{collection_name}/b/{id}", "docs"),
        ("GET", "/a/all/c", "/a/all/c", None),
        ("GET", "/a/all/b", "/a/{collection_name}/b", "all"),
        ("GET", "/a/all", "/a/{collection_name}", "all"),
        ("GET", "/s/7", "/s/{id}", None),
        ("GET", "/s/7/docs", "/s/{id}/{collection_name}", "docs"),
        ("GET", "/t", "/t/{tail...}", None),
        ("GET", "/t/x/y", "/t/{tail...}", None),
        ("GET", "/t/own", "/t/own", None),
        ("GET", "/t/own/x", "/t/{tail...}", None),
        ("GET", "/u/docs", "/u/{collection_name}/{tail...}", "docs"),
        ("GET", "/u/docs/x/y", "/u/{collection_name}/{tail...}", "docs"),
        ("GET", "/v/docs", "/v/{collection_name}", "docs"),
        ("GET", "/v/docs/c", "/v/{name}/c", "docs"),
    ],
)
def test_a_request_has_one_row(routes: Routes, method: str, target: str, path: str, collection: str | None) -> None:
    found = routes.recognise(method, target)
    assert found.operation is not None
    assert (found.operation.method, found.operation.path, found.collection) == (method, path, collection)


@pytest.mark.parametrize("target", ["/f/..%2Fx", "/f/..%2Fx/c", "/f/x%5C..", "/t/x/..%2Fy", "/u/docs/%2Fetc"])
def test_a_files_name_stays_in_its_directory(routes: Routes, target: str) -> None:
    with pytest.raises(AmbiguousPath) as refusal:
        routes.recognise("GET", target)
    assert str(refusal.value) == "A file's name leads out of its directory"
    assert routes.recognise("GET", "/f/x..y").operation is not None
    assert routes.recognise("GET", "/s/..%2Fx").operation is not None, "another name is no path"


def test_a_collections_name_is_as_long_as_qdrants(routes: Routes) -> None:
    assert routes.recognise("GET", "/a/" + "x" * MAX_NAME_BYTES).operation is not None
    with pytest.raises(BadRequest, match=r"^A collection name has at most 255 bytes$"):
        routes.recognise("GET", "/a/" + "%C3%A9" * 128)


@pytest.mark.parametrize(
    ("method", "target"),
    [("PUT", "/a"), ("POST", "/"), ("HEAD", "/a"), ("GET", "/b"), ("GET", "/a/docs/x"), ("GET", "/a/docs/b/7/8"),
     ("GET", "/s"), ("GET", "/u"), ("PUT", "/a/docs/b")],
)  # fmt: skip
def test_no_row_is_none(routes: Routes, method: str, target: str) -> None:
    found = routes.recognise(method, target)
    assert (found.operation, found.collection) == (None, None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["GET", "PUT"]),
            st.lists(st.sampled_from(["/a", "/docs", "/b", "/f", "/t", "//", "/%2e", "/..%2Fx", "?x"])).map("".join),
        ),
        max_size=5,
    )
)
def test_a_request_that_is_known_is_routed_the_same(requests: list[tuple[str, str]]) -> None:
    known = Routes(ROWS)
    for request in requests * 2:
        assert outcome(known, *request) == outcome(Routes(ROWS), *request)


def outcome(routes: Routes, method: str, target: str) -> Recognised | tuple[type, str]:
    try:
        return routes.recognise(method, target)
    except BadRequest as error:
        return type(error), str(error)


def test_neither_refused_nor_long_targets_are_remembered(routes: Routes) -> None:
    fits = "/t".ljust(MEMO_TARGET, "/")
    for target in (fits, fits + "/", "/a"):
        routes.recognise("GET", target)
    with pytest.raises(AmbiguousPath):
        routes.recognise("GET", "/f/..%2Fx")
    assert list(routes._known) == [("GET", fits), ("GET", "/a")]
