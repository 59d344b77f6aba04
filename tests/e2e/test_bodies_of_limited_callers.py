"""A caller that is limited to collections: its queries are read, and name no other collection, however they say it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator

import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse
from support.gateway import Gateway
from support.polling import until
from support.qdrant_clients import EmbeddedUpstream, qdrant
from support.raw_connection import memory
from support.raw_request import Client, Response, read_response, request
from support.site import Site
from support.upstream import OK, Received, ScriptedUpstream, plain

from tlsproxy.authz.tokens import mint

QUERY = "/collections/docs/points/query"
NEEDED = "Forbidden: Access to collection other is required"
OTHER = m.LookupLocation(collection="other")


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    config = site.write_config(
        shared_upstream.url, service={"max_request_size_mb": 16}, limits={"inspection_memory_mb": 16}
    )
    with Gateway(config) as running:
        yield running


@pytest.fixture
def client(site: Site, gateway: Gateway) -> Iterator[Client]:
    with Client(gateway, site.client("ingest")) as running:
        yield running


def post(client: Client, body: bytes, path: str = QUERY, **fields: str) -> Response:
    return client.ask("POST", path, [(name.replace("_", "-"), value) for name, value in fields.items()], body)


def error(response: Response) -> str:
    return str(response.json["status"]["error"])


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedUpstream]:
    with EmbeddedUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def ingest(site: Site, embedded: EmbeddedUpstream) -> Iterator[QdrantClient]:
    roles = {"ingest": {"access": [{"collection": name, "access": "rw"} for name in ("docs", "more")]}}
    with Gateway(site.write_config(embedded.url, roles=roles)) as running:
        admin = qdrant(running, site.client("admin"))
        for name in ("docs", "other", "more"):
            admin.create_collection(name, vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
            admin.upsert(name, [m.PointStruct(id=1, vector=[1.0, 0.0], payload={"group": "a"})])
        admin.close()
        client = qdrant(running, site.client("ingest"))
        yield client
        client.close()


def test_queries_of_its_own(ingest: QdrantClient) -> None:
    more = m.LookupLocation(collection="more")
    assert len(ingest.query_points("docs", query=[1.0, 0.0]).points) == 1
    assert len(ingest.query_points("docs", query=1, lookup_from=more).points) == 1
    prefetch = m.Prefetch(query=1, lookup_from=more, prefetch=[m.Prefetch(query=[0.0, 1.0])])
    fused = ingest.query_points("docs", query=m.FusionQuery(fusion=m.Fusion.RRF), prefetch=prefetch)
    assert len(fused.points) == 1
    groups = ingest.query_points_groups("docs", "group", query=[1.0, 0.0]).groups
    assert [group.id for group in groups] == ["a"]
    assert len(ingest.query_batch_points("docs", [m.QueryRequest(query=[1.0, 0.0])] * 3)) == 3


@pytest.mark.parametrize(
    "use",
    [
        lambda client: client.query_points("docs", query=1, lookup_from=OTHER),
        lambda client: client.query_points("docs", prefetch=m.Prefetch(query=1, lookup_from=OTHER)),
        lambda client: client.query_points(
            "docs", prefetch=[m.Prefetch(query=[1.0, 0.0]), m.Prefetch(prefetch=m.Prefetch(lookup_from=OTHER))]
        ),
        lambda client: client.query_points_groups("docs", "group", query=[1.0, 0.0], with_lookup="other"),
        lambda client: client.query_points_groups(
            "docs", "group", query=[1.0, 0.0], with_lookup=m.WithLookup(collection="other")
        ),
        lambda client: client.query_batch_points(
            "docs", [m.QueryRequest(query=[1.0, 0.0]), m.QueryRequest(query=1, lookup_from=OTHER)]
        ),
    ],
)
def test_not_of_others(ingest: QdrantClient, use: Callable[[QdrantClient], object]) -> None:
    with pytest.raises(UnexpectedResponse) as caught:
        use(ingest)
    assert caught.value.status_code == 403
    assert str(caught.value.structured()["status"]["error"]) == NEEDED


BODY = b'{ "query" : [1e0, 2.50], "prefetch":{"lookup_from":{"collection":"\\u0064ocs"}}, "limit":3 }\n'


def arrived(upstream: ScriptedUpstream) -> Received:
    return upstream.requests[-1]


@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
def test_what_was_decided_on_is_what_is_sent(client: Client, shared_upstream: ScriptedUpstream, coding: str) -> None:
    shared_upstream.answer = plain()
    sent = {"": BODY, "gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY)}[coding]
    fields = {"content_encoding": coding} if coding else {}
    assert post(client, sent, **fields, content_type="application/json", x_own="kept").status == 200
    request = arrived(shared_upstream)
    assert request.body == sent
    assert request.fields["content-length"] == str(len(sent))
    assert request.fields.get("content-encoding", "") == coding
    assert (request.fields["content-type"], request.fields["x-own"]) == ("application/json", "kept")


def test_chunks_become_a_length(client: Client, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.answer = plain()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(BODY[at : at + 7]), BODY[at : at + 7]) for at in range(0, len(BODY), 7))
    chunks += b"0\r\nx-trailer: 1\r\n\r\n"
    assert post(client, chunks, transfer_encoding="chunked", x_request_id="in chunks").status == 200
    request = arrived(shared_upstream)
    assert request.body == BODY
    assert "transfer-encoding" not in request.fields
    record = gateway.audited(tracing_id="in chunks")
    assert (record["result"], record["reason"], record["collection"]) == ("ok", "allowed", "docs")
    assert record["bytes_in"] > len(BODY)


def test_vectors_are_not_read_and_pass_as_they_are(
    client: Client, gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    """Bodies that differ in their numbers alone are decided alike, whether one like it was seen before or not."""
    shared_upstream.answer = plain()
    for name, status in (("docs", 200), ("other", 403)):
        for digit in (1, 2, 3):
            numbers = ",".join([f"0.{digit}"] * 200)
            body = f'{{"query":[{numbers}],"lookup_from":{{"collection":"{name}"}}}}'.encode()
            assert post(client, body, x_request_id=f"{name} {digit}").status == status
            if status == 200:
                assert arrived(shared_upstream).body == body
            assert gateway.audited(tracing_id=f"{name} {digit}")["bytes_in"] == len(body)


def test_a_client_that_waits_to_be_told(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.answer = plain()
    with gateway.connect(site.client("ingest")) as sock:
        head, body = request("POST", QUERY, [("expect", "100-continue")], BODY).split(b"\r\n\r\n", 1)
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_response(sock, "POST").status == 200
    assert "expect" not in arrived(shared_upstream).fields
    assert arrived(shared_upstream).body == BODY


def test_pipelined_with_what_comes_behind(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    """Refused, allowed and broken bodies in one write: each is answered, in its place."""
    shared_upstream.answer = plain()
    bodies = [b'{"lookup_from":{"collection":"other"}}', b"{}", b"{", b'{"with_lookup":"docs"}']
    get = request("GET", "/collections/docs")
    with gateway.connect(site.client("ingest")) as sock:
        sock.sendall(b"".join(request("POST", QUERY, body=body) + get for body in bodies))
        received = b""
        while received.count(b"HTTP/1.1 ") < 8:
            received += sock.recv(65536)
    statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [403, 200, 200, 200, 400, 200, 200, 200]


def test_byte_by_byte(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    shared_upstream.answer = plain()
    with gateway.connect(site.client("ingest")) as sock:
        for byte in request("POST", QUERY, body=BODY):
            sock.sendall(bytes([byte]))
        assert read_response(sock, "POST").status == 200
    assert arrived(shared_upstream).body == BODY


HOSTILE: dict[str, tuple[bytes, int]] = {
    "nested 1,000 deep": (b'{"prefetch":' * 1000 + b'{"lookup_from":{"collection":"other"}}' + b"}" * 1000, 400),
    "nested as deep as serde goes": (
        b'{"prefetch":' * 120 + b'{"lookup_from":{"collection":"other"}}' + b"}" * 120,
        403,
    ),
    "brackets only": (b"[" * 5_000_000, 400),
    "10 MB of one key": (b"{" + b",".join([b'"lookup_from":{}'] * 600_000) + b"}", 400),
    "twice": (b'{"lookup_from":{"collection":"other"},"lookup_from":{"collection":"docs"}}', 400),
    "two spellings": (b'{"lookup_from":{"collection":"other"},"lookup\\u005ffrom":{"collection":"docs"}}', 400),
    "the other spelling": (b'{"lookup\\u005ffrom":{"collection":"\\u006fther"}}', 403),
    "fields in their order": (b'{"lookup_from":["other"]}', 400),
    "a request as an array": (b'[[{"lookup_from":{"collection":"other"}}]]', 400),
    "another encoding": ('{"lookup_from":{"collection":"other"}}'.encode("utf-16"), 400),
    "byte order mark": (b'\xef\xbb\xbf{"query":[1]}', 400),
    "not UTF-8": (b'{"lookup_from":{"collection":"\xff"}}', 400),
    "not a number": (b'{"query":[NaN]}', 400),
    "two values": (b'{}{"lookup_from":{"collection":"other"}}', 400),
    "nothing": (b"", 400),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies(client: Client, gateway: Gateway, shared_upstream: ScriptedUpstream, name: str) -> None:
    body, status = HOSTILE[name]
    before = len(shared_upstream.requests)
    response = post(client, body, x_request_id=name)
    assert response.status == status
    assert error(response).startswith(NEEDED if status == 403 else "Format error in JSON body: ")
    assert len(shared_upstream.requests) == before
    record = gateway.audited(tracing_id=name)
    assert (record["result"], record["reason"]) == ("denied", "collection" if status == 403 else "bad_request")
    assert (record["status"], record["method"], record["bytes_in"]) == (status, "query_batch", len(body))


def test_gzip_bombs_and_codings_that_are_not_read(
    client: Client, gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    before = len(shared_upstream.requests)
    hidden = b'{"lookup_from":{"collection":"other"}}'
    bomb = gzip.compress(b'{"a":"' + b" " * (128 << 20) + b'"}', 1)
    peak = memory(gateway)
    assert post(client, bomb, content_encoding="gzip").status == 400
    assert memory(gateway) - peak < 80 << 20
    assert post(client, gzip.compress(b"{}") + gzip.compress(hidden), content_encoding="gzip").status == 400
    assert error(post(client, gzip.compress(hidden), content_encoding="gzip")) == NEEDED
    assert post(client, hidden, content_encoding="gzip").status == 400
    assert post(client, gzip.compress(b"{}")).status == 400
    for coding in ("br", "zstd", "gzip, identity", "unheard-of"):
        assert post(client, b"{}", content_encoding=coding).status == 415
    assert len(shared_upstream.requests) == before


def test_too_large_is_refused_by_its_length_or_on_the_way(client: Client, shared_upstream: ScriptedUpstream) -> None:
    before = len(shared_upstream.requests)
    assert post(client, b" " * (16 << 20) + b"{}").status == 400
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    response = post(client, chunk * 17 + b"0\r\n\r\n", transfer_encoding="chunked")
    assert (response.status, response.closing) == (400, True)
    assert len(shared_upstream.requests) == before


def test_another_collection_in_the_path_is_refused_before_its_body_comes(site: Site, gateway: Gateway) -> None:
    with gateway.connect(site.client("ingest")) as sock:
        sock.sendall(b"POST /collections/other/points/query HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\n")
        assert error(read_response(sock, "POST")) == NEEDED


def test_all_bodies_together_have_a_budget(site: Site, gateway: Gateway, client: Client) -> None:
    """Bodies that never end take it up; who comes then is told to come again, and finds room when they are gone."""
    half = b" " * (12 << 20)
    head = b"POST %b HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % (QUERY.encode(), (12 << 20) + 1)
    with gateway.connect(site.client("ingest")) as holding:
        holding.sendall(head + half)
        until(lambda: gateway.inspection_memory() >= len(half))  # otherwise it may be this one that finds no room
        assert post(client, b" " * (6 << 20) + b"{}").status == 503
        assert post(client, b"{}").status == 200
        record = gateway.audited(status=503)
        assert (record["result"], record["reason"]) == ("denied", "overloaded")
    assert gateway.audited(status=499)["reason"] == "client_gone"
    assert post(client, b" " * (6 << 20) + b"{}").status == 200


def test_a_body_that_does_not_come(site: Site, upstream: ScriptedUpstream) -> None:
    config = site.write_config(upstream.url, limits={"body_timeout": 0.5})
    with Gateway(config) as gateway, gateway.connect(site.client("ingest")) as sock:
        sock.sendall(b"POST %b HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n{" % QUERY.encode())
        assert read_response(sock, "POST").status == 408
        assert gateway.audited(status=408)["reason"] == "client_timeout"
    assert upstream.requests == []


def test_who_has_global_rights_is_streamed(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    """Its body is nobody's business: it reaches the upstream before it is whole, in its chunks, whatever it says."""
    shared_upstream.answer = plain()
    body = b'5\r\n{"a":\r\n6\r\n1,"a":\r\n2\r\n2}\r\n0\r\n\r\n'
    with Client(gateway, site.client("search")) as search:
        assert post(search, body, transfer_encoding="chunked").status == 200
    assert arrived(shared_upstream).fields["transfer-encoding"] == "chunked"
    assert arrived(shared_upstream).body == b'{"a":1,"a":2}'


