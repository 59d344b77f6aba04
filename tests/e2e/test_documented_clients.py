"""The recipes of README.md and docs/clients.md, run as they stand through a gateway: Python, JavaScript, curl."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from qdrant_client import AsyncQdrantClient
from qdrant_client import models as m
from support.documented import commands, recipes
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import channel
from support.operator_tools import tool
from support.qdrant_clients import EmbeddedUpstream
from support.site import Site

PAGES = ("README.md", "docs/clients.md")


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[Gateway]:
    with EmbeddedUpstream() as qdrant, Gateway(site.write_config(qdrant.url, grpc=qdrant.grpc_url)) as running:
        yield running


def own(text: str, site: Site, gateway: Gateway) -> str:
    """As a reader would make it their own: address and certificates, and nothing else."""
    for shown, mine in (
        ("qdrant.example.org:6333", f"localhost:{gateway.port}"),
        ("grpc_port=6334", f"grpc_port={gateway.grpc_port}"),
        ("qdrant.example.org", "localhost"),
        ("certs/", f"{site.directory}/"),
        ('"certs"', f'"{site.directory}"'),
        ("alice.", "admin."),
        ("ingest-1.", "ingest."),
    ):
        text = text.replace(shown, mine)
    return text


def client_of(page: str, site: Site, gateway: Gateway, kind: str = "QdrantClient") -> Any:
    """The client that the page's Python makes, block by block."""
    names: dict[str, Any] = {"AsyncQdrantClient": AsyncQdrantClient}
    code = "".join(block for block in recipes(page, "python") if "QdrantClient(" in block)
    exec(own(code, site, gateway).replace("= QdrantClient(", f"= {kind}("), names)  # noqa: S102 - our own lines
    return names["client"]


@pytest.mark.parametrize(
    ("page", "api"), [("README.md", "/collections"), ("docs/clients.md", "/qdrant.Collections/List")]
)
def test_the_client(page: str, api: str, site: Site, served: Gateway) -> None:
    with closing(client_of(page, site, served)) as client:
        assert client.get_collections().collections == []
    assert served.audited(method="list_collections")["api"] == api


def test_the_asynchronous_client(site: Site, served: Gateway) -> None:
    async def listed() -> list[Any]:
        client = client_of("docs/clients.md", site, served, "AsyncQdrantClient")
        try:
            return list((await client.get_collections()).collections)
        finally:
            await client.close()

    assert asyncio.run(listed()) == []
    assert served.audited(method="list_collections")["api"] == "/qdrant.Collections/List"


def test_an_upload_by_several_processes(site: Site, served: Gateway) -> None:
    multiprocessing.set_forkserver_preload(["qdrant_client"])
    points = [m.PointStruct(id=number, vector=[1.0, number]) for number in range(4)]
    with closing(client_of("README.md", site, served)) as client:
        client.create_collection("docs", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
        client.upload_points("docs", points, batch_size=2, parallel=2, wait=True, max_retries=1)
        assert client.count("docs").count == 4
        client.delete_collection("docs")
    uploaded = [served.audited(method="upsert_points") for _ in range(2)]
    assert [(one["role"], one["api"]) for one in uploaded] == [("admin", "/collections/docs/points")] * 2


def test_node(site: Site, served: Gateway, tmp_path: Path) -> None:
    preload, program = recipes("docs/clients.md", "js")
    assert "@qdrant/js-client-rest" in program
    (tmp_path / "mtls.mjs").write_text(own(preload, site, served))
    (tmp_path / "program.mjs").write_text(
        f"console.log(await (await fetch('{served.url('/_tlsproxy/whoami')}')).text());"
    )
    (command,) = commands("docs/clients.md", "node")
    assert json.loads(output(command, tmp_path))["role"] == "admin"


def test_curl(site: Site, served: Gateway, tmp_path: Path) -> None:
    for command in [line for page in PAGES for line in commands(page, "curl")]:
        told = json.loads(output(own(command, site, served), tmp_path))
        expected: Any = "admin" if "whoami" in command else "ok"
        if command.endswith("# 403"):
            expected = {"error": "Forbidden: Access to collection other is required"}
        assert told.get("role", told.get("status")) == expected


def output(command: str, directory: Path) -> str:
    program, *arguments = shlex.split(command, comments=True)
    done = subprocess.run(
        [tool(program), *arguments],
        cwd=directory,
        env={"NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_certificate_nobody_is_there(site: Site, served: Gateway) -> None:
    with channel(served, site, None) as nobody, pytest.raises(grpc.RpcError) as refused:
        nobody.unary_unary("/qdrant.Collections/List")(b"", timeout=DEADLINE)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert served.audited(event="handshake")["reason"] == "no_certificate"
