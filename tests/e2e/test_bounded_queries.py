"""Analysts without salaries and vectors: bounded queries, and nothing hidden in any answer."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.gateway import Gateway
from support.qdrant_clients import EmbeddedUpstream, qdrant
from support.raw_request import Client, Response
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream

Use = Callable[[QdrantClient], object]
PEOPLE = "/collections/people"
QUERIES = {
    "max_limit": 5,
    "max_offset": 10,
    "max_prefetch": 2,
    "exact": "forbid",
    "timeout": 10,
    "vectors": "hide",
    "payload": {"hide": ["salary", "contact.email"]},
}
ROLES = {
    "admin": {"access": "m"},
    "analyst": {
        "access": [{"collection": "people", "access": "rw"}, {"collection": "cities", "access": "r"}],
        "queries": QUERIES,
    },
    "tenant": {
        "access": [{"collection": "people", "access": "rw"}],
        "filter": {"team": "a"},
        "queries": {"payload": {"hide": ["team", "salary"]}, "vectors": "hide"},
    },
}
IDENTITIES = [
    {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
    {"name": "analysts", "match": {"cn": "analyst"}, "role": "analyst"},
    {"name": "tenants", "match": {"cn": "tenant"}, "role": "tenant"},
]
SECRETS = ("7777", "@example.org", "0.125")
"""Parts of every hidden value, and of every vector."""


@pytest.fixture(scope="module")
def config(site: Site) -> Iterator[Path]:
    for name in ("analyst", "tenant"):
        site.issue(name, client=True, common_name=name)
    with EmbeddedUpstream() as embedded:
        yield site.write_config(embedded.url, roles=ROLES, identities=IDENTITIES)


@pytest.fixture(scope="module")
def gateway(site: Site, config: Path) -> Iterator[Gateway]:
    with Gateway(config) as running:
        admin = qdrant(running, site.client("admin"))
        admin.create_collection("people", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
        admin.create_collection("cities", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
        admin.upsert("people", [person(n) for n in range(1, 9)])
        admin.upsert(
            "cities",
            [m.PointStruct(id=n, vector=[0.125, n], payload={"salary": 7777, "phone": n}) for n in range(1, 9)],
        )
        admin.close()
        yield running


def person(number: int) -> m.PointStruct:
    mail = {"email": f"p{number}@example.org", "phone": number}
    payload = {
        "n": number,
        "name": f"p{number}",
        "salary": 77770 + number,
        "team": "ab"[number % 2],
        "contact": mail if number % 2 else [mail, {"email": "second@example.org"}],
    }
    return m.PointStruct(id=number, vector=[0.125, number / 1000], payload=payload)


@pytest.fixture(scope="module")
def analyst(site: Site, gateway: Gateway) -> Iterator[QdrantClient]:
    client = qdrant(gateway, site.client("analyst"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def raw(site: Site, gateway: Gateway) -> Iterator[Client]:
    with Client(gateway, site.client("analyst")) as client:
        yield client


def post(client: Client, path: str, body: Any, query: str = "") -> Response:
    return client.ask("POST", f"{PEOPLE}/{path}{query}", (), json.dumps(body).encode())


READS: dict[str, Use] = {
    "retrieve": lambda client: client.retrieve("people", [1, 2], with_vectors=True),
    "retrieve what is hidden": lambda client: client.retrieve(
        "people", [1, 2], with_payload=["salary", "contact.email", "contact", "name"]
    ),
    "scroll": lambda client: client.scroll("people", limit=5, with_vectors=True),
    "scroll without": lambda client: client.scroll(
        "people", limit=5, with_payload=m.PayloadSelectorExclude(exclude=["name"])
    ),
    "query": lambda client: client.query_points("people", [1.0, 1.0], limit=5, with_payload=True, with_vectors=True),
    "query by id": lambda client: client.query_points("people", 1, limit=5, with_payload=True, with_vectors=[""]),
    "batch": lambda client: client.query_batch_points(
        "people", [m.QueryRequest(query=[1.0, 1.0], limit=2, with_payload=True, with_vector=True)] * 2
    ),
    "groups": lambda client: client.query_points_groups(
        "people", "n", [1.0, 1.0], limit=2, group_size=2, with_payload=True, with_vectors=True, with_lookup="cities"
    ),
}


@pytest.mark.parametrize("name", READS)
def test_nothing_hidden_comes_back(analyst: QdrantClient, name: str) -> None:
    answer = READS[name](analyst)
    assert "phone" in str(answer)
    for secret in SECRETS:
        assert secret not in str(answer)
    assert "vector=None" in str(answer)


def test_single_points_and_defaults(raw: Client) -> None:
    point = raw.ask("GET", f"{PEOPLE}/points/2").json
    assert point["result"]["payload"]["contact"] == [{"phone": 2}, {}]
    assert point.keys() == {"result", "status", "time"}
    assert raw.ask("GET", f"{PEOPLE}/points/99").status == 404
    assert len(post(raw, "points/scroll", {}).json["result"]["points"]) == 5
    assert len(post(raw, "points/query", {"query": [1, 1]}).json["result"]["points"]) == 5
    groups = post(raw, "points/query/groups", {"query": [1, 1], "group_by": "team"}).json["result"]["groups"]
    assert sum(len(one["hits"]) for one in groups) <= 5


REFUSED: dict[str, tuple[str, Any, str]] = {
    "limit": ("points/query", {"query": [1, 1], "limit": 6}, 'Limit exceeded 6 > 5 for "limit"'),
    "top": ("points/search", {"vector": [1, 1], "top": 6}, 'Limit exceeded 6 > 5 for "limit"'),
    "offset": ("points/query", {"query": [1, 1], "offset": 11}, 'Limit exceeded 11 > 10 for "offset"'),
    "exact": ("points/count", {"exact": True}, "Exact search disabled!"),
    "filter": ("points/scroll", {"filter": {"must": [{"key": "salary", "range": {"gt": 1}}]}}, '"salary" is hidden'),
    "facet": ("facet", {"key": "salary"}, '"salary" is hidden'),
    "order": ("points/scroll", {"order_by": "salary"}, '"salary" is hidden'),
    "write": ("points/payload", {"payload": {"salary": 1}, "points": [1]}, '"salary" is hidden'),
    "delete": ("points/delete", {"filter": {"must": {"key": "salary", "match": {"value": 77771}}}}, "is hidden"),
    "clear": ("points/payload/clear", {"points": [1]}, "not available under your role's query policy"),
    "unknown": ("points/query", {"query": [1, 1], "wither": 1}, '"wither" cannot be checked'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(gateway: Gateway, raw: Client, name: str) -> None:
    path, body, text = REFUSED[name]
    answer = post(raw, path, body)
    assert answer.status == 403
    error = answer.json["status"]["error"]
    assert error.startswith("Forbidden: ")
    assert text in error
    assert gateway.audited(role="analyst", status=403)["reason"] == "query_policy"


def test_timeouts_and_answers_that_cannot_be_stripped(raw: Client) -> None:
    assert post(raw, "points/scroll", {}, "?timeout=10").status == 200
    longer = post(raw, "points/scroll", {}, "?timeout=11")
    assert (longer.status, "11 > 10" in longer.json["status"]["error"]) == (403, True)
    for query in ("?timeout=0", "?timeout=1&timeout=1", "?timeout=", "?time%6fut=x"):
        assert post(raw, "points/scroll", {}, query).status == 400
    for method, path in (("GET", "/snapshots/s.snapshot"), ("DELETE", "/index/salary"), ("GET", "/memory")):
        assert raw.ask(method, PEOPLE + path).status == 403


def test_a_tenant_with_a_policy(site: Site, gateway: Gateway) -> None:
    """Its condition is on a key that it does not see, and may not ask for."""
    with Client(gateway, site.client("tenant")) as client:
        page = post(client, "points/scroll", {"with_vector": True, "limit": 50})
        assert [point["id"] for point in page.json["result"]["points"]] == [2, 4, 6, 8]
        assert not any(secret in str(page.json["result"]) for secret in ("7777", "team", "0.125"))
        asked = {"filter": {"must": [{"key": "team", "match": {"value": "b"}}]}}
        assert post(client, "points/scroll", asked).status == 403


ANSWERS: dict[str, tuple[bytes, int, Any]] = {
    "stripped": (
        b'{"result":[{"id":1,"payload":{"salary":1,"name":"a"},"vector":[1],"new":2}],"usage":{},"status":"ok"}',
        200,
        {"result": [{"id": 1, "payload": {"name": "a"}}], "status": "ok"},
    ),
    "another form": (b'{"result":{"salary":1}}', 502, None),
    "no JSON": (b'{"result":[{"id":1,"payload":{"salary":1}}]', 502, None),
    "nothing": (b"", 502, None),
}


@pytest.mark.usefixtures("config")
def test_what_is_sent_and_what_may_come_back(site: Site) -> None:
    answers: list[bytes] = []

    def answer(connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        body, more = answers.pop(), b""
        if b"accept-encoding" in request.head.lower():
            more = b"content-encoding: gzip\r\n"
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (more, len(body), body))

    with ScriptedUpstream(answer) as upstream:
        scripted = site.write_config(upstream.url, roles=ROLES, identities=IDENTITIES)
        with Gateway(scripted) as gateway, Client(gateway, site.client("analyst")) as client:
            fields = [("content-encoding", "gzip"), ("accept-encoding", "gzip")]
            for body, status, parsed in ANSWERS.values():
                answers.append(body)
                response = client.ask("POST", f"{PEOPLE}/points", fields, gzip.compress(b'{"ids":[1]}'))
                assert response.status == status
                assert b"salary" not in response.body
                if parsed is not None:
                    assert response.json == parsed
            for number in (1, 2, -77 * 10**17):  # which looks like what stands for a vector while the rest is read
                answers.append(b'{"result":[]}')
                searched = {"vector": [number / 8] * 200, "top": 3, "filter": {"must": [{"has_id": [number]}]}}
                assert post(client, "points/search", searched).status == 200
                limited = {"vector": searched["vector"], "filter": searched["filter"], "limit": 3, "with_vector": False}
                assert json.loads(upstream.requests[-1].body) == limited
            answers.append(gzip.compress(ANSWERS["stripped"][0]))
            assert client.ask("GET", f"{PEOPLE}/points/1").status == 502
            answers.append(b'{"result":true}')
            assert client.ask("PUT", f"{PEOPLE}/points?wait=true", (), b'{"points":[]}').status == 200
    first = upstream.requests[0]
    hidden = {"with_payload": {"exclude": ["contact.email", "salary"]}, "with_vector": False}
    assert json.loads(first.body) == {"ids": [1]} | hidden
    assert first.line == f"POST {PEOPLE}/points?timeout=10 HTTP/1.1"
    assert not {"content-encoding", "accept-encoding"} & first.fields.keys()
    assert upstream.requests[-1].line == f"PUT {PEOPLE}/points?wait=true HTTP/1.1"


def test_writes_that_name_nothing_hidden(analyst: QdrantClient) -> None:
    """After the others, since it changes a point."""
    analyst.set_payload("people", {"name": "other"}, [8])
    analyst.upsert(
        "people", [m.PointStruct(id=100, vector=[1.0, 1.0], payload={"name": "new", "contact": {"phone": 1}})]
    )
    assert analyst.retrieve("people", [8])[0].payload == {
        "n": 8,
        "name": "other",
        "team": "a",
        "contact": [{"phone": 8}, {}],
    }
    hidden = m.PointStruct(id=101, vector=[1.0, 1.0], payload={"contact": [{"email": "x"}]})
    with pytest.raises(UnexpectedResponse, match="is hidden"):
        analyst.upsert("people", [hidden])


def test_a_policy_that_is_made_stricter_counts_at_once(site: Site, config: Path, gateway: Gateway, raw: Client) -> None:
    """Last, since it changes the configuration."""
    assert post(raw, "points/query", {"query": [1, 1], "limit": 4}).status == 200
    assert "within max_limit 5, max_offset 10" in raw.ask("GET", "/_tlsproxy/whoami").body.decode()
    site.edit_config(config, roles={"analyst": {**ROLES["analyst"], "queries": {**QUERIES, "max_limit": 3}}})
    gateway.reloaded()
    assert "within max_limit 3, max_offset 10" in raw.ask("GET", "/_tlsproxy/whoami").body.decode()
    assert post(raw, "points/query", {"query": [1, 1], "limit": 4}).status == 403
