"""The real qdrant-client with `prefer_grpc=True` over mutual TLS, synchronous and not, in every role."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client import models as m
from support.gateway import Gateway
from support.qdrant_clients import EmbeddedUpstream, qdrant_by_grpc
from support.site import Site

ROLES = {
    "admin": "m",
    "auditor": "r",
    "reader": [{"collection": "docs", "access": "r"}],
    "writer": [{"collection": "docs", "access": "rw"}],
    "points": [{"collection": "docs", "access": "prw"}],
}
SPACE = m.VectorParams(size=2, distance=m.Distance.DOT)
POINT = m.PointStruct(id=1, vector=[1.0, 0.0], payload={"n": 1})
MISSING = m.PointStruct(id=99, vector=[0.0, 1.0])

READ = frozenset(ROLES)
WRITE = frozenset({"admin", "writer", "points"})
EXTRAS = frozenset({"admin", "writer"})
MANAGE = frozenset({"admin"})
STEPS: dict[str, tuple[frozenset[str], Callable[[Any], Any]]] = {
    "list": (READ, lambda client: client.get_collections()),
    "info": (READ, lambda client: client.get_collection("docs")),
    "exists": (READ, lambda client: client.collection_exists("docs")),
    "aliases": (READ, lambda client: client.get_aliases()),
    "query": (READ, lambda client: client.query_points("docs", query=[1.0, 0.0])),
    "query by id": (READ, lambda client: client.query_points("docs", query=1)),
    "batch": (READ, lambda client: client.query_batch_points("docs", [m.QueryRequest(query=[1.0, 0.0])])),
    "groups": (READ, lambda client: client.query_points_groups("docs", "n", query=[1.0, 0.0])),
    "scroll": (READ, lambda client: client.scroll("docs")),
    "count": (READ, lambda client: client.count("docs")),
    "retrieve": (READ, lambda client: client.retrieve("docs", [1])),
    "facet": (READ, lambda client: client.facet("docs", "n")),
    "upsert": (WRITE, lambda client: client.upsert("docs", [MISSING])),
    "delete": (WRITE, lambda client: client.delete("docs", [99])),
    "payload": (WRITE, lambda client: client.set_payload("docs", {"n": 1}, [1])),
    "vectors": (WRITE, lambda client: client.update_vectors("docs", [m.PointVectors(id=1, vector=[1.0, 0.0])])),
    "updates": (
        WRITE,
        lambda client: client.batch_update_points("docs", [m.DeleteOperation(delete=m.PointIdsList(points=[98]))]),
    ),
    "index": (EXTRAS, lambda client: client.create_payload_index("docs", "n", m.PayloadSchemaType.INTEGER)),
    "create": (MANAGE, lambda client: client.create_collection("more", vectors_config=SPACE)),
    "drop": (MANAGE, lambda client: client.delete_collection("more")),
    "elsewhere": (frozenset({"admin", "auditor"}), lambda client: client.scroll("other")),
}
"""What is done → by whom it may be, and how."""


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[Gateway]:
    for name in (*ROLES, "unmapped"):
        if name != "admin":
            site.issue(name, client=True, common_name=name)
    with EmbeddedUpstream() as embedded:
        config = site.write_config(
            embedded.url,
            grpc=embedded.grpc_url,
            roles={name: {"access": access} for name, access in ROLES.items()},
            identities=[
                {"name": name, "match": {"cn": "alice" if name == "admin" else name}, "role": name} for name in ROLES
            ],
        )
        with Gateway(config) as running, closing(qdrant_by_grpc(QdrantClient, running, site)) as admin:
            for name in ("docs", "other"):
                admin.create_collection(name, vectors_config=SPACE)
            admin.upsert("docs", [POINT])
            yield running


def outcome(error: Exception | None) -> str:
    if error is None:
        return "OK"
    assert isinstance(error, grpc.RpcError), repr(error)
    return str(error.code().name)


def tried(gateway: Gateway, site: Site, name: str) -> dict[str, str]:
    found = {}
    with closing(qdrant_by_grpc(QdrantClient, gateway, site, name)) as client:
        for step, (_, do) in STEPS.items():
            try:
                do(client)
            except grpc.RpcError as error:
                found[step] = outcome(error)
            else:
                found[step] = outcome(None)
    return found


async def tried_async(gateway: Gateway, site: Site, name: str) -> dict[str, str]:
    """All of them at once, but for what must be there before it goes."""
    client = qdrant_by_grpc(AsyncQdrantClient, gateway, site, name)
    at_once = [step for step in STEPS if step not in {"create", "drop"}]
    try:
        ended = await asyncio.gather(*(STEPS[step][1](client) for step in at_once), return_exceptions=True)
        found = {
            step: outcome(one if isinstance(one, Exception) else None) for step, one in zip(at_once, ended, strict=True)
        }
        for step in ("create", "drop"):
            (one,) = await asyncio.gather(STEPS[step][1](client), return_exceptions=True)
            found[step] = outcome(one if isinstance(one, Exception) else None)
    finally:
        await client.close()
    return found


@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("name", ROLES)
def test_every_role(site: Site, gateway: Gateway, name: str, kind: str) -> None:
    found = tried(gateway, site, name) if kind == "synchronous" else asyncio.run(tried_async(gateway, site, name))
    assert found == {step: "OK" if name in may else "PERMISSION_DENIED" for step, (may, _) in STEPS.items()}


def test_a_certificate_without_a_role(site: Site, gateway: Gateway) -> None:
    assert set(tried(gateway, site, "unmapped").values()) == {"PERMISSION_DENIED"}
    assert gateway.audited(reason="no_role")["certificate_subject"] == "CN=unmapped"


def test_what_a_limited_caller_sees(site: Site, gateway: Gateway) -> None:
    with closing(qdrant_by_grpc(QdrantClient, gateway, site, "reader")) as reader:
        assert [one.name for one in reader.get_collections().collections] == ["docs"]
        nearest = reader.query_points("docs", query=[1.0, 0.0]).points[0]  # another test may have left one behind it
        assert (nearest.id, nearest.payload) == (1, {"n": 1})
        with pytest.raises(grpc.RpcError) as caught:
            reader.upsert("docs", [POINT])
    assert caught.value.details() == "Forbidden: Write access to collection docs is required"
