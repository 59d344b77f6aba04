"""A client CA is replaced while its clients are connected: add the new one, move the clients, drop the old one."""

from __future__ import annotations

import json
import ssl

import pytest
from support.gateway import Gateway
from support.kept_connection import Caller
from support.raw_request import alert
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority


def test_add_move_drop(own_site: Site, upstream: ScriptedUpstream) -> None:
    successor = Authority.create("its successor")
    old_client = own_site.client()
    with Gateway(own_site.write_config(upstream.url)) as gateway, Caller(gateway, old_client) as old:
        own_site.issue("moved", authority=successor, client=True, **CLIENTS["admin"])
        # A client trusts the server's CA, which is the old one throughout.
        new_client = own_site.client("moved")
        assert alert(gateway, new_client) == "TLSV1_ALERT_UNKNOWN_CA"
        assert gateway.audited(event="handshake")["reason"] == "unknown_ca"

        own_site.replace("ca.pem", own_site.authority.certificate_pem + successor.certificate_pem)
        gateway.reloaded()
        with Caller(gateway, new_client) as new:
            assert new.ask().status == 200
            assert old.ask().status == 200

            own_site.replace("ca.pem", successor.certificate_pem)
            gateway.reloaded()
            before = len(upstream.requests)
            assert old.is_closed()
            assert gateway.audited(event="connection")["reason"] == "issuer_not_trusted"
            assert len(upstream.requests) == before

            assert new.ask().status == 200
        assert alert(gateway, old_client) == "TLSV1_ALERT_UNKNOWN_CA"
        status = json.loads(gateway.ask_admin("/status")[1])
        assert [each["subject"] for each in status["authorities"]] == ["CN=its successor"]


def test_a_ca_of_the_same_name_is_another_ca(own_site: Site, upstream: ScriptedUpstream) -> None:
    """The name alone, which both have, admits nobody."""
    twin = Authority.create()
    client = own_site.client()
    with Gateway(own_site.write_config(upstream.url)) as gateway, Caller(gateway, client) as old:
        own_site.replace("ca.pem", twin.certificate_pem)
        gateway.reloaded()
        assert old.is_closed()
        assert gateway.audited(event="connection")["reason"] == "issuer_not_trusted"
        assert alert(gateway, client) == "TLSV1_ALERT_UNKNOWN_CA"


def test_a_renewed_ca_certificate_keeps_new_connections_coming(own_site: Site, upstream: ScriptedUpstream) -> None:
    """The clients of an intermediate stay when it, too, is put into the file, and its root leaves."""
    below = own_site.authority.intermediate("below")
    trusting = ssl.create_default_context(cafile=own_site.directory / "ca.pem")
    own_site.issue("leaf", authority=below, client=True, **CLIENTS["admin"])
    trusting.load_cert_chain(own_site.directory / "leaf.pem", own_site.directory / "leaf.key")
    with Gateway(own_site.write_config(upstream.url)) as gateway, Caller(gateway, trusting) as kept:
        assert kept.ask().status == 200
        own_site.replace("ca.pem", below.certificate_pem)
        gateway.reloaded()
        assert kept.ask().status == 200
        with Caller(gateway, trusting) as new:
            assert new.ask().status == 200


@pytest.mark.parametrize("data", [b"", b"\n# to be filled in\n"], ids=["empty", "comments"])
def test_a_file_without_a_ca_never_means_the_systems_roots(
    own_site: Site, upstream: ScriptedUpstream, data: bytes
) -> None:
    client = own_site.client()
    with Gateway(own_site.write_config(upstream.url)) as gateway, Caller(gateway, client) as kept:
        own_site.replace("ca.pem", data)
        assert str(own_site.directory / "ca.pem") in gateway.reloaded("failed")["error"]
        assert kept.ask().status == 200
        with Caller(gateway, client) as new:
            assert new.ask().status == 200
