"""A certificate counts from its first second to its last (on open connections: lifecycle/)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from support.gateway import Gateway
from support.raw_request import alert
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
