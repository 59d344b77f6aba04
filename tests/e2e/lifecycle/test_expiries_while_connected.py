"""A certificate or CRL runs out at its moment, and connections that rest on it with it, though nobody asks."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

from support.certificates import certified
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import h2
from support.raw_connection import RawClient, connected
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

LEFT = timedelta(seconds=6)
"""For the gateway to start, and seven clients to connect."""
YEAR = timedelta(days=365)


def test_each_ends_at_its_moment(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + LEFT
    ca, listed, above = (Authority.create(name) for name in ("a CA", "a CA with a CRL", "an intermediate"))
    ending = certified(ca, ca, not_after=end)
    below = certified(above, own_site.authority, not_after=end)
    for name, authority in (("bundled", ending), ("below", below), ("listed", listed)):
        own_site.issue(name, authority=authority, client=True, **CLIENTS["admin"])
    own_site.issue("leaf", client=True, not_before=end - YEAR, lifetime=YEAR, **CLIENTS["admin"])
    bundle = [own_site.authority.certificate_pem, ending.certificate_pem, listed.certificate_pem]
    own_site.write("ca.pem", b"".join(bundle))
    own_site.write("listed.crl", listed.crl_pem(next_update=end))
    config = own_site.write_config(
        upstream.url,
        grpc=grpc_upstream.url,
        tls={"crl": ["listed.crl"], "crl_policy": "where_present"},
        listeners=[{"port": 0, "mode": "tcp", "upstream": upstream.url.removeprefix("http://"), "allow": ["admin"]}],
    )
    with Gateway(config) as gateway, ExitStack() as stack:
        other = stack.enter_context(connected(gateway, own_site.client()))
        clients = {
            name: stack.enter_context(connected(gateway, own_site.client(name)))
            for name in ("leaf", "bundled", "below", "listed")
        }
        calls = stack.enter_context(h2(gateway, own_site, "below"))
        sock = stack.enter_context(gateway.connect(own_site.client("bundled"), port=gateway.ports["TCP"][0]))
        assert time.time() < end.timestamp(), "all are connected in time"
        assert all(client.ended() for client in clients.values())
        assert RawClient(sock).ended()
        assert calls.ended()
        assert datetime.now(UTC) >= end
        other.send(b"GET /collections HTTP/1.1\r\nhost: h\r\n\r\n")
        assert other.response().status == 200
        records = gateway.stop()
    reasons = [record["reason"] for record in records if record.get("event") == "connection"]
    assert sorted(reasons) == ["certificate_expired"] * 5 + ["crl_expired"]
