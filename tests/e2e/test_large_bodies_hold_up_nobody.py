"""Whatever a body or a listing makes us look at, others are served in between (REST; gRPC has a file of its own)."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator

import orjson
import pytest
from support.gateway import Gateway
from support.raw_request import Client
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream
from support.waits_meanwhile import longest_wait

ROLES = {"limited": {"access": [{"collection": "docs", "access": "rw"}]}, "admin": {"access": "m"}}
IDENTITIES = [
    {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
    {"name": "limited", "match": {"cn": "ingest-*"}, "role": "limited"},
]
QUERY, LIST, OTHER = "/collections/docs/points/query", "/collections", "/collections/docs"
MANY = gzip.compress(b'{"query":[%b{}]}' % (b'{"a":"b"},' * 300_000))
"""Some ten thousand bytes."""
LISTING = orjson.dumps({"result": {"collections": [{"name": f"secret-{n:020}"} for n in range(150_000)]}})


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(shared_upstream.url, roles=ROLES, identities=IDENTITIES)) as running:
        yield running


def by_path(connection: Connection, request: Received) -> None:
    if request.line == f"GET {LIST} HTTP/1.1":
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(LISTING)
        connection.sock.sendall(head + LISTING)
    else:
        connection.read_body(request)
        connection.sock.sendall(OK)


CASES = {
    "reduced": ("ingest", "GET", LIST, b""),
    "read": ("ingest", "POST", QUERY, MANY),
}


@pytest.mark.parametrize("case", CASES)
def test_others_are_served_meanwhile(
    site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, case: str
) -> None:
    who, method, path, body = CASES[case]
    shared_upstream.answer = by_path
    fields = [("content-encoding", "gzip")] if body else []

    def ask() -> float:
        with Client(gateway, site.client(who)) as client:
            begun = time.monotonic()
            assert client.ask(method, path, fields, body).status == 200
            return time.monotonic() - begun

    with Client(gateway, site.client()) as other:

        def small() -> None:
            assert other.ask("GET", OTHER).status == 200

        small()
        wait, took = longest_wait(ask, small)
    assert wait < took * 2 / 3
