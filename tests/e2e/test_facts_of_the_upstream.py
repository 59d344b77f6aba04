"""A tenant's sparse query depends on the upstream's release and the collection's vectors: when these are asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from qdrant_client import grpc as pb
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcUpstream
from support.raw_request import Client, request
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream

ROLES = {
    "admin": {"access": "m"},
    "tenant": {"access": [{"collection": "*", "access": "rw"}], "filter": {"tenant": "{ou}"}},
}
IDENTITIES = [{"name": "tenants", "match": {"cn": "tenant-*"}, "role": "tenant"}]
IDF = {"corpus": {"must": [{"key": "tenant", "match": {"value": "acme"}}]}}
SPARSE = {"indices": [1], "values": [1.0]}


class Answers:
    """A Qdrant whose vector ``words`` has IDF. ``asked`` are the lines of the gateway's own questions; while ``let`` is
    not set, they are not answered.
    """

    def __init__(self) -> None:
        self.release = "1.20.0"
        self.sparse: dict[str, Any] = {"words": {"modifier": "idf"}, "plain": {}}
        self.asked: list[str] = []
        self.arrived = threading.Semaphore(0)
        self.let = threading.Event()
        self.let.set()
        self.broken = False
        self.status = b"200 OK"

    def __call__(self, connection: Connection, came: Received) -> None:
        came.body = connection.read_body(came)
        answer: dict[str, Any] = {"result": {}, "status": "ok", "time": 0.0}
        if came.line.startswith("GET "):
            self.asked.append(came.line.split(" ")[1])
            self.arrived.release()
            assert self.let.wait(DEADLINE)
            if self.broken:
                raise EOFError
            answer = {"title": "qdrant", "version": self.release}
            if self.asked[-1] != "/":
                answer = {"result": {"config": {"params": {"sparse_vectors": self.sparse}}}}
        body = json.dumps(answer).encode()
        status = self.status if came.line.startswith("GET /collections") else b"200 OK"
        connection.sock.sendall(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def upstream(answers: Answers) -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(answer=answers) as running:
        yield running


@pytest.fixture
def gateway(site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> Iterator[Gateway]:
    site.issue("acme", client=True, common_name="tenant-acme", organizational_unit="acme")
    config = site.write_config(upstream.url, grpc=grpc_upstream.url, roles=ROLES, identities=IDENTITIES)
    with Gateway(config) as running:
        yield running


def sparse(using: str) -> bytes:
    return json.dumps({"query": SPARSE, "using": using}).encode()


def ask(client: Client, using: str, collection: str = "docs") -> int:
    return client.ask("POST", f"/collections/{collection}/points/query", (), sparse(using)).status


def test_what_is_asked_and_what_is_remembered(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, answers: Answers
) -> None:
    with Client(gateway, site.client("acme")) as client:
        assert client.ask("POST", "/collections/docs/points/query", (), b'{"query":[0.5]}').status == 200
        assert answers.asked == []
        for _ in range(3):
            assert ask(client, "words") == 200
        assert answers.asked == ["/", "/collections/docs"]
        answers.sparse["plain"] = {"modifier": "idf"}  # that it had none is not believed
        assert ask(client, "plain") == 200
        assert answers.asked == ["/", "/collections/docs", "/collections/docs"]
        sent = [one for one in upstream.requests if one.line.startswith("POST")]
        assert [json.loads(one.body).get("params", {}).get("idf") for one in sent] == [None, *[IDF] * 4]
        answers.status = b"500 Internal Server Error"
        assert ask(client, "third") == 502
        answers.status = b"404 Not Found"
        assert ask(client, "third") == 200
        answers.asked[3:] = []
        answers.status = b"200 OK"
        assert ask(client, "words", "other%20docs") == 200
        assert answers.asked[3:] == ["/collections/other%20docs"]


def test_a_gateway_that_is_not_told(site: Site, gateway: Gateway, answers: Answers) -> None:
    answers.broken = True
    with Client(gateway, site.client("acme")) as client, channel(gateway, site, "acme") as opened:
        assert ask(client, "words") == 502
        message = pb.QueryPoints(
            collection_name="docs",
            query=pb.Query(nearest=pb.VectorInput(sparse=pb.SparseVector(indices=[1], values=[1.0]))),
        )
        answered = call(opened, "/qdrant.Points/Query", message.SerializeToString())
        assert answered.code is grpc.StatusCode.UNAVAILABLE
        answers.broken = False
        assert ask(client, "words") == 200
        assert call(opened, "/qdrant.Points/Query", message.SerializeToString()).code is grpc.StatusCode.OK


def test_many_at_once_share_an_answer(site: Site, gateway: Gateway, answers: Answers) -> None:
    answers.let.clear()

    def one(_: int) -> int:
        with Client(gateway, site.client("acme")) as client:
            return ask(client, "words")

    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(one, number) for number in range(8)]
        assert answers.arrived.acquire(timeout=DEADLINE)
        answers.let.set()
        assert [result.result(DEADLINE) for result in results] == [200] * 8
    assert answers.asked.count("/") <= 2


def test_who_does_not_wait_for_the_answer(
    site: Site, gateway: Gateway, answers: Answers, grpc_upstream: GrpcUpstream
) -> None:
    answers.let.clear()
    sock = gateway.connect(site.client("acme"))
    sock.sendall(request("POST", "/collections/docs/points/query", (), sparse("words")))
    assert answers.arrived.acquire(timeout=DEADLINE)
    with channel(gateway, site, "acme") as opened:
        message = pb.QueryPoints(collection_name="docs", query=pb.Query(text=pb.TextQuery(query="a")))
        running = opened.unary_unary("/qdrant.Points/Query").future(message.SerializeToString())
        grpc_upstream.wait()
        running.cancel()
        assert gateway.audited(reason="client_cancelled")["api"] == "/qdrant.Points/Query"
    sock.close()
    assert gateway.audited(reason="client_gone")["collection"] == "docs"
    answers.let.set()
    with Client(gateway, site.client("acme")) as client:
        assert ask(client, "words") == 200
    assert grpc_upstream.calls[0].messages == []
