"""Certificate and key that arrive one after the other: waited for, also by a start, and an error once that lasts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream

SERVER: dict[str, Any] = {"common_name": "localhost", "dns": ["localhost"], "server": True}
WITHOUT_BOB = [rule for rule in CONFIG["identities"] if rule["name"] != "search-svc"]


def pair_of(gateway: Gateway) -> dict[str, Any]:
    inputs = json.loads(gateway.ask_admin("/status")[1])["last_reload"]["inputs"]
    return next(dict(one) for one in inputs if one["input"] == "certificate")


def test_they_are_waited_for(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    key = (own_site.directory / "server.key").read_bytes()
    own_site.replace("server.key", own_site.authority.issue(**SERVER).key_pem)
    gateway = Gateway(config)
    gateway.log.wait(lambda line: "does not belong to the first certificate" in line and "waiting for it" in line)
    own_site.replace("server.key", key)
    with gateway, Caller(gateway, own_site.client("search")) as bob:
        assert bob.ask("/collections/docs").status == 200
        issued, before = own_site.authority.issue(**SERVER), own_site.serial("server")
        own_site.replace("server.pem", issued.chain_pem)
        assert " INFO " in gateway.log.wait(lambda line: "it may be half replaced until" in line)
        assert pair_of(gateway)["state"] == "waits"
        own_site.edit_config(config, identities=WITHOUT_BOB)
        gateway.audited(event="connection", reason="no_role")
        with pytest.raises((EOFError, ConnectionError)):
            bob.ask()
        with Caller(gateway, own_site.client()) as alice:
            assert alice.server_serial == before
        (own_site.directory / "server.key").unlink()
        gateway.log.wait(lambda line: "server.key: does not exist" in line)
        own_site.replace("server.key", issued.key_pem)
        gateway.reloaded("ok", generation=3)
        with Caller(gateway, own_site.client()) as alice:
            assert alice.server_serial == issued.serial
        assert not [line for line in gateway.log.seen if " ERROR " in line]
        metrics = gateway.ask_admin("/metrics")[1]
        assert "tlsproxy_reload_last_attempt_failed 0.0" in metrics
        assert 'result="failed"' not in metrics

        own_site.edit_config(config, tls={"settle_time": 0.2})
        gateway.reloaded("ok", generation=4)
        own_site.replace("server.pem", own_site.authority.issue(**SERVER).chain_pem)
        assert "does not belong" in gateway.reloaded("failed")["error"]
        assert " ERROR " in gateway.log.wait(lambda line: "generation 4 goes on serving" in line)
        assert pair_of(gateway)["state"] == "refused"
        assert "tlsproxy_reload_last_attempt_failed 1.0" in gateway.ask_admin("/metrics")[1]
