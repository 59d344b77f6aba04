"""A refused upload: its client reads the refusal though it still sends, and nothing of it went upstream."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from support.gateway import Gateway
from support.operator_tools import curl
from support.raw_connection import GET, UPLOAD, UPSERT, Truncated, connected, memory
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream

BIG = 50 << 20


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upload") / "snapshot"
    with path.open("wb") as file:
        os.truncate(file.fileno(), BIG)
    return path


@pytest.mark.parametrize("expect", ["Expect:", "Expect: 100-continue"])
def test_curl_reads_the_refusal(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, big: Path, expect: str
) -> None:
    options = ["-H", expect, "--data-binary", f"@{big}"]
    code, status, body = curl(gateway, site, "search", "/collections/docs/snapshots/upload", *options)
    assert (code, status) == (0, 403)
    assert body == "Forbidden: Global manage access is required"
    assert upstream.connections == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_python_reads_the_refusal_after_it_has_sent_all(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream, *, chunked: bool
) -> None:
    before = memory(gateway, "VmRSS")
    connection = http.client.HTTPSConnection("localhost", gateway.port, context=site.client("search"), timeout=20)
    body = (bytes(1 << 20) for _ in range(BIG >> 20))
    headers = {} if chunked else {"content-length": str(BIG)}
    connection.request("POST", "/collections/docs/snapshots/upload", body, headers, encode_chunked=chunked)
    with connection.getresponse() as response:
        assert response.status == 403
        assert b"manage access is required" in response.read()
    connection.close()
    assert upstream.connections == 0
    assert memory(gateway) < before + (20 << 20)


def test_a_small_refused_body_keeps_the_connection(site: Site, gateway: Gateway) -> None:
    with connected(gateway, site.client("search")) as client:
        for _ in range(3):
            client.send(UPSERT, b"content-length: 60000\r\n\r\n", b"GET / HTTP/1.1\r\n" * 3750, GET)
            assert [client.response().status, client.response().status] == [403, 200]


def test_a_refused_body_of_unknown_length_costs_the_connection(site: Site, gateway: Gateway) -> None:
    with connected(gateway, site.client("search")) as client:
        client.send(UPSERT, b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", GET)
        assert client.response().status == 403
        assert client.ended()


def too_large(response_body: bytes) -> bool:
    return "larger than allowed" in orjson.loads(response_body)["status"]["error"]


def test_a_json_body_beyond_the_limit_is_refused_by_its_length(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    with connected(gateway, site.client()) as client:
        client.send(UPSERT, b"content-length: %d\r\n\r\n" % ((32 << 20) + 1))
        response = client.response()
        assert response.status == 400
        assert too_large(response.body)
        assert client.ended()
    assert upstream.connections == 0
    assert gateway.audited(method="upsert_points")["reason"] == "body_too_large"


def test_one_that_has_a_say_is_audited_as_denied(site: Site, shared_gateway: Gateway) -> None:
    """As over gRPC, with the client's text: no rights were found in what was not read."""
    search = b"POST /collections/docs/points/query HTTP/1.1\r\nhost: localhost\r\n"
    for fields, body, status, reason in (
        (b"content-length: %d\r\n\r\n" % ((32 << 20) + 1), b"", 400, "body_too_large"),
        (b"content-encoding: br\r\ncontent-length: 2\r\n\r\n", b"{}", 415, "content_coding"),
        (b"transfer-encoding: chunked\r\n\r\n", b"x\r\n", 400, "bad_request"),
    ):
        with connected(shared_gateway, site.client("ingest")) as client:
            client.send(search, fields, body)
            answered = client.response()
        assert answered.status == status
        record = shared_gateway.audited(status=status, reason=reason)
        assert (record["result"], record["error"]) == ("denied", orjson.loads(answered.body)["status"]["error"])


def test_a_chunked_one_when_it_gets_there(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    wholes: list[bytes] = []

    def answer(connection: Connection, request: Received) -> None:
        wholes.append(connection.read_body(request))

    upstream.answer = answer
    mebibyte = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with connected(gateway, site.client()) as client:
        client.send(UPSERT, b"transfer-encoding: chunked\r\n\r\n", *[mebibyte] * 32, b"1\r\n.\r\n0\r\n\r\n")
        response = client.response()
        assert response.status == 400
        assert too_large(response.body)
        assert client.ended()
    assert gateway.audited(method="upsert_points")["reason"] == "body_too_large"
    assert not wholes, "the upstream never got its end"


def uploads(client_bytes: int) -> Iterator[bytes]:
    yield UPLOAD + b"content-length: %d\r\n\r\n" % client_bytes
    for _ in range(client_bytes >> 20):
        yield bytes(1 << 20)


def test_an_upload_has_its_own_limit(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, limits={"max_upload_size_mb": 40})) as gateway:
        for size, status in ((40 << 20, 200), ((40 << 20) + 1, 400)):
            with connected(gateway, site.client()) as client:
                try:
                    for part in uploads(size):
                        client.send(part)
                except (ConnectionError, Truncated):  # pragma: no cover - told by the assertion below
                    pass
                assert client.response().status == status
