"""A file that cannot be used changes nothing: the old certificate serves on, and everybody is told why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

SERVER = {"common_name": "localhost", "dns": ["localhost"], "ips": ["127.0.0.1"]}


def truncated(site: Site) -> None:
    site.replace("server.pem", (site.directory / "server.pem").read_bytes()[:300])


def empty(site: Site) -> None:
    site.replace("server.pem", b"")


def garbage(site: Site) -> None:
    site.replace("server.pem", bytes(range(256)) * 4)


def garbage_in_pem(site: Site) -> None:
    site.replace("server.pem", b"-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n")


def another_key(site: Site) -> None:
    site.replace("server.key", site.authority.issue(server=True, **SERVER).key_pem)


def another_certificate(site: Site) -> None:
    site.replace("server.pem", site.authority.issue(server=True, **SERVER).chain_pem)


def no_key(site: Site) -> None:
    site.replace("server.key", (site.directory / "server.pem").read_bytes())


def both(site: Site, **fields: object) -> None:
    issued = site.authority.issue(**(SERVER | {"server": True} | fields))
    site.replace("server.key", issued.key_pem)
    site.replace("server.pem", issued.chain_pem)


def expired(site: Site) -> None:
    both(site, not_before=datetime.now(UTC) - timedelta(days=2), lifetime=timedelta(days=1))


def not_yet_valid(site: Site) -> None:
    both(site, not_before=datetime.now(UTC) + timedelta(days=1))


def for_clients(site: Site) -> None:
    both(site, server=False, client=True)


def an_authority(site: Site) -> None:
    site.replace("server.pem", site.authority.certificate_pem)
    site.replace("server.key", site.authority.key_pem)


def removed(site: Site) -> None:
    (site.directory / "server.key").unlink()


def a_directory(site: Site) -> None:
    (site.directory / "server.pem").unlink()
    (site.directory / "server.pem").mkdir()


def no_authority(site: Site) -> None:
    site.replace("ca.pem", b"")


def not_an_authority(site: Site) -> None:
    site.replace("ca.pem", (site.directory / "server.pem").read_bytes())


def expired_authority(site: Site) -> None:
    site.replace("ca.pem", Authority.create(lifetime=timedelta(seconds=-1)).certificate_pem)


@dataclass(frozen=True, slots=True)
class Serving:
    site: Site
    gateway: Gateway
    serial: int


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One gateway for all mistakes: each has to be recovered from before the next."""
    site = Site(tmp_path_factory.mktemp("site"))
    serial = site.serial("server")
    with ScriptedUpstream() as upstream, Gateway(site.write_config(upstream.url)) as gateway:
        yield Serving(site, gateway, serial)


@pytest.mark.parametrize(
    ("spoil", "file", "reason"),
    [
        (truncated, "server.pem", "cut off"),
        (empty, "server.pem", ""),
        (garbage, "server.pem", ""),
        (garbage_in_pem, "server.pem", "cannot be parsed"),
        (another_key, "server.key", "does not belong to the first certificate"),
        (another_certificate, "server.key", "does not belong to the first certificate"),
        (no_key, "server.key", "holds 0 private keys"),
        (expired, "server.pem", "expired at"),
        (not_yet_valid, "server.pem", "is not valid before"),
        (for_clients, "server.pem", "lacks serverAuth"),
        (an_authority, "server.pem", "is a CA"),
        (removed, "server.key", "does not exist"),
        (a_directory, "server.pem", "is a directory"),
        (no_authority, "ca.pem", ""),
        (not_an_authority, "ca.pem", "is not a CA"),
        (expired_authority, "ca.pem", "every CA in it has expired"),
    ],
)
def test_the_old_certificate_serves_on(serving: Serving, spoil: Callable[[Site], None], file: str, reason: str) -> None:
    site, gateway = serving.site, serving.gateway
    client = site.client()
    good = {name: (site.directory / name).read_bytes() for name in ("server.pem", "server.key", "ca.pem")}
    with Caller(gateway, client) as kept:
        before = status_of(gateway)["generation"]
        spoil(site)
        # The watcher may come first, and between two files of a pair: each says what it saw. This one saw all.
        status, body = gateway.ask_admin("/reload", "POST")
        verdict = json.loads(body)

        path = str(site.directory / file)
        assert (status, verdict["result"]) == (409, "failed")
        assert verdict["error"].startswith(f"{path}: ")
        assert reason in verdict["error"]
        goes_on = f"generation {verdict['generation']} goes on serving: {verdict['error']}"
        assert " ERROR " in gateway.log.wait(lambda line: goes_on in line)
        gateway.reloaded("failed", error=verdict["error"], generation=verdict["generation"])
        after = status_of(gateway)
        assert after["generation"]["digest"] == before["digest"]
        assert (after["last_reload"]["result"], after["last_reload"]["error"]) == ("failed", verdict["error"])
        assert metric(gateway, "tlsproxy_reload_last_attempt_failed") == 1
        assert kept.ask().status == 200
        with Caller(gateway, client) as new:
            assert new.server_serial == serving.serial
            assert new.ask().status == 200

        if (site.directory / file).is_dir():
            (site.directory / file).rmdir()
        for name, data in good.items():
            site.replace(name, data)
        status, body = gateway.ask_admin("/reload", "POST")
        assert status == 200, body
        after = status_of(gateway)
        assert after["generation"]["number"] == before["number"]  # nothing had been published
        assert (after["generation"]["digest"], after["last_reload"]["error"]) == (before["digest"], "")
        assert metric(gateway, "tlsproxy_reload_last_attempt_failed") == 0
        assert kept.ask().status == 200


def test_failures_are_counted_by_what_asked_for_them(own_site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        truncated(own_site)
        trigger = gateway.reloaded("failed")["reason"]
        assert trigger in {"poll", "watch"}
        assert metric(gateway, f'tlsproxy_reloads_total{{result="failed",trigger="{trigger}"}}') == 1


def test_a_bad_file_is_told_of_once_and_not_at_every_look(own_site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(own_site.write_config(upstream.url, tls={"poll_interval": 0.02})) as gateway:
        truncated(own_site)
        gateway.reloaded("failed")
        # A file that is unreadable in another way is a new state. It comes after many looks at the first one.
        for _ in range(20):
            gateway.ask_admin("/readyz")
        empty(own_site)
        gateway.reloaded("failed")
        both(own_site)
        gateway.reloaded("ok")
        events = [record for record in gateway.stop() if record.get("event") == "reload"]
    told = [event["error"] for event in events if event["result"] == "failed"]
    assert len(told) == len(set(told))
    assert events[-1]["result"] == "ok"


def status_of(gateway: Gateway) -> dict[str, Any]:
    return dict(json.loads(gateway.ask_admin("/status")[1]))


def metric(gateway: Gateway, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", gateway.ask_admin("/metrics")[1], re.MULTILINE)
    assert found, series
    return float(found[1])
