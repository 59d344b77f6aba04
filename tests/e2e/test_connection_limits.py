"""More connections than allowed: told, counted, and over when they are."""

from __future__ import annotations

import ssl
from contextlib import ExitStack

import pytest
from support.gateway import Gateway
from support.polling import until
from support.raw_connection import GET, connected
from support.site import Site
from support.upstream import ScriptedUpstream


def turned_away(gateway: Gateway, context: ssl.SSLContext) -> bool:
    with pytest.raises(OSError, match=r"EOF|reset|closed"), gateway.connect(context) as sock:
        sock.recv(1)
    return True


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"connections": 3}, "limit"),
        ({"connections": 100, "connections_per_address": 3}, "address_limit"),
    ],
)
def test_one_too_many(
    site: Site, upstream: ScriptedUpstream, limits: dict[str, int], reason: str, workers: int
) -> None:
    with Gateway(site.write_config(upstream.url, limits=limits, workers=workers)) as gateway, ExitStack() as stack:
        clients = [stack.enter_context(connected(gateway, site.client())) for _ in range(3)]
        assert turned_away(gateway, site.client())
        record = gateway.audited(event="connection")
        assert (record["result"], record["reason"]) == ("denied", reason)
        for client in clients:
            client.send(GET)
            assert client.response().status == 200, "those within are served"

        clients[0].sock.close()
        until(lambda: '"open": 3' not in gateway.ask_admin("/status")[1])
        with connected(gateway, site.client()) as next_one:
            next_one.send(GET)
            assert next_one.response().status == 200
            assert turned_away(gateway, site.client())
