"""More connections than allowed, or than the process has descriptors for: told, counted, and over when they are."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from contextlib import ExitStack

import pytest
from support.gateway import Gateway
from support.raw import GET, connected
from support.site import Site
from support.upstream import ScriptedUpstream


def turned_away(gateway: Gateway, context: ssl.SSLContext) -> bool:
    with pytest.raises(OSError, match=r"EOF|reset|closed"), gateway.connect(context) as sock:
        sock.recv(1)
    return True


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"connections": 3}, "limit"),
        ({"connections": 100, "connections_per_address": 3}, "address_limit"),
    ],
)
def test_one_too_many(site: Site, upstream: ScriptedUpstream, limits: dict[str, int], reason: str) -> None:
    with Gateway(site.write_config(upstream.url, limits=limits)) as gateway, ExitStack() as stack:
        clients = [stack.enter_context(connected(gateway, site.client())) for _ in range(3)]
        assert turned_away(gateway, site.client())
        record = gateway.audited(event="connection")
        assert (record["result"], record["reason"]) == ("denied", reason)
        for client in clients:
            client.send(GET)
            assert client.response().status == 200, "those within are served"

        clients[0].sock.close()
        while '"open": 3' in gateway.ask_admin("/status")[1]:
            pass
        with connected(gateway, site.client()) as next_one:
            next_one.send(GET)
            assert next_one.response().status == 200
            assert turned_away(gateway, site.client())


def test_no_descriptors_left(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """Accepting rests, who is connected is told, and all of it is over as soon as there are descriptors again."""
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not installed")
    with ExitStack() as stack:
        client = stack.enter_context(connected(gateway, site.client()))
        waiting = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(40)]
        for sock in waiting:
            stack.callback(sock.close)
        while '"open": 41' not in gateway.ask_admin("/status")[1]:
            pass
        subprocess.run([prlimit, f"--pid={gateway.process.pid}", "--nofile=20:4096"], check=True)

        more = [stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port))) for _ in range(5)]
        assert "cannot accept" in gateway.log.wait(lambda line: "cannot accept" in line)
        client.send(GET)
        response = client.response()
        assert response.status == 503
        assert response.fields["retry-after"] == "1"
        assert gateway.audited(status=503)["reason"] == "overloaded"
        assert upstream.connections == 0

        subprocess.run([prlimit, f"--pid={gateway.process.pid}", "--nofile=4096:4096"], check=True)
        client.send(GET)
        assert client.response().status == 200
        for sock in (*waiting, *more):
            sock.close()
        with connected(gateway, site.client()) as another:
            another.send(GET)
            assert another.response().status == 200
        assert "tlsproxy_accept_errors_total 0.0" not in gateway.ask_admin("/metrics")[1]
