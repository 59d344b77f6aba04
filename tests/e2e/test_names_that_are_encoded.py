"""Names with `/`, `%` and spaces: one collection to a role, to Qdrant and in the audit log, over REST and gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.actix_paths import names_of
from support.gateway import Gateway
from support.qdrant_clients import EmbeddedUpstream, qdrant, qdrant_by_grpc
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream, plain

from tlsproxy.cli import main

GRANTED = ("clip/v1", "clip/100%", "100%", "a%20b", "a%2Fb", "all of it")
OTHERS = ("clip", "clip/v1/x", "clip%2Fv1", "100%25", "a b", "a/b")
ROLES = {
    "admin": {"access": "m"},
    "ingest": {
        "access": [{"collection": name, "access": "rw"} for name in ("clip/*", "100%", "a%20b", "a%2Fb", "?ll of it")]
    },
    "search": {
        "access": [{"collection": name, "access": "prw"} for name in ("clip/v1", "100%")],
        "filter": {"tenant": "a/b%20c"},
    },
}
SPACE = m.VectorParams(size=2, distance=m.Distance.DOT)


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Gateway]:
    with (
        EmbeddedUpstream() as embedded,
        Gateway(site.write_config(embedded.url, grpc=embedded.grpc_url, roles=ROLES)) as running,
        closing(qdrant(running, site.client("admin"))) as admin,
    ):
        for name in (name for name in (*GRANTED, *OTHERS) if "/" not in name):
            admin.create_collection(name, vectors_config=SPACE)
            admin.upsert(name, [m.PointStruct(id=1, vector=[1, 0], payload={"called": name, "tenant": "a/b%20c"})])
        yield running


def by_rest(gateway: Gateway, site: Site, client: str) -> QdrantClient:
    return qdrant(gateway, site.client(client))


def by_grpc(gateway: Gateway, site: Site, client: str) -> QdrantClient:
    return qdrant_by_grpc(QdrantClient, gateway, site, client)


def scrolled(client: QdrantClient, name: str) -> str:
    """The name that the collection's point says, or the refusal."""
    try:
        (point,), _ = client.scroll(name)
    except (UnexpectedResponse, grpc.RpcError) as refused:
        return str(refused)
    return str((point.payload or {})["called"])


@pytest.mark.parametrize("connect", [by_rest, by_grpc])
@pytest.mark.parametrize("client", ["ingest", "search"])
def test_a_name_is_the_same_everywhere(
    gateway: Gateway, site: Site, client: str, connect: Callable[..., QdrantClient]
) -> None:
    """Each collection has a point that says its name. Qdrant has none with a `/`, and says so."""
    granted = {"ingest": GRANTED, "search": ("clip/v1", "100%")}[client]
    with closing(connect(gateway, site, client)) as qdrant_client:
        for name in (*GRANTED, *OTHERS):
            found = scrolled(qdrant_client, name)
            if name not in granted:
                assert f"Access to collection {name} is required" in found
            else:
                assert found == name or ("/" in name and f"Collection `{name}` doesn" in found)
            record = gateway.audited(method="scroll")
            assert (record["collection"], record["result"]) == (name, "ok" if name in granted else "denied")
            if connect is by_rest:
                assert names_of(record["api"]) == ["collections", name, "points", "scroll"]
        if client == "ingest":
            listed = {one.name for one in qdrant_client.get_collections().collections}
            assert listed == {name for name in GRANTED if "/" not in name}


def test_an_alias(gateway: Gateway, site: Site) -> None:
    with closing(by_rest(gateway, site, "admin")) as admin, closing(by_rest(gateway, site, "ingest")) as ingest:
        for alias, name in (("clip/now %", "100%"), ("clip%2Fnow", "100%"), ("clip/other", "100%25")):
            create = m.CreateAlias(collection_name=name, alias_name=alias)
            admin.update_collection_aliases([m.CreateAliasOperation(create_alias=create)])
        assert [one.alias_name for one in ingest.get_collection_aliases("100%").aliases] == ["clip/now %"]
        assert [one.alias_name for one in ingest.get_aliases().aliases] == ["clip/now %"]
        assert ingest.count("clip/now %").count == 1
        with pytest.raises(UnexpectedResponse, match="403"):
            ingest.count("clip%2Fnow")


def test_explain_speaks_of_the_name(gateway: Gateway, site: Site) -> None:
    def explained(path: str) -> tuple[int, str]:
        done = CliRunner().invoke(
            main, ["explain", "--config", str(gateway.config), str(site.directory / "ingest.pem"), "GET", path]
        )
        return done.exit_code, done.output

    status, text = explained("/collections/clip%2Fv1")
    assert (status, "collection clip/v1\n" in text) == (0, True)
    status, text = explained("/collections/clip%2Fv1%0Ax")
    assert (status, "collection clip/v1\\nx\n" in text) == (0, True)
    status, text = explained("/collections/clip%252Fv1")
    assert (status, "collection clip%2Fv1\n" in text) == (1, True)
    status, text = explained("/collections/clip%2Fv1/..")
    assert (status, "404 The path has a dot segment, or NUL (ambiguous_path)" in text) == (1, True)


PARTS: dict[str, Callable[[QdrantClient, str], Any]] = {
    "index": lambda client, name: client.delete_payload_index("docs", name),
    "vectors": lambda client, name: client.http.collections_api.delete_vector_name("docs", name),
    "snapshots": lambda client, name: client.delete_snapshot("docs", name),
}


@pytest.mark.parametrize("part", PARTS)
def test_names_within_a_collection(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, part: str
) -> None:
    result = b"true" if part == "snapshots" else b'{"operation_id":1,"status":"completed"}'
    body = b'{"result":%b,"status":"ok","time":0}' % result
    shared_upstream.answer = plain(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    with closing(by_rest(shared_gateway, site, "ingest")) as client:
        for name in (*GRANTED, "a\\b", 'a["b/c"].d', "a//b", "~!*'()"):
            PARTS[part](client, name)
            _, target, _ = shared_upstream.requests[-1].line.split(" ")
            assert names_of(target) == ["collections", "docs", part, name]


def test_a_second_reading_is_no_name(site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    before = len(shared_upstream.requests)
    with Client(shared_gateway, site.client("admin")) as client:
        for path in (
            "/collections/%2E%2E",
            "/collections/a%00",
            "/collections/%FF",
            "/collections/docs/snapshots/..%2Fother%2Fx",
            "/collections/docs/snapshots/%2Fetc%2Fpasswd",
        ):
            response = client.ask("GET", path)
            assert (response.status, response.body) == (404, b"")
            assert shared_gateway.audited(api=path)["reason"] == "ambiguous_path"
    assert len(shared_upstream.requests) == before
