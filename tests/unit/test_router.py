"""Routing, on a table of its own: literals before parameters, the other branch where one ends, tails last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tlsproxy.errors import AmbiguousPath, BadRequest
from tlsproxy.qdrant import router
from tlsproxy.qdrant.operations import MAX_NAME_BYTES, REST, Operation

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


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "_ROUTES", router._routes(ROWS))


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
def test_a_request_has_one_row(method: str, target: str, path: str, collection: str | None) -> None:
    found = router.recognise(method, target)
    assert found.operation is not None
    assert (found.operation.method, found.operation.path, found.collection) == (method, path, collection)


@pytest.mark.parametrize("target", ["/f/..%2Fx", "/f/..%2Fx/c", "/f/x%5C..", "/t/x/..%2Fy", "/u/docs/%2Fetc"])
def test_a_files_name_stays_in_its_directory(target: str) -> None:
    with pytest.raises(AmbiguousPath) as refusal:
        router.recognise("GET", target)
    assert str(refusal.value) == "A file's name leads out of its directory"
    assert router.recognise("GET", "/f/x..y").operation is not None
    assert router.recognise("GET", "/s/..%2Fx").operation is not None, "another name is no path"


def test_a_collections_name_is_as_long_as_qdrants() -> None:
    assert router.recognise("GET", "/a/" + "x" * MAX_NAME_BYTES).operation is not None
    with pytest.raises(BadRequest, match=r"^A collection name has at most 255 bytes$"):
        router.recognise("GET", "/a/" + "%C3%A9" * 128)


@pytest.mark.parametrize(
    ("method", "target"),
    [("PUT", "/a"), ("POST", "/"), ("HEAD", "/a"), ("GET", "/b"), ("GET", "/a/docs/x"), ("GET", "/a/docs/b/7/8"),
     ("GET", "/s"), ("GET", "/u"), ("PUT", "/a/docs/b")],
)  # fmt: skip
def test_no_row_is_none(method: str, target: str) -> None:
    found = router.recognise(method, target)
    assert (found.operation, found.collection) == (None, None)
