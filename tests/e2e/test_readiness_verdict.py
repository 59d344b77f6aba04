"""Serving means serving: page, status, `/readyz`, metric, systemd and log say the same of what is wrong."""

from __future__ import annotations

import json
import re
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.forked import run
from support.gateway import Gateway
from support.gateway_clock import WallClock
from support.notify_socket import listening
from support.polling import until
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        return int(reserved.getsockname()[1])


def headline(gateway: Gateway, wanted: str) -> str:
    """The headline of `/readyz`, as soon as it begins so; the other places say the same."""
    told = ""

    def begins() -> bool:
        nonlocal told
        told = json.loads(gateway.ask_admin("/readyz")[1])["headline"]
        return told.startswith(wanted)

    until(begins)
    return told


def bad_parts(gateway: Gateway) -> set[str]:
    return set(re.findall(r'tlsproxy_ready{part="(\w+)"} 0', gateway.ask_admin("/metrics")[1]))


def test_an_upstream_that_is_down_is_told_everywhere(site: Site, port: int, tmp_path: Path) -> None:
    with (
        listening(str(tmp_path / "notify")) as systemd,
        Gateway(site.write_config(f"http://127.0.0.1:{port}"), NOTIFY_SOCKET=systemd.address) as gateway,
    ):
        gateway.log.wait(lambda line: "not ready: upstream_rest: " in line and "ERROR" in line)
        told = headline(gateway, "NOT READY: upstream_rest: ")
        assert gateway.ask_admin("/readyz")[0] == 503
        assert told in gateway.ask_admin("/")[1]
        assert json.loads(gateway.ask_admin("/status")[1])["readiness"]["headline"] == told
        for command in (["status"], ["top", "--once"]):
            assert told in run(*command, "--admin", gateway.admin).stdout
        assert bad_parts(gateway) == {"upstream_rest"}
        while told not in systemd.next().get("STATUS", ""):
            pass
        with Client(gateway, site.client()) as client:
            assert [client.ask().status for _ in range(3)] == [502] * 3
            with ScriptedUpstream(port=port):
                line = gateway.log.wait(lambda line: "ready again: upstream_rest" in line)
                assert "3 refused meanwhile" in line
                assert headline(gateway, "serving") == "serving"
        assert systemd.next()["STATUS"].startswith("generation 1 since ")
        assert not bad_parts(gateway)


def test_one_that_goes_is_noticed_by_the_requests_that_fail(own_site: Site, port: int) -> None:
    """With workers too, whose refusals are counted together; and a refused reload costs no readiness."""
    with ExitStack() as stack:
        upstream = stack.enter_context(ExitStack())
        upstream.enter_context(ScriptedUpstream(port=port))
        gateway = stack.enter_context(Gateway(own_site.write_config(f"http://127.0.0.1:{port}", workers=2)))
        own_site.replace("server.pem", b"no certificate")
        gateway.reloaded("failed")
        assert "server.pem" in headline(gateway, "DEGRADED: reload: ")
        assert bad_parts(gateway) == {"reload"}
        assert gateway.ask_admin("/readyz")[0] == 200
        upstream.close()
        with Client(gateway, own_site.client()) as client:
            assert [client.ask().status for _ in range(3)] == [502] * 3
        gateway.log.wait(lambda line: "not ready: upstream_rest: " in line)
        assert gateway.ask_admin("/readyz")[0] == 503
        stack.enter_context(ScriptedUpstream(port=port))
        assert "3 refused meanwhile" in gateway.log.wait(lambda line: "ready again" in line)


def test_wrong_protocols_and_a_certificate_that_runs_out(
    own_site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    """A REST upstream that speaks TLS, which another gateway does; REST where gRPC is expected."""
    wall = WallClock(own_site.directory)
    upstream.answer = upstream.probe = lambda connection, _: connection.sock.sendall(BAD_REQUEST)
    config = own_site.write_config(f"http://127.0.0.1:{gateway.port}", grpc=upstream.url)
    told = run("check", "--connect", "--config", str(config)).stderr
    assert re.search(r"error: upstream\.rest http://\S+: it speaks TLS", told)
    assert re.search(r"error: upstream\.grpc http://\S+: it is Qdrant's REST port", told)
    with Gateway(config, **wall.environ) as other:
        lines = [other.log.wait(lambda line: "not ready: upstream_" in line) for _ in range(2)]
        assert any("speaks TLS" in line for line in lines)
        assert any("swapped" in line for line in lines)
        wall.ahead = 40 * 365 * 86400.0
        assert "expired" in other.log.wait(lambda line: "not ready: server_certificate" in line)
        assert {"server_certificate", "upstream_rest", "upstream_grpc"} <= bad_parts(other)
        assert "server_certificate: the server certificate has expired" in headline(other, "NOT READY")
