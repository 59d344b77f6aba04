"""`POST /audit/logs` is answered from the gateway's own files, to those who may do everything, as Qdrant answers it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.gateway import Gateway
from support.raw_request import Client, Response, request
from support.site import Site
from support.upstream import ScriptedUpstream

ASK = ("POST", "/audit/logs")


@pytest.fixture(scope="module")
def gateway(
    site: Site, shared_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    audit = {"dir": str(tmp_path_factory.mktemp("audit"))}
    with Gateway(site.write_config(shared_upstream.url, audit=audit)) as running:
        yield running


def entries(gateway: Gateway, site: Site, least: int = 0, **query: Any) -> list[dict[str, Any]]:
    """Asked until there are so many: lines are written a moment after what they are about."""
    with Client(gateway, site.client()) as connection:
        while True:
            response = connection.ask(*ASK, (), json.dumps(query).encode())
            assert response.status == 200
            assert response.json["status"] == "ok"
            found: list[dict[str, Any]] = response.json["result"]["entries"]
            if len(found) >= least:
                return found


def test_what_was_decided_is_found(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    with Client(gateway, site.client("ingest")) as connection:
        for name in ("docs", "other", "docs"):
            connection.ask("GET", f"/collections/{name}")
    asked = {"method": "get_collection", "role": "ingest"}
    found = entries(gateway, site, 3, filters=asked)
    assert [each["result"] for each in found] == ["ok", "denied", "ok"]
    assert [each["collection"] for each in entries(gateway, site, filters=asked | {"status": "403"})] == ["other"]
    assert len(entries(gateway, site, limit=2)) == 2
    assert entries(gateway, site, filters=asked | {"result": "x"}) == []
    now = datetime.now(UTC)
    assert entries(gateway, site, time_from=(now + timedelta(hours=1)).isoformat()) == []
    assert entries(gateway, site, time_to=(now - timedelta(hours=1)).isoformat()) == []
    past = (now - timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    assert len(entries(gateway, site, time_from=past, filters=asked)) == 3
    assert not any("audit" in each.line for each in shared_upstream.requests)


def ask(gateway: Gateway, site: Site, body: bytes, client: str = "admin", **fields: str) -> Response:
    with Client(gateway, site.client(client)) as connection:
        return connection.ask(*ASK, list(fields.items()), body)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b'{"limit": 0}', b'{"limit": 10001}', b'{"limit": "1"}', b'{"limit": 1, "limit": 2}',
        b'{"filters": []}', b'{"filters": {"a": 1}}', b'{"time_from": "yesterday"}', b'{"time_to": "2026-01-01"}',
        b'{"time_from": 1}',
    ],
)  # fmt: skip
def test_malformed_questions(site: Site, gateway: Gateway, body: bytes) -> None:
    """What follows on the connection is still a request of its own."""
    with gateway.connect(site.client()) as sock:
        follows = request("GET", "/collections/docs")
        sock.sendall(request(*ASK, [("content-length", str(len(body)))], body) + follows)
        received = b""
        while received.count(b"HTTP/1.1 ") < 2:
            data = sock.recv(65536)
            assert data
            received += data
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"HTTP/1.1 200 " in received


def test_who_may_not(site: Site, gateway: Gateway) -> None:
    for client in ("search", "ingest", "stranger"):
        assert ask(gateway, site, b"{}", client).status == 403
    assert ask(gateway, site, b'{"x": "' + b"y" * 70_000 + b'"}').status == 400


def test_a_body_in_pieces(site: Site, gateway: Gateway) -> None:
    with gateway.connect(site.client()) as sock:
        head = request(*ASK, [("content-length", "12")])
        for piece in (head[:30], head[30:], b'{"limit"'):
            sock.sendall(piece)
        sock.sendall(b": 1}" + request("GET", "/collections/docs"))
        received = b""
        while received.count(b"HTTP/1.1 200 ") < 2:
            data = sock.recv(65536)
            assert data
            received += data


def test_a_body_in_chunks(site: Site, gateway: Gateway) -> None:
    assert len(entries(gateway, site, 2)) >= 2
    chunked = {"transfer-encoding": "chunked"}
    with Client(gateway, site.client()) as connection:
        for _ in range(2):
            body = b'8\r\n{"limit"\r\n4\r\n: 1}\r\n0\r\n\r\n'
            found = connection.ask(*ASK, list(chunked.items()), body)
            assert (found.status, len(found.json["result"]["entries"])) == (200, 1)
    assert ask(gateway, site, b"0\r\n\r\n", **chunked).status == 400
    broken = ask(gateway, site, b"x\r\n", **chunked)
    assert (broken.status, broken.closing) == (400, True)
    large = ask(gateway, site, b"10001\r\n" + b"y" * 65_537 + b"\r\n0\r\n\r\n", **chunked)
    assert (large.status, large.closing) == (400, True)


def test_who_waits_to_be_told_to_send_the_question(site: Site, gateway: Gateway) -> None:
    with gateway.connect(site.client()) as sock:
        sock.sendall(request(*ASK, [("transfer-encoding", "chunked"), ("expect", "100-continue")]))
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"2\r\n{}\r\n0\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_where_there_is_no_log(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, audit={"enabled": False})) as gateway:
        response = ask(gateway, site, b"{}")
    assert response.status == 400
    assert "audit.enabled is false" in response.json["status"]["error"]
