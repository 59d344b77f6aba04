"""A file server that is gone: what was read before stays, all else goes on changing, and the process ends in time."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support.gateway import DEADLINE, Gateway
from support.hung_files import Unanswering, inputs, wait_for_inputs
from support.kept_connection import Caller
from support.operator_tools import operator
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream

TLS = {"crl": ["mount/a.crl"], "poll_interval": 0.1, "read_timeout": 0.3}


@pytest.fixture
def mount(own_site: Site) -> Path:
    """A directory of its own, with a CRL that revokes nobody."""
    (own_site.directory / "mount").mkdir()
    own_site.write("mount/a.crl", own_site.authority.crl_pem())
    return own_site.directory / "mount"


def test_one_that_hangs_is_told_of_and_holds_nothing_up(
    own_site: Site, upstream: ScriptedUpstream, tmp_path: Path, mount: Path
) -> None:
    unanswering = Unanswering(tmp_path / "unanswering")
    config = own_site.write_config(upstream.url, tls=TLS)
    with (
        Gateway(config, **unanswering.environ) as gateway,
        Caller(gateway, own_site.client("search")) as bob,
    ):
        assert bob.ask().status == 200
        unanswering.hang(mount / "a.crl")
        assert "no answer since" in gateway.log.wait(lambda line: "a.crl" in line)
        assert "mount/a.crl: its file system gives no answer since" in inputs(gateway)
        with Caller(gateway, own_site.client()) as alice:
            assert alice.ask().status == 200
            assert operator(gateway, "lock", "alice", "--config", str(config))[0] == 0
            assert alice.is_closed()
        rules = [rule for rule in CONFIG["identities"] if rule["name"] != "search-svc"]
        own_site.edit_config(config, identities=rules)
        gateway.audited(event="connection", reason="no_role")
        gateway.hang_up()
        gateway.log.wait(lambda line: "reload (sighup)" in line)
        code, body = gateway.ask_admin("/reload", "POST")
        assert "a.crl" in body, code
        own_site.write("mount/a.crl", own_site.authority.crl_pem([own_site.serial("admin")], number=2))
        unanswering.answer()
        wait_for_inputs(gateway, "ok")
        unanswering.hang(own_site.directory)
        gateway.log.wait(lambda line: config.name in line)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(DEADLINE) == 0


def test_at_the_start_it_is_told_of_and_the_process_ends(
    own_site: Site, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    unanswering = Unanswering(tmp_path / "unanswering")
    config = own_site.write_config(upstream.url)
    unanswering.hang(config)
    gateway = Gateway(config, **unanswering.environ)
    assert gateway.process.wait(DEADLINE) != 0
    assert f"{config}: its file system gives no answer since" in "".join(gateway.log.drain())
