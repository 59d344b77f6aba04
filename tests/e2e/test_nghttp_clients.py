"""Clients made of nghttp2, an implementation of HTTP/2 beside those of grpc and h2: nghttp as it comes, and h2load."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from qdrant_client.grpc import UpsertPoints
from support.forwarding import Forwarding
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcUpstream, replying
from support.h2_raw_client import SEARCH, message
from support.operator_tools import tool
from support.site import Site

UPSERT = "/qdrant.Points/Upsert"
GRPC = ("-H", "content-type: application/grpc", "-H", "te: trailers")
MANY = 400


def body_file(directory: Path, content: bytes) -> str:
    path = directory / "message"
    path.write_bytes(message(content))
    return str(path)


def nghttp(gateway: Gateway, site: Site, client: str, path: str, *options: str) -> str:
    """What it tells of frames and fields."""
    command = [tool("nghttp"), "-nv", "--no-verify-peer", f"--timeout={DEADLINE:g}s", *GRPC]
    command += [f"--cert={site.directory / f'{client}.pem'}", f"--key={site.directory / f'{client}.key'}", *options]
    done = subprocess.run(
        [*command, f"https://localhost:{gateway.grpc_port}{path}"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="as it comes"),
        pytest.param(("--continuation",), id="field blocks in CONTINUATION frames"),
        pytest.param(("--header-table-size=0",), id="no table for our field blocks"),
        pytest.param(("--header-table-size=1K", "--header-table-size=8K"), id="a table that shrinks, then grows"),
        pytest.param(("--encoder-header-table-size=0",), id="no table for its field blocks"),
        pytest.param(("--window-bits=10", "--connection-window-bits=16"), id="windows of a kilobyte"),
        pytest.param(("--padding=200",), id="padded frames"),
        pytest.param(("--no-dep", "--no-rfc7540-pri"), id="without priorities"),
        pytest.param(("--multiply=40", "--peer-max-concurrent-streams=40"), id="forty calls at once"),
    ],
)
def test_nghttp(
    grpc_gateway: Gateway, site: Site, grpc_upstream: GrpcUpstream, tmp_path: Path, options: tuple[str, ...]
) -> None:
    grpc_upstream.answer = replying(bytes(50_000))
    calls = 40 if "--multiply=40" in options else 1
    said = nghttp(grpc_gateway, site, "admin", SEARCH, f"--data={body_file(tmp_path, b'asked')}", *options)
    assert said.count("grpc-status: 0") == calls
    assert "error" not in said.lower().replace("error_code=no_error", "")
    assert [call.messages for call in grpc_upstream.calls] == [[b"asked"]] * calls
    assert len([line for line in grpc_gateway.stop() if line.get("api") == SEARCH]) == calls


def test_what_is_refused(grpc_gateway: Gateway, site: Site, grpc_upstream: GrpcUpstream, tmp_path: Path) -> None:
    other = UpsertPoints(collection_name="other").SerializeToString()
    said = nghttp(grpc_gateway, site, "ingest", UPSERT, f"--data={body_file(tmp_path, other)}")
    assert "grpc-status: 7" in said
    assert not any(call.messages for call in grpc_upstream.calls)


@pytest.mark.parametrize(
    ("client", "collection", "succeed"), [("admin", "docs", True), ("ingest", "docs", True), ("ingest", "other", False)]
)
def test_h2load(
    grpc_gateway: Gateway,
    site: Site,
    grpc_upstream: GrpcUpstream,
    tmp_path: Path,
    client: str,
    collection: str,
    *,
    succeed: bool,
) -> None:
    """Ten connections with twenty calls at a time, whose messages decide where the role is limited."""
    content = UpsertPoints(collection_name=collection).SerializeToString()
    context = site.client(client)
    context.set_alpn_protocols(["h2"])
    with Forwarding(grpc_gateway.grpc_port, far=context) as forward:
        command = [tool("h2load"), f"--requests={MANY}", "--clients=10", "--max-concurrent-streams=20", *GRPC]
        command += ["-H", ":scheme: https", f"--data={body_file(tmp_path, content)}"]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{forward.port}{UPSERT}"],
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE,
            check=True,
        )
    told = re.search(r"requests: .*", done.stdout)
    assert told is not None, done.stdout
    assert f"{MANY} done, {MANY} succeeded, 0 failed, 0 errored, 0 timeout" in told[0]
    assert len([call for call in grpc_upstream.calls if call.messages]) == (MANY if succeed else 0)
    lines = [line for line in grpc_gateway.stop() if line.get("api") == UPSERT]
    assert len(lines) == MANY
    assert {line["grpc_status"] for line in lines} == {0 if succeed else 7}
