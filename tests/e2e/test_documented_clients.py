"""The Python of README.md and docs/clients.md, run as it stands through a gateway: REST, gRPC, synchronous or not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from qdrant_client import AsyncQdrantClient
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import channel
from support.qdrant_clients import EmbeddedUpstream
from support.site import Site

ROOT = Path(__file__).parents[2]


def python_of(page: str) -> str:
    """The blocks that make a client, one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return "".join(block for block in blocks if "QdrantClient(" in block)


@pytest.fixture
def served(site: Site) -> Iterator[Gateway]:
    with EmbeddedUpstream() as qdrant, Gateway(site.write_config(qdrant.url, grpc=qdrant.grpc_url)) as running:
        yield running


def lines(page: str, site: Site, gateway: Gateway) -> str:
    """As a reader would make them their own: address and certificates, and nothing else."""
    code = python_of(page)
    for shown, own in (
        ("qdrant.example.org:6333", f"localhost:{gateway.port}"),
        ("grpc_port=6334", f"grpc_port={gateway.grpc_port}"),
        ('"certs/', f'"{site.directory}/'),
        ('"certs"', f'"{site.directory}"'),
        ("alice.", "admin."),
    ):
        code = code.replace(shown, own)
    assert "certs/" not in code
    assert "example.org" not in code
    return code


@pytest.mark.parametrize(
    ("page", "api"), [("README.md", "/collections"), ("docs/clients.md", "/qdrant.Collections/List")]
)
def test_the_client(page: str, api: str, site: Site, served: Gateway) -> None:
    names: dict[str, Any] = {}
    exec(lines(page, site, served), names)  # noqa: S102 - our own lines
    with closing(names["client"]) as client:
        assert client.get_collections().collections == []
    assert served.audited(method="list_collections")["api"] == api


def test_the_asynchronous_client(site: Site, served: Gateway) -> None:
    async def listed() -> list[Any]:
        names: dict[str, Any] = {"AsyncQdrantClient": AsyncQdrantClient}
        code = lines("docs/clients.md", site, served).replace("= QdrantClient(", "= AsyncQdrantClient(")
        exec(code, names)  # noqa: S102 - as above
        try:
            return list((await names["client"].get_collections()).collections)
        finally:
            await names["client"].close()

    assert asyncio.run(listed()) == []
    assert served.audited(method="list_collections")["api"] == "/qdrant.Collections/List"


def test_without_the_certificate_nobody_is_there(site: Site, served: Gateway) -> None:
    with channel(served, site, None) as nobody, pytest.raises(grpc.RpcError) as refused:
        nobody.unary_unary("/qdrant.Collections/List")(b"", timeout=DEADLINE)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert served.audited(event="handshake")["reason"] == "no_certificate"
