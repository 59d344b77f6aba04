"""Several addresses, one gateway: all are bound or none, told, limited together, renewed together, drained together."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
from support import forked
from support.gateway import DEADLINE, Gateway
from support.kept_connection import Caller
from support.polling import until
from support.raw_connection import GET, UPSERT, connected
from support.raw_request import ask
from support.site import Site
from support.upstream import ScriptedUpstream

NOWHERE = "http://127.0.0.1:1"
BOTH = {"port": 0, "protocols": ["grpc", "rest"]}
REST = {"port": 0, "protocols": ["rest"]}


def test_each_is_told_with_its_protocols(site: Site, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    config = site.write_config(upstream.url, grpc=NOWHERE, listeners=[BOTH])
    with Gateway(config, "--ready-file", str(tmp_path / "ready")) as gateway:
        (rest,), (grpc,), (both,) = (gateway.ports[titles] for titles in ("REST", "gRPC", "REST and gRPC"))
        told = [
            {"address": f"127.0.0.1:{rest}", "protocols": ["rest"]},
            {"address": f"127.0.0.1:{grpc}", "protocols": ["grpc"]},
            {"address": f"127.0.0.1:{both}", "protocols": ["rest", "grpc"]},
        ]
        status = json.loads(gateway.ask_admin("/status")[1])
        assert status["listeners"] == told
        assert json.loads((tmp_path / "ready").read_text()) == {"listeners": told, "admin": gateway.admin}
        assert status["upstream"] == {"rest": upstream.url, "grpc": NOWHERE, "idle": 0, "busy": 0}

        code, ready = gateway.ask_admin("/readyz")
        parts = json.loads(ready)["parts"]
        assert (code, parts["upstream_rest"]) == (503, "ok")
        assert "Connection refused" in parts["upstream_grpc"]


def test_without_a_port_of_its_own(site: Site, upstream: ScriptedUpstream) -> None:
    ports = {"http_port": None, "grpc_port": None}
    with Gateway(site.write_config(upstream.url, service=ports, listeners=[REST])) as gateway:
        assert gateway.ports.keys() == {"REST"}
        with gateway.connect(site.client()) as sock:
            assert ask(sock).status == 200


def test_one_that_is_taken_stops_all(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listeners = [REST, {"port": port, "protocols": ["grpc"]}]
        config = site.write_config(NOWHERE, grpc=NOWHERE, listeners=listeners)
        done = forked.run("run", "--config", str(config))
    assert done.returncode == 1
    assert f"cannot serve: 127.0.0.1:{port}: Address already in use; `ss -ltnp 'sport = :{port}'`" in done.stderr
    assert ": serving " not in done.stderr
    assert done.stdout == "", "nobody was ever here"


def test_the_limits_count_all_of_them(site: Site, upstream: ScriptedUpstream) -> None:
    config = site.write_config(upstream.url, listeners=[REST], limits={"connections": 3})
    with Gateway(config) as gateway:
        first, second = gateway.ports["REST"]
        held = [gateway.connect(site.client(), port=port) for port in (first, second, second)]
        for sock in held:
            assert ask(sock).status == 200
        for port in (first, second):
            with pytest.raises(OSError, match=r"EOF|reset|closed"), gateway.connect(site.client(), port=port) as sock:
                sock.recv(1)
            assert gateway.audited(event="connection")["reason"] == "limit"
        assert json.loads(gateway.ask_admin("/status")[1])["connections"]["open"] == 3
        for sock in held:
            sock.close()


def test_a_new_certificate_is_shown_on_all_of_them(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, grpc=NOWHERE, listeners=[BOTH, REST])
    with Gateway(config) as gateway:
        names = {"common_name": "localhost", "dns": ["localhost"], "ips": ["127.0.0.1"]}
        serial = own_site.issue("server", server=True, **names)
        gateway.reloaded()
        ports = [port for ports in gateway.ports.values() for port in ports]
        assert len(ports) == 4
        for port in ports:
            with gateway.connect(own_site.client(), port=port) as sock:
                shown = sock.getpeercert()
                assert shown is not None
                assert int(str(shown["serialNumber"]), 16) == serial


def test_a_changed_list_waits_for_a_restart(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, grpc=NOWHERE, listeners=[BOTH])
    with Gateway(config) as gateway, Caller(gateway, own_site.client()) as caller:
        own_site.edit_config(config, listeners=[REST], service={"grpc_port": None})
        gateway.reloaded()
        status = json.loads(gateway.ask_admin("/status")[1])
        assert status["generation"]["restart_needed"] == ["service.grpc_port", "listeners"]
        assert len(status["listeners"]) == 3
        assert caller.ask().status == 200
        context = own_site.client()
        context.set_alpn_protocols(["h2"])
        for titles in ("gRPC", "REST and gRPC"):
            with gateway.connect(context, port=gateway.ports[titles][0]) as sock:
                assert sock.selected_alpn_protocol() == "h2", "what is bound goes on to serve"


def test_all_are_drained(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, listeners=[REST])) as gateway:
        ports = gateway.ports["REST"]
        with connected(gateway, site.client()) as busy, gateway.connect(site.client(), port=ports[1]) as idle:
            assert ask(idle).status == 200
            busy.send(UPSERT, b"content-length: 70000\r\n\r\n")
            until(lambda: len(upstream.requests) >= 2)
            gateway.process.send_signal(signal.SIGTERM)
            assert idle.recv(1) == b""
            for port in ports:
                with pytest.raises(ConnectionRefusedError):
                    gateway.connect(site.client(), port=port)
            code, status = gateway.ask_admin("/status")
            connections = json.loads(status)["connections"]
            assert (code, connections["open"], connections["draining"]) == (200, 1, True)
            assert len(connections["live"]) == 1
            busy.send(bytes(70_000), GET)
            assert busy.response().status == 200
            assert busy.ended()
        assert gateway.process.wait(DEADLINE) == 0
