"""A certificate counts from its first second to its last, on connections that are open too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from support.client import alert
from support.gateway import Gateway
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream


def test_one_that_has_expired(site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    begin = datetime.now(UTC) - timedelta(days=2)
    site.issue("expired", client=True, not_before=begin, lifetime=timedelta(days=1), **CLIENTS["admin"])
    assert alert(shared_gateway, site.client("expired")) == "SSLV3_ALERT_CERTIFICATE_EXPIRED"
    assert shared_gateway.audited(event="handshake")["reason"] == "certificate_expired"
    assert not shared_upstream.requests


def test_one_that_is_not_valid_yet(site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    site.issue("early", client=True, not_before=datetime.now(UTC) + timedelta(hours=1), **CLIENTS["admin"])
    assert alert(shared_gateway, site.client("early")) == "SSLV3_ALERT_BAD_CERTIFICATE"
    assert shared_gateway.audited(event="handshake")["reason"] == "certificate_not_yet_valid"
    assert not shared_upstream.requests


def test_one_that_expires_on_an_open_connection(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    begin = end - timedelta(hours=1)
    site.issue("ending", client=True, not_before=begin, lifetime=timedelta(hours=1), **CLIENTS["admin"])
    with shared_gateway.connect(site.client("ending")) as sock:
        assert sock.recv(1) == b""  # nobody asks: it ends by itself
    assert datetime.now(UTC) >= end
    assert shared_gateway.audited(event="connection")["reason"] == "certificate_expired"
    assert not shared_upstream.requests
