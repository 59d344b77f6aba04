"""What each role may and may not do, with the real client, over the embedded Qdrant."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.gateway import Gateway
from support.operator_tools import curl
from support.qdrant_clients import EmbeddedUpstream, qdrant
from support.site import Site

VECTORS = m.VectorParams(size=2, distance=m.Distance.DOT)
POINTS = [m.PointStruct(id=1, vector=[1.0, 0.0], payload={"group": "a"}), m.PointStruct(id=2, vector=[0.0, 1.0])]
Use = Callable[[QdrantClient], object]


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedUpstream]:
    with EmbeddedUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, embedded: EmbeddedUpstream) -> Iterator[Gateway]:
    """In front of an upstream where the admin has made ``docs`` and ``other``."""
    with Gateway(site.write_config(embedded.url)) as running:
        client = qdrant(running, site.client("admin"))
        for collection in ("docs", "other"):
            assert client.create_collection(collection, vectors_config=VECTORS)
            client.upsert(collection, POINTS)
        client.close()
        yield running


@pytest.fixture
def client(request: pytest.FixtureRequest, site: Site, gateway: Gateway) -> Iterator[QdrantClient]:
    client = qdrant(gateway, site.client(request.param))
    yield client
    client.close()


def refused(client: QdrantClient, use: Use) -> str:
    with pytest.raises(UnexpectedResponse) as caught:
        use(client)
    assert caught.value.status_code == 403
    return str(caught.value.structured()["status"]["error"])


READS: dict[str, Use] = {
    "get": lambda client: client.get_collection("docs"),
    "exists": lambda client: client.collection_exists("docs"),
    "count": lambda client: client.count("docs"),
    "retrieve": lambda client: client.retrieve("docs", [1]),
    "scroll": lambda client: client.scroll("docs", limit=1),
}
QUERIES: dict[str, Use] = {
    "query": lambda client: client.query_points("docs", query=[1.0, 0.0], limit=1),
    "query_batch": lambda client: client.query_batch_points("docs", [m.QueryRequest(query=[1.0, 0.0])]),
    "groups": lambda client: client.query_points_groups("docs", "group", query=[1.0, 0.0]),
    "lookup": lambda client: client.query_points(
        "docs", query=1, lookup_from=m.LookupLocation(collection="other"), limit=1
    ),
}
WRITES: dict[str, Use] = {
    "upsert": lambda client: client.upsert("docs", POINTS),
    "delete": lambda client: client.delete("docs", [2]),
    "set_payload": lambda client: client.set_payload("docs", {"group": "b"}, [1]),
    "clear_payload": lambda client: client.clear_payload("docs", [1]),
    "update_vectors": lambda client: client.update_vectors("docs", [m.PointVectors(id=1, vector=[0.5, 0.5])]),
    "batch": lambda client: client.batch_update_points(
        "docs",
        [m.UpsertOperation(upsert=m.PointsList(points=POINTS)), m.DeleteOperation(delete=m.PointIdsList(points=[2]))],
    ),
    "create_index": lambda client: client.create_payload_index("docs", "group", m.PayloadSchemaType.KEYWORD),
    "delete_index": lambda client: client.delete_payload_index("docs", "group"),
}
MANAGES: dict[str, Use] = {
    "create": lambda client: client.create_collection("fresh", vectors_config=VECTORS),
    "aliases": lambda client: client.update_collection_aliases(
        [m.CreateAliasOperation(create_alias=m.CreateAlias(collection_name="fresh", alias_name="again"))]
    ),
    "update": lambda client: client.update_collection("fresh", optimizers_config=m.OptimizersConfigDiff()),
    "drop": lambda client: client.delete_collection("fresh"),
}
LISTINGS: dict[str, Use] = {
    "collections": lambda client: client.get_collections(),
    "aliases": lambda client: client.get_aliases(),
    "collection_aliases": lambda client: client.get_collection_aliases("docs"),
}


@pytest.mark.parametrize("client", ["admin"], indirect=True)
def test_admin_may_do_everything(client: QdrantClient) -> None:
    for uses in (READS, QUERIES, WRITES, MANAGES, LISTINGS):
        for use in uses.values():
            use(client)
    assert {one.name for one in client.get_collections().collections} == {"docs", "other"}
    client.upsert("docs", POINTS)


@pytest.mark.parametrize("client", ["search"], indirect=True)
class TestSearch:
    @pytest.mark.parametrize("use", (READS | QUERIES | LISTINGS).items(), ids=lambda item: item[0])
    def test_reads_everything(self, client: QdrantClient, use: tuple[str, Use]) -> None:
        use[1](client)

    @pytest.mark.parametrize("use", (WRITES | MANAGES).items(), ids=lambda item: item[0])
    def test_writes_nothing(self, client: QdrantClient, use: tuple[str, Use]) -> None:
        assert refused(client, use[1]) == "Forbidden: Global manage access is required"
        assert client.count("docs").count == 2


@pytest.mark.parametrize("client", ["ingest"], indirect=True)
class TestIngest:
    @pytest.mark.parametrize("use", (READS | WRITES).items(), ids=lambda item: item[0])
    def test_reads_and_writes_its_collection(self, client: QdrantClient, use: tuple[str, Use]) -> None:
        client.upsert("docs", POINTS)
        use[1](client)
        client.upsert("docs", POINTS)

    @pytest.mark.parametrize("use", (QUERIES | LISTINGS).items(), ids=lambda item: item[0])
    def test_queries_and_lists_its_collection_only(self, client: QdrantClient, use: tuple[str, Use]) -> None:
        if use[0] == "lookup":
            assert refused(client, use[1]) == "Forbidden: Access to collection other is required"
        else:
            use[1](client)
        assert [one.name for one in client.get_collections().collections] == ["docs"]

    @pytest.mark.parametrize("use", MANAGES.items(), ids=lambda item: item[0])
    def test_manages_nothing(self, client: QdrantClient, use: tuple[str, Use]) -> None:
        assert refused(client, use[1]) == "Forbidden: Global access is required"

    @pytest.mark.parametrize("collection", ["other", "fresh", "doc", "docs2", "Docs", "docs.", "d*", "**"])
    def test_no_other_collection(self, client: QdrantClient, collection: str) -> None:
        uses: tuple[Use, ...] = (
            lambda client: client.get_collection(collection),
            lambda client: client.collection_exists(collection),
            lambda client: client.count(collection),
            lambda client: client.upsert(collection, POINTS),
        )
        for use in uses:
            assert refused(client, use) == f"Forbidden: Access to collection {collection} is required"


def test_curl(site: Site, gateway: Gateway) -> None:
    point = ("-X", "PUT", "-H", "content-type: application/json", "-d", '{"points":[{"id":1,"vector":[1,0]}]}')
    assert curl(gateway, site, "admin", "/collections/docs/points?wait=true", *point)[:2] == (0, 200)
    assert curl(gateway, site, "ingest", "/collections/docs/points?wait=true", *point)[:2] == (0, 200)
    for client, path in (("search", "docs"), ("ingest", "other"), ("stranger", "docs")):
        code, status, body = curl(gateway, site, client, f"/collections/{path}/points", *point)
        assert (code, status) == (0, 403)
        assert body.startswith('{"status":{"error":"Forbidden: ')
