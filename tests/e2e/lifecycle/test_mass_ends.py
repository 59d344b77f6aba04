"""Many connections that lose their right in one moment: refused from then on, and closed one after the other."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import h2
from support.raw_connection import GET, RawClient, Truncated, connected
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream
from support.workers import status

from tlsproxy.proxy.core.jitter import FEW


@pytest.fixture
def behind() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE)
        yield server


def status_of(client: RawClient) -> int | None:
    """The answer to one more request; None where the connection has ended."""
    try:
        client.send(GET)
        return client.response().status
    except (Truncated, OSError):
        return None


def ended(client: RawClient) -> bool:
    """Waits for it."""
    with suppress(Truncated):
        while client.receive():
            pass
    return True


def received(end: socket.socket) -> bytes:
    """All that came, until its end."""
    data = b""
    with suppress(ConnectionError):
        while piece := end.recv(100):
            data += piece
    return data


@pytest.mark.parametrize("workers", [1, 2])
def test_a_role_that_all_had(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, behind: socket.socket, workers: int
) -> None:
    config = own_site.write_config(
        upstream.url,
        grpc=grpc_upstream.url,
        workers=workers,
        limits={"end_spread": 1.0},
        listeners=[{"port": 0, "mode": "tcp", "upstream": f"127.0.0.1:{behind.getsockname()[1]}", "allow": ["admin"]}],
    )
    context = own_site.client()
    with Gateway(config) as gateway, ExitStack() as stack:
        enter = stack.enter_context
        other = enter(connected(gateway, own_site.client("search")))
        clients = [enter(connected(gateway, context)) for _ in range(FEW * workers)]
        calls = [enter(h2(gateway, own_site)) for _ in range(4)]
        tunnels = [RawClient(enter(gateway.connect(context, port=gateway.ports["TCP"][0]))) for _ in range(6)]
        ends = [enter(behind.accept()[0]) for _ in tunnels]
        for tunnel in tunnels:
            tunnel.send(b"before")
        assert [end.recv(6) for end in ends] == [b"before"] * 6
        for client in (*clients, other):
            client.send(GET)
            assert client.response().status == 200
        number = len(clients) + len(calls) + len(tunnels)
        assert len(status(gateway)["connections"]["live"]) == number + 1

        own_site.edit_config(config, identities=CONFIG["identities"][1:])
        for _ in range(number):
            assert gateway.audited(event="connection")["reason"] == "no_role"
        asked = [status_of(client) for client in clients]
        assert set(asked) <= {403, None}
        for tunnel in tunnels:
            with suppress(OSError):
                tunnel.send(b"after")
        assert [received(end) for end in ends] == [b""] * 6
        assert all(ended(tunnel) for tunnel in tunnels)
        assert all(one.ended() for one in calls)
        assert all(ended(client) for client in clients)
        other.send(GET)
        assert other.response().status == 200


def test_a_shutdown(own_site: Site, upstream: ScriptedUpstream) -> None:
    """Each is served until its own end comes, which is a clean one."""
    with Gateway(own_site.write_config(upstream.url)) as gateway, ExitStack() as stack:
        clients = [stack.enter_context(connected(gateway, own_site.client())) for _ in range(FEW + 8)]
        for client in clients:
            client.send(GET)
            assert client.response().status == 200
        gateway.process.send_signal(signal.SIGTERM)
        assert all(client.ended() for client in clients)
