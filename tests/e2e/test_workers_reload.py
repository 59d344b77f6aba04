"""A reload is of all workers, whole; one that begins later has what serves, whatever the files are."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack

from support.gateway import Gateway
from support.kept_connection import Caller
from support.raw_connection import GET
from support.site import Site
from support.upstream import ScriptedUpstream
from support.workers import at_each, status, workers

NAMES = {"common_name": "localhost", "dns": ["localhost"], "ips": ["127.0.0.1"], "server": True}


def served(site: Site, gateway: Gateway) -> set[int]:
    """The certificates that new connections are shown."""
    serials = set()
    for _ in range(8):
        with Caller(gateway, site.client()) as caller:
            assert caller.ask().status == 200
            serials.add(caller.server_serial)
    return serials


def test_a_good_and_a_bad_one(own_site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(own_site.write_config(upstream.url, workers=2, tls={"poll_interval": 60})) as gateway:
        serial = own_site.issue("server", **NAMES)
        code, body = gateway.ask_admin("/reload", "POST")
        assert (code, json.loads(body)["result"]) in {(200, "ok"), (200, "unchanged")}  # a notification may be faster
        assert served(own_site, gateway) == {serial}

        own_site.write("server.key", own_site.authority.issue(**NAMES).key_pem)
        code, body = gateway.ask_admin("/reload", "POST")
        assert (code, json.loads(body)["result"]) == (409, "failed")
        assert "server.key: does not belong" in json.loads(body)["error"]
        number = status(gateway)["generation"]["number"]
        assert {worker["generation"] for worker in workers(gateway).values()} == {number}
        assert served(own_site, gateway) == {serial}
        assert 'tlsproxy_reloads_total{result="failed",trigger="admin"} 1.0' in gateway.ask_admin("/metrics")[1]

        # The files are bad still: the successor has what serves all the same.
        old = workers(gateway)[1]["pid"]
        os.kill(old, signal.SIGKILL)
        gateway.log.wait(lambda line: "worker 1 has ended" in line)
        gateway.log.wait(lambda line: f"serves generation {number}" in line)
        with ExitStack() as stack:
            for _, client in at_each(gateway, own_site, stack).values():
                shown = client.sock.getpeercert()
                assert shown is not None
                assert int(str(shown["serialNumber"]), 16) == serial


def test_whoever_loses_the_right_is_off_every_worker(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, workers=2)
    with Gateway(config) as gateway, ExitStack() as stack:
        clients = [client for _, client in at_each(gateway, own_site, stack).values()]
        for client in clients:
            client.send(GET)
            assert client.response().status == 200
        own_site.edit_config(config, identities=[{"name": "x", "match": {"cn": "nobody-else"}, "role": "admin"}])
        for client in clients:
            assert client.ended()
        assert {gateway.audited(event="connection")["reason"] for _ in clients} == {"no_role"}
