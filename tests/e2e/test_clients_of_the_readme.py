"""The README's lines for clients are run as they stand, through a gateway: over gRPC, synchronous and not."""

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

README = (Path(__file__).parents[2] / "README.md").read_text()
CODE = "".join(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "QdrantClient(" in block)


@pytest.fixture
def served(site: Site) -> Iterator[Gateway]:
    with EmbeddedUpstream() as qdrant, Gateway(site.write_config(qdrant.url, grpc=qdrant.grpc_url)) as running:
        yield running


def lines(site: Site, gateway: Gateway) -> str:
    """As a reader would make them their own: address and certificates, and nothing else."""
    code = CODE
    for shown, own in (
        ("qdrant.example.org:6333", f"localhost:{gateway.port}"),
        ("grpc_port=6334", f"grpc_port={gateway.grpc_port}"),
        ('"certs/', f'"{site.directory}/'),
        ('"certs"', f'"{site.directory}"'),
        ("alice.", "admin."),
    ):
        assert shown in code
        code = code.replace(shown, own)
    return code


def test_the_client(site: Site, served: Gateway) -> None:
    names: dict[str, Any] = {}
    exec(lines(site, served), names)  # noqa: S102 - our own lines
    with closing(names["client"]) as client:
        assert client.get_collections().collections == []
    assert served.audited(method="list_collections")["api"] == "/qdrant.Collections/List"


def test_the_asynchronous_client(site: Site, served: Gateway) -> None:
    async def listed() -> list[Any]:
        names: dict[str, Any] = {"AsyncQdrantClient": AsyncQdrantClient}
        exec(lines(site, served).replace("= QdrantClient(", "= AsyncQdrantClient("), names)  # noqa: S102 - as above
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
