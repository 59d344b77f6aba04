"""An input that is not valid yet waits beside the old, and is published by itself at its moment."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from support.gateway import Gateway
from support.gateway_clock import WallClock
from support.kept_connection import Caller, enters
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

AHEAD = timedelta(seconds=3)


def soon() -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + AHEAD


def valid_from(authority: Authority, start: datetime) -> bytes:
    """The CA's certificate, issued anew."""
    own = authority._certificate()
    certificate = x509.CertificateBuilder(
        own.subject, own.subject, own.public_key(), x509.random_serial_number(), start, start + timedelta(days=9),
        list(own.extensions),
    ).sign(authority._key(), hashes.SHA256())  # fmt: skip
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_serves_by_itself_at_its_moment(own_site: Site, upstream: ScriptedUpstream, workers: int) -> None:
    own_site.write("a.crl", own_site.authority.crl_pem())
    config = own_site.write_config(upstream.url, tls={"crl": ["a.crl"], "poll_interval": 60}, workers=workers)
    client = own_site.client()
    bob = own_site.client("search")
    old = own_site.serial("server")
    with Gateway(config) as gateway, Caller(gateway, bob) as kept:
        start = soon()
        new = own_site.issue(
            "server", common_name="localhost", dns=["localhost"], ips=["127.0.0.1"], server=True, not_before=start
        )
        crl = own_site.authority.crl_pem([own_site.serial("search")], number=2, this_update=start)
        own_site.replace("a.crl", crl)
        own_site.replace("ca.pem", valid_from(own_site.authority, start))
        status, body = gateway.ask_admin("/reload", "POST")
        told = json.loads(body)
        assert (status, told["result"], told["generation"]) == (409, "failed", 1)
        waiting = {one["input"]: one for one in told["inputs"] if one["state"] != "published"}
        assert waiting.keys() == {"certificate", "authorities", "crl"}
        assert {(one["state"], one["until"], one["kept"]) for one in waiting.values()} == {
            ("waits", start.timestamp(), True)
        }
        with Caller(gateway, bob) as another, Caller(gateway, client) as alice:
            assert [kept.ask().status, another.ask().status, alice.ask().status] == [200, 200, 200]
            assert alice.server_serial == old
        record = gateway.reloaded("ok", reason="time")
        assert record["generation"] == 2
        assert kept.is_closed()
        with Caller(gateway, client) as alice:
            assert alice.ask().status == 200
            assert alice.server_serial == new
        assert json.loads(gateway.ask_admin("/status")[1])["last_reload"]["error"] == ""


@pytest.mark.parametrize("policy", ["require", "where_present"])
def test_at_the_start_too(own_site: Site, upstream: ScriptedUpstream, policy: str) -> None:
    """Another CRL file has what counts until then."""
    wall, start = WallClock(own_site.directory), soon() + timedelta(hours=1)
    own_site.write("current.crl", own_site.authority.crl_pem([own_site.serial("search")]))
    own_site.write("early.crl", own_site.authority.crl_pem(number=2, this_update=start))
    tls = {"crl": ["early.crl", "current.crl"], "poll_interval": 60, "crl_policy": policy}
    with Gateway(own_site.write_config(upstream.url, tls=tls), **wall.environ) as gateway:
        assert enters(gateway, own_site)
        assert not enters(gateway, own_site, "search")
        assert gateway.audited(reason="certificate_revoked")
        wall.ahead = 2 * 3600.0
        assert gateway.reloaded("ok", reason="clock")["generation"] == 2
        (used,) = json.loads(gateway.ask_admin("/status")[1])["crls"]
        assert (used["number"], used["count"]) == (2, 0)
