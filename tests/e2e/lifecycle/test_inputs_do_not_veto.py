"""The loss of a right is published whatever is wrong with another input; the rest keeps its last good state."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.gateway import Gateway
from support.gateway_clock import WallClock
from support.kept_connection import Caller
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

RULES: list[dict[str, Any]] = CONFIG["identities"]
WITHOUT_BOB = [rule for rule in RULES if rule["name"] != "search-svc"]
GONE = Authority.create("gone")
KEYS = [{"name": "ci", "file": "ci.key", "role": "admin"}]


def nothing(_site: Site, _config: Path) -> None:
    """Inputs that were good when they were published have aged."""


def mismatched(site: Site, _config: Path) -> None:
    site.replace("server.key", site.authority.issue(common_name="localhost", server=True).key_pem)


def missing(site: Site, _config: Path) -> None:
    (site.directory / "server.key").unlink()


def broken_crl(site: Site, _config: Path) -> None:
    site.replace("gone.crl", b"-----BEGIN X509 CRL-----\n")


def crl_of_a_removed_ca(site: Site, _config: Path) -> None:
    site.replace("ca.pem", site.authority.certificate_pem)


def no_address(site: Site, config: Path) -> None:
    site.edit_config(config, upstream={"grpc": "http://[::1]:1", "rest": "http://nowhere.invalid:1"})


def bad_secret(site: Site, _config: Path) -> None:
    site.replace("ci.key", b"two\nlines\n")


FAULTS = {nothing: 200, mismatched: 409, missing: 409, broken_crl: 409, crl_of_a_removed_ca: 200, bad_secret: 409}


def verdict(gateway: Gateway) -> tuple[int, dict[str, Any]]:
    status, body = gateway.ask_admin("/reload", "POST")
    return status, json.loads(body)


def test_a_rule_that_goes_takes_its_holder_along(own_site: Site, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    wall = WallClock(tmp_path)
    own_site.issue("server", common_name="localhost", dns=["localhost"], server=True, lifetime=timedelta(days=1))
    own_site.write("ca.pem", own_site.authority.certificate_pem + GONE.certificate_pem)
    own_site.write("root.crl", own_site.authority.crl_pem(next_update=datetime.now(UTC) + timedelta(days=9)))
    own_site.write("gone.crl", GONE.crl_pem(next_update=datetime.now(UTC) + timedelta(days=1)))
    own_site.write("ci.key", b"a-key-of-its-own\n")
    config = own_site.write_config(
        upstream.url, tls={"crl": ["root.crl", "gone.crl"], "poll_interval": 60}, keys=KEYS, workers=2
    )
    good = {path.name: path.read_bytes() for path in own_site.directory.iterdir() if path.is_file()}
    serial = own_site.serial("server")
    with Gateway(config, **wall.environ) as gateway:
        number = 1
        for spoil, expected in FAULTS.items():
            if spoil is nothing:
                wall.ahead = 2 * 86400
                gateway.reloaded("ok", reason="clock")
            spoil(own_site, config)
            with Caller(gateway, own_site.client("search")) as bob, Caller(gateway, own_site.client("admin")) as alice:
                assert bob.ask().status == 200
                own_site.edit_config(config, identities=WITHOUT_BOB)
                status, told = verdict(gateway)
                assert (status, told["generation"]) == (expected, number + 1), spoil.__name__
                # A notification may have been faster.
                assert told["result"] in ({"ok", "unchanged"} if expected == 200 else {"partial", "failed"})
                states = {one["input"]: one["state"] for one in told["inputs"] if one["state"] != "published"}
                assert set(states.values()) <= {"refused"}
                gateway.audited(event="connection", reason="no_role")
                with pytest.raises((EOFError, ConnectionError)):
                    bob.ask()
                assert alice.ask().status == 200
                assert alice.server_serial == serial
            for name, data in good.items():
                own_site.replace(name, data)
            status, told = verdict(gateway)
            assert (status, told["error"]) == (200, "")
            number = told["generation"]


def test_a_name_that_does_not_resolve_keeps_nobody_in_and_is_asked_for_again(
    own_site: Site, upstream: ScriptedUpstream
) -> None:
    config = own_site.write_config(upstream.url, tls={"poll_interval": 60})
    with Gateway(config) as gateway, Caller(gateway, own_site.client("search")) as bob:
        assert bob.ask().status == 200
        no_address(own_site, config)
        own_site.edit_config(config, identities=WITHOUT_BOB)
        status, told = verdict(gateway)
        assert (status, told["result"] in {"partial", "failed"}) == (409, True)
        (name,) = [one for one in told["inputs"] if one["state"] != "published"]
        assert (name["input"], name["name"], name["state"], name["kept"]) == ("name", "upstream.rest", "retried", False)
        gateway.audited(event="connection", reason="no_role")
        with Caller(gateway, own_site.client("admin")) as alice:
            assert alice.ask().status == 502
        assert 'tlsproxy_inputs{input="name",state="retried"} 1' in gateway.ask_admin("/metrics")[1]
        own_site.edit_config(config, upstream=yaml.safe_load(config.read_text())["upstream"] | {"rest": upstream.url})
        assert verdict(gateway)[0] == 200


def test_a_refused_configuration_keeps_no_revocation_back(own_site: Site, upstream: ScriptedUpstream) -> None:
    """It names another CRL; the one that serves counts, and is watched, until the configuration is mended."""
    own_site.write("ca.crl", own_site.authority.crl_pem())
    own_site.write("next.crl", own_site.authority.crl_pem(number=2))
    config = own_site.write_config(upstream.url, tls={"crl": ["ca.crl"]})
    with Gateway(config) as gateway, Caller(gateway, own_site.client("search")) as bob:
        assert bob.ask().status == 200
        unnamed = {"ca": "CN=nobody", "dns": ["nobody.example"]}
        own_site.edit_config(config, tls={"crl": ["next.crl"], "ca_constraints": [unnamed]})
        gateway.reloaded("failed")
        own_site.replace("ca.crl", own_site.authority.crl_pem([own_site.serial("search")], number=2))
        gateway.audited(event="connection", reason="certificate_revoked")
        with pytest.raises((EOFError, ConnectionError)):
            bob.ask()
