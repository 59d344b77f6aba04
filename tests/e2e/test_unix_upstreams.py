"""Upstreams on unix sockets, by path and by abstract name, over REST, gRPC and in TCP mode."""

from __future__ import annotations

import json
import secrets
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcUpstream
from support.raw_request import Client
from support.site import Site
from support.sockets import serving
from support.unix_forward import forwarded
from support.upstream import ScriptedUpstream


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def port_of(url: str) -> int:
    return int(urlsplit(url if "://" in url else f"//{url}").port or 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_protocols(site: Site, shared_upstream: ScriptedUpstream, tmp_path: Path, workers: int) -> None:
    name, path = secrets.token_hex(8), tmp_path / "rest.sock"
    with ExitStack() as stack:
        calls, echoing = stack.enter_context(GrpcUpstream()), stack.enter_context(serving(echo))
        stack.enter_context(forwarded(f"\0{name}", port_of(calls.url)))
        stack.enter_context(forwarded(f"\0{name}.tcp", port_of(echoing)))
        listener = {"port": 0, "mode": "tcp", "upstream": f"unix:@{name}.tcp", "allow": ["admin"]}
        config = site.write_config(f"unix:{path}", grpc=f"unix:@{name}", listeners=[listener], workers=workers)
        gateway = stack.enter_context(Gateway(config))
        client = stack.enter_context(Client(gateway, site.client()))
        assert client.ask().status == 502
        readiness = json.loads(gateway.ask_admin("/status")[1])["readiness"]["headline"]
        assert f"unix:{path}" in readiness
        assert "No such file" in readiness
        with forwarded(str(path), port_of(shared_upstream.url)):
            assert client.ask().status == 200
            sent = bytes(3 << 20)
            assert client.ask("PUT", "/collections/docs/points", body=sent).status == 200
            assert shared_upstream.requests[-1].body == sent
            assert shared_upstream.requests[-1].fields["host"] == "localhost"
        names = ("ca.pem", "admin.key", "admin.pem")
        credentials = grpc.ssl_channel_credentials(*((site.directory / one).read_bytes() for one in names))
        with grpc.secure_channel(f"localhost:{gateway.grpc_port}", credentials) as channel:
            channel.unary_unary("/qdrant.Collections/List")(b"", timeout=DEADLINE)
        with gateway.connect(site.client(), port=gateway.ports["TCP"][0]) as tunnel:
            tunnel.sendall(b"hello")
            assert tunnel.recv(5) == b"hello"


def test_an_upstream_that_takes_nothing_is_given_up(
    site: Site, shared_upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """The rate of a unix socket is measured too."""
    del shared_upstream
    with socket.socket(socket.AF_UNIX) as stalled:
        stalled.bind(str(tmp_path / "s"))
        stalled.listen(8)
        config = site.write_config(
            f"unix:{tmp_path / 's'}", upstream={"rest": f"unix:{tmp_path / 's'}", "response_timeout": 1}
        )
        with Gateway(config) as gateway, Client(gateway, site.client()) as client:
            assert client.ask("PUT", "/collections/docs/points", body=bytes(3 << 20)).status == 504
