"""A new revocation list counts at once: for handshakes, and for those who are connected already."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from support.gateway import Gateway
from support.kept_connection import Caller
from support.raw_request import alert
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority


def test_revoked_then_forgiven(own_site: Site, upstream: ScriptedUpstream) -> None:
    authority, client = own_site.authority, own_site.client("ingest")
    own_site.write("ca.crl", authority.crl_pem(number=1))
    config = own_site.write_config(upstream.url, tls={"crl": ["ca.crl"]})
    with Gateway(config) as gateway, Caller(gateway, client) as ingest, Caller(gateway, own_site.client()) as admin:
        assert ingest.ask("/collections/docs").status == 200
        own_site.replace("ca.crl", authority.crl_pem([own_site.serial("ingest")], number=2))
        gateway.reloaded()

        assert ingest.is_closed()
        assert gateway.audited(event="connection")["reason"] == "certificate_revoked"
        assert alert(gateway, client) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
        assert gateway.audited(event="handshake")["reason"] == "certificate_revoked"
        assert admin.ask().status == 200

        own_site.replace("ca.crl", authority.crl_pem(number=3))
        gateway.reloaded()
        with Caller(gateway, client) as again:
            assert again.ask("/collections/docs").status == 200
        crls = json.loads(gateway.ask_admin("/status")[1])["crls"]
        assert [(crl["number"], crl["count"]) for crl in crls] == [(3, 0)]


def test_a_list_that_is_added_to_the_configuration(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    own_site.write("ca.crl", own_site.authority.crl_pem([own_site.serial("search")]))
    with Gateway(config) as gateway, Caller(gateway, own_site.client("search")) as search:
        assert search.ask().status == 200
        own_site.edit_config(config, tls={"crl": ["ca.crl"]})
        gateway.reloaded()
        assert search.is_closed()
        assert gateway.audited(event="connection")["reason"] == "certificate_revoked"


def test_a_list_that_cannot_be_used_leaves_the_revocations_in_force(own_site: Site, upstream: ScriptedUpstream) -> None:
    authority, now = own_site.authority, datetime.now(UTC)
    revoked, client = own_site.serial("ingest"), own_site.client("ingest")
    own_site.write("ca.crl", authority.crl_pem([revoked], number=5, this_update=now - timedelta(hours=1)))
    older = authority.crl_pem(number=4, this_update=now - timedelta(hours=2), next_update=now + timedelta(hours=1))
    unusable = {
        "older than the one in use": older,
        "was to be replaced by": authority.crl_pem(
            number=6, this_update=now - timedelta(minutes=30), next_update=now - timedelta(seconds=1)
        ),
        "in the future": authority.crl_pem(number=6, this_update=now + timedelta(hours=1)),
        "is not signed by a CA of tls.ca_cert": Authority.create().crl_pem(number=6),
        "is empty": b"",
    }
    with Gateway(own_site.write_config(upstream.url, tls={"crl": ["ca.crl"]})) as gateway:
        with Caller(gateway, own_site.client()) as admin:
            for reason, data in unusable.items():
                own_site.replace("ca.crl", data)
                error = gateway.reloaded("failed")["error"]
                assert error.startswith(str(own_site.directory / "ca.crl"))
                assert reason in error
                assert alert(gateway, client) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
                assert admin.ask().status == 200
        (own_site.directory / "ca.crl").unlink()
        assert "does not exist" in gateway.reloaded("failed")["error"]
        assert alert(gateway, client) == "SSLV3_ALERT_CERTIFICATE_REVOKED"


def test_a_revoked_intermediate_takes_its_clients_with_it(own_site: Site, upstream: ScriptedUpstream) -> None:
    below = own_site.authority.intermediate("below")
    own_site.issue("leaf", authority=below, client=True, common_name="ingest-9")
    own_site.write("ca.crl", own_site.authority.crl_pem(number=1))
    own_site.write("below.pem", below.certificate_pem)
    own_site.write("below.crl", below.crl_pem())
    own_site.write("cas.pem", own_site.authority.certificate_pem + below.certificate_pem)
    config = own_site.write_config(upstream.url, tls={"crl": ["ca.crl", "below.crl"], "ca_cert": "cas.pem"})
    with Gateway(config) as gateway, Caller(gateway, own_site.client("leaf")) as leaf:
        assert leaf.ask("/collections/docs").status == 200
        own_site.replace("ca.crl", own_site.authority.crl_pem([own_site.serial("below")], number=2))
        gateway.reloaded()
        assert leaf.is_closed()
        assert gateway.audited(event="connection")["reason"] == "certificate_revoked"
        with Caller(gateway, own_site.client()) as admin:
            assert admin.ask().status == 200
