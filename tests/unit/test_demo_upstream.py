"""The embedded upstream, as the program it is, asked by the real qdrant-client over both of its transports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest
from grpc import Call, RpcError, StatusCode
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from tlsproxy.demo.upstream import main

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = (sys.executable, "-P", "-m", "tlsproxy.demo.upstream", "--rest-port", "0", "--grpc-port", "0")
POINTS = [
    models.PointStruct(
        id=n,
        vector=[float(n % 7), 1.0, float(n % 3)],
        payload={"n": n, "half": n // 10, "odd": n % 2 == 1, "gone": None},
    )
    for n in range(20)
]


class Upstream:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            COMMAND, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.ports = json.loads(self.process.stdout.readline())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['rest']}"

    def end(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    started = Upstream()
    try:
        yield started
    finally:
        ended = started.end()
    # Nothing but the ready line: not even local mode's warnings, which some of these tests provoke.
    assert ended == (0, "", "")


@pytest.fixture(params=["rest", "grpc"])
def client(request: pytest.FixtureRequest, upstream: Upstream) -> Iterator[QdrantClient]:
    made = QdrantClient(
        url=upstream.url,
        grpc_port=upstream.ports["grpc"],
        prefer_grpc=request.param == "grpc",
        check_compatibility=False,
    )
    yield made
    for collection in made.get_collections().collections:
        made.delete_collection(collection.name)
    made.close()


@pytest.fixture
def docs(client: QdrantClient) -> QdrantClient:
    client.create_collection("docs", vectors_config=models.VectorParams(size=3, distance=models.Distance.COSINE))
    client.upsert("docs", POINTS, wait=True)
    return client


def is_refusal(error: Exception, status: int, code: StatusCode) -> bool:
    if isinstance(error, UnexpectedResponse):
        return error.status_code == status
    return isinstance(error, Call) and error.code() is code  # type: ignore[no-untyped-call]  # grpcio has no types


def test_collections_come_and_go(client: QdrantClient) -> None:
    assert not client.collection_exists("docs")
    assert client.create_collection("docs", vectors_config={"a": models.VectorParams(size=2, distance="Dot")})
    assert client.collection_exists("docs")
    assert [one.name for one in client.get_collections().collections] == ["docs"]
    vectors = client.get_collection("docs").config.params.vectors
    assert isinstance(vectors, dict)
    assert vectors["a"].size == 2
    assert client.update_collection("docs", metadata={"owner": "us"})
    assert client.delete_collection("docs")
    assert not client.delete_collection("docs")


def test_points_are_upserted_queried_and_deleted(docs: QdrantClient) -> None:
    nearest = docs.query_points("docs", query=[6.0, 1.0, 0.0], limit=1, with_vectors=True).points[0]
    assert nearest.id == 6
    assert isinstance(nearest.vector, list)
    assert len(nearest.vector) == 3
    wanted = models.Filter(must=[models.FieldCondition(key="odd", match=models.MatchValue(value=True))])
    assert docs.count("docs", count_filter=wanted).count == 10
    assert docs.delete("docs", points_selector=[1, 3]).status == models.UpdateStatus.COMPLETED
    assert docs.count("docs", count_filter=wanted).count == 8
    assert docs.retrieve("docs", ids=[1, 2])[0].payload == {"n": 2, "half": 0, "odd": False, "gone": None}


def test_a_scroll_ends_with_no_offset(docs: QdrantClient) -> None:
    seen, offset = docs.scroll("docs", limit=15)
    assert offset == 15
    rest, offset = docs.scroll("docs", limit=15, offset=offset)
    assert offset is None
    assert [point.id for point in (*seen, *rest)] == list(range(20))


def test_batches_groups_and_facets(docs: QdrantClient) -> None:
    request = models.QueryRequest(query=[1.0, 1.0, 1.0], limit=3, with_payload=True)
    first, second = docs.query_batch_points("docs", requests=[request, models.QueryRequest(query=4, limit=2)])
    assert [len(first.points), len(second.points)] == [3, 2]
    assert first.points[0].payload is not None
    groups = docs.query_points_groups("docs", group_by="half", query=[1.0, 1.0, 1.0], group_size=2).groups
    assert [len(group.hits) for group in groups] == [2, 2]
    assert {hit.count for hit in docs.facet("docs", key="odd").hits} == {10}
    assert len(docs.search_matrix_pairs("docs", sample=5, limit=2).pairs) == 10


def test_payloads_vectors_and_indexes_are_changed(docs: QdrantClient) -> None:
    docs.set_payload("docs", payload={"tag": "new"}, points=[2])
    docs.overwrite_payload("docs", payload={"only": 1}, points=[4])
    docs.delete_payload("docs", keys=["n", "gone"], points=[6])
    docs.clear_payload("docs", points_selector=[8])
    docs.update_vectors("docs", points=[models.PointVectors(id=2, vector=[0.0, 0.0, 9.0])])
    payloads = {point.id: point.payload for point in docs.retrieve("docs", ids=[2, 4, 6, 8])}
    assert (payloads[2] or {})["tag"] == "new"
    assert payloads[4] == {"only": 1}
    assert payloads[6] == {"half": 0, "odd": False}
    assert not payloads[8]
    assert docs.query_points("docs", query=[0.0, 0.0, 1.0], limit=1).points[0].id == 2
    docs.create_payload_index("docs", field_name="n", field_schema=models.PayloadSchemaType.INTEGER)
    docs.delete_payload_index("docs", field_name="n")
    operations = [models.DeleteOperation(delete=models.PointIdsList(points=[0]))] * 2
    assert len(docs.batch_update_points("docs", update_operations=operations)) == 2


def test_aliases_follow_their_collection(docs: QdrantClient) -> None:
    create = models.CreateAlias(collection_name="docs", alias_name="current")
    assert docs.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    assert docs.count("current").count == 20
    assert [alias.alias_name for alias in docs.get_aliases().aliases] == ["current"]
    assert [alias.alias_name for alias in docs.get_collection_aliases("docs").aliases] == ["current"]


def test_errors_have_the_statuses_of_qdrant(docs: QdrantClient) -> None:
    refused = (UnexpectedResponse, RpcError)
    with pytest.raises(refused) as missing:
        docs.count("nowhere")
    assert is_refusal(missing.value, 404, StatusCode.NOT_FOUND)
    with pytest.raises(refused) as twice:
        docs.create_collection("docs", vectors_config=models.VectorParams(size=3, distance="Dot"))
    assert is_refusal(twice.value, 409, StatusCode.ALREADY_EXISTS)
    with pytest.raises(refused) as too_long:
        docs.query_points("docs", query=[1.0] * 4)
    assert is_refusal(too_long.value, 400, StatusCode.INVALID_ARGUMENT)
    with pytest.raises(refused) as snapshot:
        docs.create_snapshot("docs")
    assert is_refusal(snapshot.value, 501, StatusCode.UNIMPLEMENTED)


def test_the_rest_envelope_is_that_of_qdrant(upstream: Upstream) -> None:
    with httpx.Client(base_url=upstream.url) as http:
        assert http.put("/collections/raw", json={"vectors": {"size": 1, "distance": "Dot"}}).json()["result"] is True
        point = {"id": 1, "vector": [1.0], "payload": {"gone": None}}
        assert http.put("/collections/raw/points", json={"points": [point]}).json()["status"] == "ok"
        assert (
            http.post("/collections/raw/points/search", json={"vector": [1.0], "limit": 1}).json()["result"][0]["id"]
            == 1
        )
        assert http.get("/collections/raw/points/1").json()["result"]["payload"] == {"gone": None}
        scrolled = http.post("/collections/raw/points/scroll", json={}).json()
        assert scrolled["result"]["next_page_offset"] is None
        assert "null" not in http.get("/collections/raw").text
        error = http.get("/collections/nowhere").json()
        assert error.keys() == {"status", "time"}
        assert error["status"] == {"error": "Not found: Collection `nowhere` doesn't exist!"}
        assert http.post("/collections/raw/points/query", content=b'{"limit": "many"}').status_code == 400
        assert http.post("/collections/raw/points/query", content=b"").status_code == 400
        assert http.get("/collections/raw/points/7").status_code == 404
        assert http.get("/").json()["version"]
        assert http.get("/readyz").status_code == 200
        assert "collections_total 1" in http.get("/metrics").text
        assert http.delete("/collections/raw").json()["result"] is True


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("POST", "/collections"), ("HEAD", "/collections")])
def test_an_unknown_route_or_method_is_an_empty_404(upstream: Upstream, method: str, path: str) -> None:
    response = httpx.request(method, upstream.url + path)
    assert (response.status_code, response.content) == (404, b"")


def test_a_body_of_64_mib_is_taken(upstream: Upstream) -> None:
    body = b'{"filter": null, "exact": true' + b" " * (64 << 20) + b"}"
    response = httpx.post(f"{upstream.url}/collections/nowhere/points/count", content=body, timeout=30)
    assert response.status_code == 404


def test_it_ends_when_the_parent_closes_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has imported what it is made of."""
    (reading, parent), (told, out) = os.pipe(), os.pipe()

    def close_when_it_serves() -> dict[str, int]:
        with os.fdopen(told) as lines, os.fdopen(parent, "w"):
            ports: dict[str, int] = json.loads(lines.readline())
            assert httpx.get(f"http://127.0.0.1:{ports['rest']}/readyz").status_code == 200
            return ports

    with os.fdopen(reading) as stdin, os.fdopen(out, "w") as stdout, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        served = pool.submit(close_when_it_serves)
        main(["--rest-port", "0", "--grpc-port", "0", "--until-stdin-closes"])
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{served.result()['rest']}/readyz")
