"""What is bound or opened once is not changed by a reload: it is named, and all else that is new counts."""

from __future__ import annotations

import json
import socket

from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream


def test_a_new_port_is_named_and_not_bound(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Gateway(config) as gateway, Caller(gateway, own_site.client("search")) as search:
        assert json.loads(gateway.ask_admin("/status")[1])["generation"]["restart_needed"] == []
        own_site.edit_config(
            config, service={"http_port": port}, audit={"queue_size": 99}, roles={"search": {"access": "m"}}
        )
        warned = [
            gateway.log.wait(lambda line: "restart only" in line),
            gateway.log.wait(lambda line: "restart only" in line),
        ]
        assert "service.http_port has changed" in warned[0]
        assert "audit.queue_size has changed" in warned[1]
        assert all(" WARNING " in line for line in warned)

        status = json.loads(gateway.ask_admin("/status")[1])
        assert status["generation"]["restart_needed"] == ["service.http_port", "audit.queue_size"]
        assert [one["address"] for one in status["listeners"]] == [f"127.0.0.1:{gateway.port}"]
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        assert search.ask("/collections/docs", "DELETE").status == 200
        with Caller(gateway, own_site.client()) as new:
            assert new.ask().status == 200

        code, body = gateway.ask_admin("/reload", "POST")
        assert code == 200
        assert json.loads(body)["restart_needed"] == ["service.http_port", "audit.queue_size"]


def test_the_old_value_again_needs_no_restart(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    with Gateway(config) as gateway:
        own_site.edit_config(config, admin={"listen": "127.0.0.1:1"})
        gateway.log.wait(lambda line: "admin.listen has changed" in line)
        gateway.reloaded()
        own_site.edit_config(config, admin={"listen": "127.0.0.1:0"})
        gateway.reloaded()
        assert json.loads(gateway.ask_admin("/status")[1])["generation"]["restart_needed"] == []


def test_the_next_start_takes_it(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    own_site.edit_config(config, service={"http_port": port})
    with Gateway(config) as gateway:
        assert gateway.port == port
        assert json.loads(gateway.ask_admin("/status")[1])["generation"]["restart_needed"] == []
