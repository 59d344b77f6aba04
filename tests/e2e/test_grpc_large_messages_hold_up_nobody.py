"""Whatever a message makes us look at, others are served in between: a small one may hold much, once it is decoded."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest
from qdrant_client import grpc as pb
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcCall, GrpcUpstream
from support.site import Site
from support.upstream import ScriptedUpstream
from support.waits_meanwhile import longest_wait

from tlsproxy.wire.protobuf import delimited

DOCS = [{"collection": "docs", "access": "rw"}]
ROLES = {
    "limited": {"access": DOCS},
    "tenant": {"access": DOCS, "filter": {"tenant": "acme"}},
    "admin": {"access": "m"},
}
IDENTITIES = [
    {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
    {"name": "limited", "match": {"cn": "ingest-*"}, "role": "limited"},
    {"name": "tenant", "match": {"cn": "nobody"}, "role": "tenant"},
]
UPSERT, LIST, SEARCH = "/qdrant.Points/Upsert", "/qdrant.Collections/List", "/qdrant.Points/Search"
POINT = delimited(3, b"")
"""Without anything in it: a few hundred bytes of gzip for many thousands."""
LISTING = pb.ListCollectionsResponse(
    collections=[pb.CollectionDescription(name=f"secret-{n:020}") for n in range(20_000)]
).SerializeToString()


@pytest.fixture(scope="module")
def upstream_of_all() -> Iterator[GrpcUpstream]:
    with GrpcUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, upstream_of_all: GrpcUpstream) -> Iterator[Gateway]:
    config = site.write_config(shared_upstream.url, grpc=upstream_of_all.url, roles=ROLES, identities=IDENTITIES)
    with Gateway(config) as running:
        yield running


CASES = {
    "scanned": ("ingest", UPSERT, delimited(1, b"docs") + POINT * 720_000),
    "written anew": ("stranger", UPSERT, delimited(1, b"docs") + POINT * 40_000),
    "reduced": ("ingest", LIST, b""),
}


async def by_method(answered: GrpcCall) -> None:
    while await answered.receive() is not None:
        pass
    await answered.send(LISTING if answered.method == LIST else b"")


@pytest.mark.parametrize("case", CASES)
def test_others_are_served_meanwhile(site: Site, gateway: Gateway, upstream_of_all: GrpcUpstream, case: str) -> None:
    client, method, message = CASES[case]
    upstream_of_all.answer = by_method

    def ask() -> float:
        with channel(gateway, site, client) as opened:
            grpc.channel_ready_future(opened).result(DEADLINE)
            begun = time.monotonic()
            assert call(opened, method, message, compression=grpc.Compression.Gzip).code is grpc.StatusCode.OK
            return time.monotonic() - begun

    with channel(gateway, site) as other:
        grpc.channel_ready_future(other).result(DEADLINE)
        search = other.unary_unary(SEARCH)
        wait, took = longest_wait(ask, lambda: search(b"", timeout=DEADLINE))
    assert wait < took / 3
