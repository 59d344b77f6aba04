"""The embedded upstream in a process of its own, and the real qdrant-client through a gateway."""

from __future__ import annotations

import atexit
import functools
import json
import ssl
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from qdrant_client import AsyncQdrantClient, QdrantClient

from support.gateway import DEADLINE, Gateway
from support.grpc_channels import certificates
from support.site import Site

Q = TypeVar("Q", QdrantClient, AsyncQdrantClient)


class EmbeddedUpstream:
    """``url`` is that of its REST API, ``grpc_url`` that of its gRPC API.

    One process serves all that use it one after the other: to import what it is made of takes longer than most tests.
    """

    def __init__(self) -> None:
        self.url, self.grpc_url = _urls()

    def __enter__(self) -> Self:
        assert self._collections() == []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in self._collections():
            self._ask("DELETE", f"/collections/{quote(name, safe='')}")

    def _collections(self) -> list[str]:
        return [one["name"] for one in self._ask("GET", "/collections")["collections"]]

    def _ask(self, method: str, path: str) -> Any:
        with closing(HTTPConnection(self.url.removeprefix("http://"), timeout=DEADLINE)) as connection:
            connection.request(method, path)
            return json.load(connection.getresponse())["result"]


@functools.cache
def _urls() -> tuple[str, str]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tlsproxy.demo.upstream", "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate, timeout=DEADLINE)
    assert process.stdout is not None
    ports = json.loads(process.stdout.readline())
    return f"http://127.0.0.1:{ports['rest']}", f"http://127.0.0.1:{ports['grpc']}"


def qdrant(gateway: Gateway, context: ssl.SSLContext, **options: object) -> QdrantClient:
    """Limits are given because qdrant-client otherwise opens a new connection for each request to localhost."""
    return QdrantClient(
        url=f"https://localhost:{gateway.port}",
        verify=context,
        check_compatibility=False,
        limits=httpx.Limits(),
        trust_env=False,
        timeout=int(DEADLINE),
        **options,
    )


def qdrant_by_grpc(kind: type[Q], gateway: Gateway, site: Site, client: str | None = "admin", **options: Any) -> Q:
    """As docs/clients.md has it: what has a gRPC method goes that way, the rest over REST."""
    return kind(
        url=f"https://localhost:{gateway.port}",
        grpc_port=gateway.grpc_port,
        prefer_grpc=True,
        grpc_options={**certificates(site, client), "grpc.use_local_subchannel_pool": 1},
        verify=site.client(client),
        check_compatibility=False,
        limits=httpx.Limits(),
        trust_env=False,
        timeout=int(DEADLINE),
        **options,
    )
