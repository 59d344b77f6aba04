"""Warnings on what ends soon: by the share of the lifetime that is left, daily, and by one of the workers."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from support.gateway import Gateway
from support.gateway_clock import WallClock
from support.site import Site
from support.upstream import ScriptedUpstream

DAY = 86400.0
SERVER: dict[str, Any] = {"common_name": "localhost", "dns": ["localhost"], "server": True}
SOON = "is valid only until"


def kinds(gateway: Gateway) -> set[str]:
    """Names of what the status warns of."""
    warnings = json.loads(gateway.ask_admin("/status")[1])["generation"]["warnings"]
    names = ("CN=localhost", "CN=servers", "the CRL of CN=tlsproxy", "API key nightly")
    return {name for name in names for warning in warnings if f": {name}" in warning and SOON in warning}


def test_it_is_told_in_log_status_page_and_metrics(own_site: Site, upstream: ScriptedUpstream) -> None:
    wall, now = WallClock(own_site.directory), datetime.now(UTC)
    intermediate = own_site.authority.intermediate("servers")
    own_site.issue("server", authority=intermediate, lifetime=timedelta(days=90), **SERVER)
    own_site.write("ca.crl", own_site.authority.crl_pem(next_update=now + timedelta(days=85)))
    expires = (now + timedelta(days=88)).isoformat()
    key = {"name": "nightly", "sha256": "ab" * 32, "role": "search", "expires": expires}
    config = own_site.write_config(upstream.url, workers=2, keys=[key], tls={"crl": ["ca.crl"]})
    with Gateway(config, **wall.environ) as gateway:
        assert kinds(gateway) == set()
        wall.ahead = 79 * DAY
        lines = [gateway.log.wait(lambda line: SOON in line) for _ in range(3)]
        assert all(" WARNING " in line for line in lines)
        for name in ("CN=localhost", "the CRL of CN=", "API key nightly"):
            assert sum(f": {name}" in line for line in lines) == 1
        assert "10 days left, 12 % of its lifetime" in " ".join(lines)
        assert "CN=localhost" in kinds(gateway)
        assert "API key nightly" in kinds(gateway)
        assert "10 days left" in gateway.ask_admin("/")[1]
        metrics = gateway.ask_admin("/metrics")[1]
        found = re.findall(r'^tlsproxy_expiry_timestamp_seconds{kind="(\w+)",name="[^"]+"} \d', metrics, re.MULTILINE)
        assert sorted(found) == ["ca", "crl", "intermediate", "key", "server"]
        own_site.edit_config(config, limits={"connections": 99})
        gateway.log.wait(lambda line: "limits.connections" in line)
        wall.ahead = 80.1 * DAY
        again = [gateway.log.wait(lambda line: SOON in line) for _ in range(3)]
        assert sorted(line.partition(SOON)[0][-20:] for line in again) == sorted(
            line.partition(SOON)[0][-20:] for line in lines
        )
        renewed = own_site.authority.issue(lifetime=timedelta(days=200), **SERVER)
        own_site.replace("server.key", renewed.key_pem)
        own_site.replace("server.pem", renewed.chain_pem)
        gateway.log.wait(lambda line: f"certificate {renewed.serial:x}" in line)
        assert "CN=localhost" not in kinds(gateway)
    assert sum(SOON in line for line in gateway.log.seen) == 6, "and by nobody else, nor at each publication"
