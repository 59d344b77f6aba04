"""How many new connections an address may make: more are closed before TLS, and do not flood the audit log."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress

from support.gateway import DEADLINE, Gateway
from support.kept_connection import Caller
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream


def closed_unheard(gateway: Gateway) -> bool:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE) as sock:
        try:
            return sock.recv(1) == b""
        except ConnectionResetError:
            return True


def test_more_are_closed_and_who_is_connected_is_served(own_site: Site, upstream: ScriptedUpstream) -> None:
    per_address = {"handshakes_per_second": 0.01, "burst": 2}
    config = own_site.write_config(upstream.url, limits={"per_address": per_address})
    with (
        Gateway(config) as gateway,
        Client(gateway, own_site.client()) as one,
        Client(gateway, own_site.client()) as other,
    ):
        assert [one.ask().status, other.ask().status] == [200, 200]
        assert all(closed_unheard(gateway) for _ in range(50))
        assert [one.ask().status, other.ask().status] == [200, 200]
        assert 'tlsproxy_connections_total{outcome="handshake_rate"} 50.0' in gateway.ask_admin("/metrics")[1]
        handshakes = gateway.ask_admin("/metrics")[1]
        assert 'tlsproxy_handshakes_total{outcome="ok"} 2.0' in handshakes
        records = [record for record in gateway.stop() if record.get("event") == "connection"]
        assert {(record["result"], record["reason"], record["remote"]) for record in records} == {
            ("denied", "handshake_rate", "127.0.0.1")
        }
        assert sum(record["connections"] for record in records) == 50, "each is counted in exactly one line"
        assert len(records) < 10


def test_who_comes_later_is_admitted_again(own_site: Site, upstream: ScriptedUpstream) -> None:
    per_address = {"handshakes_per_second": 2, "burst": 1}
    config = own_site.write_config(upstream.url, limits={"per_address": per_address})
    with Gateway(config) as gateway:
        for _ in range(2):
            while True:  # within half a second
                with suppress(OSError, EOFError, ssl.SSLError), Caller(gateway, own_site.client()) as client:
                    assert client.ask().status == 200
                    break
            assert closed_unheard(gateway)
