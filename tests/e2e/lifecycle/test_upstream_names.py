"""Upstreams that are named: a name without an address keeps nobody from starting, and another address is followed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream, replying
from support.h2_raw_client import h2
from support.names import Names
from support.polling import until
from support.raw_connection import GET, RawClient, connected
from support.site import Site
from support.upstream import ScriptedUpstream

NAME = "qdrant.example"
FIRST, SECOND = "127.0.0.1", "127.0.0.2"
UNAVAILABLE = 14


class Place(NamedTuple):
    """Both addresses of the name, with an upstream of each protocol at the same ports."""

    names: Names
    first: ScriptedUpstream
    second: ScriptedUpstream
    first_grpc: GrpcUpstream
    second_grpc: GrpcUpstream

    def gateway(self, site: Site, **upstream: float) -> Gateway:
        listener = {"port": 0, "mode": "tcp", "upstream": f"{NAME}:{self.first.bound_port}", "allow": ["admin"]}
        config = site.write_config(
            f"http://{NAME}:{self.first.bound_port}",
            grpc=f"http://{NAME}:{self.first_grpc.port}",
            listeners=[listener],
            admin={"listen": "127.0.0.1:0"},
            tls={"poll_interval": 3600},
        )
        site.edit_config(config, upstream=upstream)
        return Gateway(config, **self.names.environ)


@pytest.fixture
def place(own_site: Site) -> Iterator[Place]:
    with ExitStack() as stack:
        first = stack.enter_context(ScriptedUpstream())
        second = stack.enter_context(ScriptedUpstream(host=SECOND, port=first.bound_port))
        grpc = stack.enter_context(GrpcUpstream(replying(b"")))
        other = stack.enter_context(GrpcUpstream(replying(b""), f"{SECOND}:{grpc.port}"))
        yield Place(Names(own_site.directory), first, second, grpc, other)


def status(client: RawClient) -> int:
    client.send(GET)
    return client.response().status


def relayed(gateway: Gateway, site: Site) -> bool:
    """Whether a relayed TCP connection reaches an upstream."""
    with gateway.connect(site.client(), port=gateway.ports["TCP"][0]) as sock:
        sock.sendall(GET)
        return sock.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_name_without_an_address_is_waited_for(own_site: Site, place: Place) -> None:
    place.names.point(NAME)
    with place.gateway(own_site) as gateway, connected(gateway, own_site.client()) as client:
        unresolved = gateway.log.wait(lambda line: "not in force yet: upstream.rest:" in line)
        assert f"{NAME} cannot be resolved" in unresolved
        code, parts = gateway.ask_admin("/readyz")
        assert code == 503
        assert "ok" not in {value for name, value in json.loads(parts)["parts"].items() if "upstream" in name}
        client.send(GET)
        response = client.response()
        assert response.status == 502
        assert b"The upstream cannot be reached: its name does not resolve" in response.body
        with h2(gateway, own_site) as calls:
            assert calls.status(calls.call()) == UNAVAILABLE
        assert not relayed(gateway, own_site)

        place.names.point(NAME, FIRST)
        gateway.reloaded()
        assert status(client) == 200
        assert relayed(gateway, own_site)
        with h2(gateway, own_site) as calls:
            assert calls.status(calls.call()) == 0
        until(lambda: gateway.ask_admin("/readyz")[0] == 200)


def test_another_address_is_found_within_the_interval(own_site: Site, place: Place) -> None:
    place.names.point(NAME, FIRST)
    with place.gateway(own_site, resolve_interval=1) as gateway, ExitStack() as stack:
        client = stack.enter_context(connected(gateway, own_site.client()))
        calls = stack.enter_context(h2(gateway, own_site))
        assert (status(client), calls.status(calls.call())) == (200, 0)

        place.names.point(NAME)
        gateway.log.wait(lambda line: "cannot be resolved" in line and "its former addresses serve" in line)
        assert (status(client), calls.status(calls.call())) == (200, 0)

        place.names.point(NAME, SECOND)
        told = gateway.reloaded(reason="names")
        assert f"address upstream.grpc changed: {SECOND} added, {FIRST} removed" in told["changes"]
        gateway.log.wait(lambda line: "can be resolved again" in line)
        assert (status(client), calls.status(calls.call())) == (200, 0)
        assert relayed(gateway, own_site)
        assert (len(place.first.requests), len(place.second.requests)) == (2, 2)
        assert (len(place.first_grpc.calls), len(place.second_grpc.calls)) == (2, 1)
        state = json.loads(gateway.ask_admin("/status")[1])
        assert state["former_upstream"] == {"rest": 0, "grpc": 0, "tcp": 0}, "no connection to what is gone is kept"


@pytest.mark.parametrize("workers", [1, 2])
def test_another_address_is_found_once_a_connection_fails(own_site: Site, workers: int) -> None:
    names = Names(own_site.directory)
    names.point(NAME, FIRST)
    with ExitStack() as stack:
        with ScriptedUpstream() as first:
            port = first.bound_port
            config = own_site.write_config(f"http://{NAME}:{port}", workers=workers)
            own_site.edit_config(config, upstream={"resolve_interval": 3600})
            gateway = stack.enter_context(Gateway(config, **names.environ))
            client = stack.enter_context(connected(gateway, own_site.client()))
            assert status(client) == 200
        stack.enter_context(ScriptedUpstream(host=SECOND, port=port))
        names.point(NAME, SECOND)
        assert status(client) == 502
        gateway.reloaded(reason="names")
        assert status(client) == 200
