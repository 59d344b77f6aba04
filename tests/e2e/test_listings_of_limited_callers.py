"""A caller that is limited to collections lists those, and learns of no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from qdrant_client import models as m
from support.gateway import Gateway
from support.qdrant_clients import EmbeddedUpstream, qdrant
from support.raw_request import Client, Response
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream, plain

PATHS = ["/collections", "/aliases", "/collections/docs/aliases", "/telemetry", "/cluster/telemetry", "/issues"]


@pytest.fixture
def client(site: Site, shared_gateway: Gateway) -> Iterator[Client]:
    with Client(shared_gateway, site.client("ingest")) as running:
        yield running


def answer(result: Any, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    body = result if isinstance(result, bytes) else json.dumps({"result": result, "status": "ok", "time": 0.1}).encode()
    lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_the_real_client(site: Site) -> None:
    with EmbeddedUpstream() as embedded:
        roles = {"ingest": {"access": [{"collection": name, "access": "r"} for name in ("docs", "team.*", "d")]}}
        with Gateway(site.write_config(embedded.url, roles=roles)) as gateway:
            admin, ingest = qdrant(gateway, site.client("admin")), qdrant(gateway, site.client("ingest"))
            for name in ("docs", "team.a", "secret"):
                admin.create_collection(name, vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
            pairs = [("docs", "d"), ("docs", "hidden"), ("secret", "team.s"), ("secret", "s")]
            admin.update_collection_aliases(
                [
                    m.CreateAliasOperation(create_alias=m.CreateAlias(collection_name=collection, alias_name=alias))
                    for collection, alias in pairs
                ]
            )
            assert {one.name for one in ingest.get_collections().collections} == {"docs", "team.a"}
            assert [(one.collection_name, one.alias_name) for one in ingest.get_aliases().aliases] == [("docs", "d")]
            assert [one.alias_name for one in ingest.get_collection_aliases("docs").aliases] == ["d"]
            assert {one.name for one in admin.get_collections().collections} == {"docs", "team.a", "secret"}
            assert len(admin.get_aliases().aliases) == 4
            admin.close()
            ingest.close()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_it_is_reduced_however_it_is_framed(client: Client, shared_upstream: ScriptedUpstream, framing: str) -> None:
    body = json.dumps(
        {"result": {"collections": [{"name": f"secret-{n}"} for n in range(9999)] + [{"name": "docs"}]}}
    ).encode()

    def respond(connection: Connection, _request: Received) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-secret: secret\r\n"
        if framing == "length":
            connection.sock.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        elif framing == "chunked":
            pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            connection.sock.sendall(head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\nx-secret: 1\r\n\r\n")
        else:
            connection.sock.sendall(head + b"\r\n" + body)
            raise EOFError

    shared_upstream.answer = respond
    response = client.ask("GET", "/collections", [("accept-encoding", "gzip"), ("x-own", "kept")])
    assert response.status == 200
    assert response.json == {"result": {"collections": [{"name": "docs"}]}}
    assert response.fields["content-type"] == "application/json"
    assert "x-secret" not in response.fields
    assert "accept-encoding" not in shared_upstream.requests[-1].fields
    assert shared_upstream.requests[-1].fields["x-own"] == "kept"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [b"", b"secret", b'["secret"]', b'{"result":"secret"}', b'{"result":{"collections":[{"name":"secret"', b"\xff"],
)
def test_what_cannot_be_read_is_not_passed(
    client: Client, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, path: str, body: bytes
) -> None:
    shared_upstream.answer = plain(answer(body))
    response = client.ask("GET", path)
    assert (response.status, b"secret" in response.body) == (502, False)
    record = shared_gateway.audited(api=path, status=502)
    assert (record["result"], record["reason"]) == ("ok", "upstream_broken")


@pytest.mark.parametrize("path", PATHS)
def test_an_error_keeps_its_reason_to_itself(client: Client, shared_upstream: ScriptedUpstream, path: str) -> None:
    text = b'{"status":{"error":"Not found: Collection `secret` doesn\'t exist!"}}'
    for status in (b"404 Not Found", b"500 Internal Server Error", b"429 Too Many Requests"):
        shared_upstream.answer = plain(answer(text, status=status))
        response = client.ask("GET", path)
        assert (response.status, b"secret" in response.body) == (int(status[:3]), False)
        assert response.json["status"]["error"]
    for status in (b"206 Partial Content", b"302 Found"):
        shared_upstream.answer = plain(answer(text, b"location: /secret", status=status))
        assert client.ask("GET", path).status == 502


def test_an_answer_that_breaks_off_or_never_ends(site: Site, upstream: ScriptedUpstream) -> None:
    config = site.write_config(
        upstream.url,
        upstream={"response_timeout": 0.5, "rest": upstream.url},
        service={"max_request_size_mb": 1},
        limits={"inspection_memory_mb": 1},
    )

    def ask(client: Client) -> Response:
        return client.ask("GET", "/collections")

    with Gateway(config) as gateway, Client(gateway, site.client("ingest")) as client:
        upstream.answer = plain(answer({"collections": []})[:-5])
        assert ask(client).status == 504

        def cut(connection: Connection, request: Received) -> None:
            plain(answer({"collections": []})[:-5])(connection, request)
            raise EOFError

        upstream.answer = cut
        assert ask(client).status == 502
        upstream.answer = plain(answer({"collections": [{"name": "x" * (2 << 20)}]}))
        assert ask(client).status == 503
        upstream.answer = plain(answer({"collections": [{"name": "docs"}]}))
        assert ask(client).json["result"]["collections"] == [{"name": "docs"}]


def test_telemetry_does_not_tell_of_snapshots_of_others(client: Client, shared_upstream: ScriptedUpstream) -> None:
    lists = {"collections": [{"id": "docs"}], "snapshots": [{"id": "docs"}, {"id": "secret"}]}
    shared_upstream.answer = plain(answer({"id": "1", "app": {}, "collections": {"number_of_collections": 1, **lists}}))
    response = client.ask("GET", "/telemetry?details_level=10")
    assert response.json["result"]["collections"]["snapshots"] == [{"id": "docs"}]
    assert shared_upstream.requests[-1].line == "GET /telemetry?details_level=10 HTTP/1.1"


def test_who_may_read_everything_sees_it_as_it_is(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    shared_upstream.answer = plain(answer(b"whatever", b"content-encoding: gzip", b"x-own: 1"))
    with Client(shared_gateway, site.client("search")) as search:
        for path in PATHS:
            response = search.ask("GET", path, [("accept-encoding", "gzip")])
            assert (response.status, response.body, response.fields["x-own"]) == (200, b"whatever", "1")
            assert shared_upstream.requests[-1].fields["accept-encoding"] == "gzip"