def test_a_lost_upstream_connection_is_tried_again(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url)) as gateway, Client(gateway, site.client("ingest")) as client:
        assert post(client, BODY).status == 200

        def lose(_connection: object, _request: object) -> None:
            upstream.answer = plain(OK)
            raise EOFError

        upstream.answer = lose
        assert post(client, BODY).status == 200
    assert [json.loads(one.body)["limit"] for one in upstream.requests if one.body] == [3, 3]


def test_a_token_that_depends_on_a_point(site: Site, upstream: ScriptedUpstream) -> None:
    """Its body is read, then the point is asked for: without it the request is refused, and holds no memory."""
    service = {
        "verify_https_client_certificate": False,
        "jwt_rbac": True,
        "api_key": "k" * 32,
        "max_request_size_mb": 16,
    }
    exists = {"collection": "users", "matches": [{"key": "name", "value": "alice"}]}
    token = mint("k" * 32, {"access": [{"collection": "docs", "access": "r"}], "value_exists": exists})
    upstream.answer = plain(b'HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n{"result":{"points":[]}}')
    config = site.write_config(upstream.url, service=service, limits={"inspection_memory_mb": 16})
    with Gateway(config) as gateway, Client(gateway, site.client(None)) as client:
        for _ in range(4):
            assert post(client, b" " * (6 << 20) + b"{}", api_key=token).status == 401
        assert error(post(client, b'{"with_lookup":"other"}', api_key=token)) == NEEDED
    assert {one.line for one in upstream.requests} == {"POST /collections/users/points/scroll HTTP/1.1"}
