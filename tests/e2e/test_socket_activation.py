"""Sockets that systemd holds: they are served where the configuration says so, and refused with a reason elsewhere."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.background_load import BackgroundLoad
from support.gateway import DEADLINE, Gateway
from support.raw_request import ask
from support.site import Site
from support.upstream import ScriptedUpstream

NOWHERE = "http://127.0.0.1:1"


def listening(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


@pytest.fixture
def held() -> Iterator[socket.socket]:
    with listening() as sock:
        yield sock


@pytest.mark.parametrize("workers", [1, 2])
def test_a_socket_outlives_the_process_that_serves_it(
    site: Site, upstream: ScriptedUpstream, held: socket.socket, workers: int
) -> None:
    config = site.write_config(upstream.url, service={"http_port": port_of(held)}, workers=workers)
    with Gateway(config, inherit=[("rest", held)]) as first:
        assert first.port == port_of(held)
        with first.connect(site.client()) as sock:
            assert ask(sock).status == 200
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(DEADLINE) == 0
        with (
            socket.create_connection(("127.0.0.1", first.port), timeout=DEADLINE) as waiting,
            Gateway(config, inherit=[("rest", held)]),
            site.client().wrap_socket(waiting, server_hostname="localhost") as sock,
        ):
            assert ask(sock).status == 200


def test_a_takeover_under_load_loses_nothing(site: Site, upstream: ScriptedUpstream, held: socket.socket) -> None:
    """Clients that keep their connection, and clients that come anew: none of them tries anything twice."""
    config = site.write_config(
        upstream.url, service={"http_port": port_of(held)}, limits={"drain_grace": 10, "drain_timeout": 20}
    )
    load = None
    try:
        for _ in range(2):
            with Gateway(config, inherit=[("rest", held)]) as gateway:
                load = load or BackgroundLoad(site, gateway, kept=4, new=4)
                enough = len(upstream.requests) + 20
                while len(upstream.requests) < enough:
                    gateway.audited(status=200)
                gateway.process.send_signal(signal.SIGTERM)
                assert gateway.process.wait(DEADLINE) == 0
        with Gateway(config, inherit=[("rest", held)]):
            done = load.end() if load else {}
    finally:
        if load:
            load.kill()
    assert done["failures"] == []
    assert done["requests"] == len(upstream.requests) > 40


def test_what_is_not_passed_is_bound(site: Site, upstream: ScriptedUpstream, held: socket.socket) -> None:
    listeners = [{"port": port_of(held), "protocols": ["rest", "grpc"]}]
    config = site.write_config(upstream.url, grpc=NOWHERE, listeners=listeners)
    with Gateway(config, inherit=[("", held)]) as gateway:
        assert gateway.ports["REST and gRPC"] == [port_of(held)]
        for port in (gateway.port, port_of(held)):
            with gateway.connect(site.client(), port=port) as sock:
                assert ask(sock).status == 200


def test_each_is_found_by_its_address(site: Site, upstream: ScriptedUpstream) -> None:
    with listening() as rest, listening() as tcp, listening("::1") as six:
        listeners = [
            {"port": port_of(tcp), "mode": "tcp", "upstream": upstream.url[7:], "allow": ["admin"]},
            {"host": "::1", "port": port_of(six), "protocols": ["rest"]},
        ]
        config = site.write_config(upstream.url, service={"http_port": port_of(rest)}, listeners=listeners)
        with Gateway(config, inherit=[("tcp", tcp), ("rest", six), ("rest", rest)]) as gateway:
            assert gateway.ports == {"REST": [port_of(rest), port_of(six)], "TCP": [port_of(tcp)]}
            descriptors = Path(f"/proc/{gateway.process.pid}/fd")
            assert all("socket:" in str((descriptors / str(number)).readlink()) for number in (3, 4, 5))


def test_one_that_belongs_nowhere_waits_for_a_person(site: Site, held: socket.socket) -> None:
    config = site.write_config(NOWHERE, service={"http_port": port_of(held)})
    gateway = Gateway(config, inherit=[("grpc", held)])
    line = gateway.log.wait(lambda line: "cannot serve" in line)
    assert line.endswith("so its socket unit needs FileDescriptorName=rest")
    assert gateway.process.wait(DEADLINE) == 2
