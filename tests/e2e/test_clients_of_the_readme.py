"""The README's lines for gRPC clients are run as they stand: the certificate arrives, and without it nobody does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from qdrant_client import AsyncQdrantClient
from qdrant_client import grpc as pb
from support.gateway import DEADLINE
from support.grpc_client import certificates
from support.site import Site

README = (Path(__file__).parents[2] / "README.md").read_text()
CODE = "".join(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "QdrantClient(" in block)


class Server(grpc.GenericRpcHandler):
    """Wants a client certificate, and answers a listing with its common name as the one collection."""

    def __init__(self, site: Site) -> None:
        self._workers = ThreadPoolExecutor(1)
        self._server = grpc.server(self._workers, handlers=[self])
        pair = [(site.directory / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem")]
        credentials = grpc.ssl_server_credentials([(pair[0], pair[1])], pair[2], require_client_auth=True)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait(DEADLINE)
        self._workers.shutdown()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        assert details.method == "/qdrant.Collections/List"

        def handle(_request: bytes, context: grpc.ServicerContext) -> bytes:
            (name,) = context.auth_context()["x509_common_name"]
            described = pb.CollectionDescription(name=name.decode())
            return bytes(pb.ListCollectionsResponse(collections=[described]).SerializeToString())

        return grpc.unary_unary_rpc_method_handler(handle)


@pytest.fixture
def server(site: Site) -> Iterator[Server]:
    with closing(Server(site)) as running:
        yield running


def lines(site: Site, port: int) -> str:
    """As a reader would make them their own: address and certificates, and nothing else."""
    code = CODE
    for shown, own in (
        ("qdrant.example.org", "localhost"),
        ("grpc_port=6334", f"grpc_port={port}"),
        ('"certs/', f'"{site.directory}/'),
        ('"certs"', f'"{site.directory}"'),
        ("alice.", "admin."),
    ):
        assert shown in code
        code = code.replace(shown, own)
    return code


def test_the_client(site: Site, server: Server) -> None:
    names: dict[str, Any] = {}
    exec(lines(site, server.port), names)  # noqa: S102 - our own lines
    with closing(names["client"]) as client:
        assert [one.name for one in client.get_collections().collections] == ["alice"]


def test_the_asynchronous_client(site: Site, server: Server) -> None:
    async def listed() -> list[str]:
        names: dict[str, Any] = {"AsyncQdrantClient": AsyncQdrantClient}
        exec(lines(site, server.port).replace("= QdrantClient(", "= AsyncQdrantClient("), names)  # noqa: S102 - as above
        try:
            return [one.name for one in (await names["client"].get_collections()).collections]
        finally:
            await names["client"].close()

    assert asyncio.run(listed()) == ["alice"]


def test_the_credentials(site: Site, server: Server) -> None:
    target = f"localhost:{server.port}"
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(**certificates(site, "admin"))) as channel:
        reply = channel.unary_unary("/qdrant.Collections/List")(b"", timeout=DEADLINE)
        assert [one.name for one in pb.ListCollectionsResponse.FromString(reply).collections] == ["alice"]
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(**certificates(site, None))) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/qdrant.Collections/List")(b"", timeout=DEADLINE)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
