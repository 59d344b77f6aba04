"""What systemd hears of the service (sd_notify): READY, RELOADING, STATUS and STOPPING, each only when it is true."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.gateway import DEADLINE, Gateway
from support.notify_socket import Systemd, listening
from support.raw_connection import GET, connected
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.service.reloader import ReloadResult
from tlsproxy.service.systemd.notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with listening(str(tmp_path / "notify")) as one:
        yield one


def test_a_life(own_site: Site, upstream: ScriptedUpstream, systemd: Systemd) -> None:
    began = time.monotonic_ns() // 1000
    config = own_site.write_config(upstream.url)
    with Gateway(config, NOTIFY_SOCKET=systemd.address) as gateway:
        ready = systemd.next()
        assert ready.pop("READY") == "1"
        status = ready.pop("STATUS")
        assert re.fullmatch(rf"generation 1 since \S+Z \(start\); REST on https://127.0.0.1:{gateway.port}", status)
        assert not ready

        gateway.hang_up()
        reloading = systemd.next()
        assert reloading.pop("RELOADING") == "1"
        assert began < int(reloading.pop("MONOTONIC_USEC")) < time.monotonic_ns() // 1000
        assert reloading == {"STATUS": "reloading"}
        ready = systemd.next()
        assert ready["READY"] == "1"
        assert ready["STATUS"].startswith("generation 1 since ")
        assert "(sighup); REST on " in ready["STATUS"]

        own_site.replace("server.pem", b"no certificate")
        assert systemd.next()["RELOADING"] == "1"
        failed = systemd.next()
        assert failed["READY"] == "1", "the old generation goes on"
        assert re.match(r"generation 1 goes on, reload \(\w+\) FAILED at \S+Z: .*server\.pem", failed["STATUS"])

        with connected(gateway, own_site.client(None)):
            gateway.process.send_signal(signal.SIGTERM)
            assert systemd.next() == {"STOPPING": "1", "STATUS": "draining"}
            gateway.hang_up()
            assert gateway.process.wait(DEADLINE) == 0
        assert systemd.silent(), "nothing is READY after STOPPING"


def test_an_abstract_socket_hears_nothing_before_there_is_service(site: Site, tmp_path: Path) -> None:
    with listening(f"@{tmp_path}"[:100]) as systemd:
        hears_of_a_life_only(site, systemd)


def hears_of_a_life_only(site: Site, systemd: Systemd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = site.write_config("http://127.0.0.1:1", service={"http_port": taken.getsockname()[1]})
        gateway = Gateway(config, NOTIFY_SOCKET=systemd.address)
        assert gateway.process.wait(DEADLINE) == 1
        assert systemd.silent()
    with Gateway(config, NOTIFY_SOCKET=systemd.address):
        assert systemd.next()["READY"] == "1"
    while (told := systemd.next()).keys() == {"STATUS"}:
        assert told["STATUS"].startswith("NOT READY: "), "there is no upstream"
    assert told["STOPPING"] == "1"


def test_nobody_listens(site: Site, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """It serves all the same, and says so."""
    with Gateway(site.write_config(upstream.url), NOTIFY_SOCKET=str(tmp_path / "none")) as gateway:
        gateway.log.wait(lambda line: "systemd could not be notified (READY=1): [Errno 2]" in line)
        with connected(gateway, site.client()) as client:
            client.send(GET)
            assert client.response().status == 200


def test_what_is_said_is_one_line_of_status(systemd: Systemd) -> None:
    notifier = Notifier(systemd.address)
    notifier.serving("REST", ReloadResult("failed", "poll", 0.0, 7, "a file\nREADY=0\x1b[31m" + "x" * 1000))
    told = systemd.next()
    assert told.keys() == {"READY", "STATUS"}
    assert told["READY"] == "1"
    assert r"a file\nREADY=0\x1b[31mxxx" in told["STATUS"]
    assert len(told["STATUS"]) == 400


def test_nothing_is_said_before_anything_is_served(systemd: Systemd) -> None:
    notifier, verdict = Notifier(systemd.address), ReloadResult("ok", "admin", 0.0, 2)
    notifier.reloading()
    notifier.reloaded(verdict)
    assert systemd.silent()
    notifier.stopping()
    notifier.serving("REST", verdict)
    assert systemd.next()["STOPPING"] == "1"
    assert systemd.silent()


def test_it_is_for_one_process_alone() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "42", "HOME": "/"}
    assert Notifier.of(environ, 42).watchdog == 3.0
    assert environ == {"HOME": "/"}, "no child may speak for it"
    assert Notifier.of({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "42"}, 43).watchdog == 0
    assert Notifier.of({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "3000000"}, 43).watchdog == 3.0
    assert Notifier.of({"WATCHDOG_USEC": "3000000"}, 43).watchdog == 0, "there is nobody to tell"
    assert Notifier.of({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "3000000"}, 43).watchdog == 0
