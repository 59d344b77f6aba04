"""What makes the gateway look at its files again: a signal, an operator's call, time, a notification, a poll."""

from __future__ import annotations

import json
import os
import threading

from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream

RARELY = 3600
SERVER = {"common_name": "localhost", "dns": ["localhost"], "ips": ["127.0.0.1"], "server": True}


def status_of(gateway: Gateway) -> dict[str, object]:
    return dict(json.loads(gateway.ask_admin("/status")[1]))


def test_sighup(own_site: Site, upstream: ScriptedUpstream) -> None:
    """Files that are the same make no new generation, whoever asks."""
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        gateway.hang_up()
        assert gateway.reloaded(reason="sighup")["generation"] == 1
        assert "the files are the same" in gateway.log.wait(lambda line: "reload (sighup)" in line)
        last = status_of(gateway)["last_reload"]
        assert (last["result"], last["trigger"], last["generation"]) == ("unchanged", "sighup", 1)


def test_an_operators_call_has_the_verdict(own_site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(own_site.write_config(upstream.url, tls={"poll_interval": RARELY})) as gateway:
        code, body = gateway.ask_admin("/reload", "POST")
        verdict = json.loads(body)
        assert (code, verdict["result"], verdict["trigger"], verdict["generation"]) == (200, "unchanged", "admin", 1)
        own_site.replace("server.key", b"")
        code, body = gateway.ask_admin("/reload", "POST")
        verdict = json.loads(body)
        assert (code, verdict["result"], verdict["generation"]) == (409, "failed", 1)
        assert verdict["error"].startswith(str(own_site.directory / "server.key"))
        assert gateway.ask_admin("/reload")[0] == 405


def test_time(own_site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(own_site.write_config(upstream.url, tls={"poll_interval": RARELY, "cert_ttl": 1})) as gateway:
        assert [gateway.reloaded(reason="ttl")["generation"] for _ in range(2)] == [1, 1]


def test_a_notification_does_not_wait_for_the_poll(own_site: Site, upstream: ScriptedUpstream) -> None:
    client = own_site.client()
    config = own_site.write_config(upstream.url, tls={"poll_interval": RARELY})
    with Gateway(config) as gateway:
        own_site.replace(config.name, config.read_bytes() + b"# edited before the first look, or after it\n")
        gateway.reloaded()
        issued = own_site.authority.issue(**SERVER)
        own_site.replace("both.pem", issued.chain_pem + issued.key_pem)
        own_site.edit_config(config, tls={"cert": "both.pem", "key": "both.pem"})
        gateway.reloaded(reason="watch")
        with Caller(gateway, client) as new:
            assert new.server_serial == issued.serial


def test_a_poll_finds_what_nobody_notifies_of(own_site: Site, upstream: ScriptedUpstream) -> None:
    """A write through another name of the file, in a directory that is not watched (as from another machine)."""
    client = own_site.client()
    issued = own_site.authority.issue(**SERVER)
    parts = [(own_site.directory / name).read_bytes() for name in ("server.key", "server.pem")]
    own_site.write("both.pem", b"".join(parts))
    elsewhere = own_site.directory / "elsewhere"
    elsewhere.mkdir()
    os.link(own_site.directory / "both.pem", elsewhere / "both.pem")
    with Gateway(own_site.write_config(upstream.url, tls={"cert": "both.pem", "key": "both.pem"})) as gateway:
        own_site.write("elsewhere/both.pem", issued.chain_pem + issued.key_pem)
        # By time, if it was half written when polled; by watch, if news of the directory before the start come late.
        gateway.reloaded()
        with Caller(gateway, client) as new:
            assert new.server_serial == issued.serial


def test_a_storm_of_signals(own_site: Site, upstream: ScriptedUpstream) -> None:
    client = own_site.client()
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        issued = own_site.authority.issue(**SERVER)
        with Caller(gateway, client) as kept:
            for turn in range(100):
                if turn == 50:
                    own_site.replace("server.key", issued.key_pem)
                    own_site.replace("server.pem", issued.chain_pem)
                gateway.hang_up()
                assert kept.ask().status == 200
                if turn % 10 == 0:
                    with Caller(gateway, client) as new:
                        assert new.ask().status == 200
        assert json.loads(gateway.ask_admin("/reload", "POST")[1])["result"] in {"ok", "unchanged"}
        with Caller(gateway, client) as new:
            assert new.server_serial == issued.serial
            assert new.ask().status == 200
        reloads = [record for record in gateway.stop() if record.get("event") == "reload"]
    assert 1 < len(reloads) < 100


def test_operators_who_ask_at_once_share_a_reload(own_site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(own_site.write_config(upstream.url, tls={"poll_interval": RARELY})) as gateway:
        answers: list[tuple[int, str]] = []
        threads = [
            threading.Thread(target=lambda: answers.append(gateway.ask_admin("/reload", "POST"))) for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [code for code, _ in answers] == [200] * 40
        reloads = [record for record in gateway.stop() if record.get("event") == "reload"]
    assert 1 <= len(reloads) < 20
