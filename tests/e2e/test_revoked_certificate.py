"""A certificate that the CRL names is refused: in the handshake, and on connections that were there before."""

from __future__ import annotations

from support.gateway import Gateway
from support.raw_request import alert, ask
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream


def test_revoked_while_connected(own_site: Site, upstream: ScriptedUpstream) -> None:
    lost = own_site.issue("lost", client=True, **CLIENTS["admin"])
    gone = own_site.issue("gone", client=True, **CLIENTS["admin"])
    own_site.write("ca.crl", own_site.authority.crl_pem([gone]))
    with Gateway(own_site.write_config(upstream.url, tls={"crl": ["ca.crl"]})) as gateway:
        assert alert(gateway, own_site.client("gone")) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
        assert gateway.audited(event="handshake")["reason"] == "certificate_revoked"
        with gateway.connect(own_site.client("lost")) as sock, gateway.connect(own_site.client("admin")) as other:
            assert ask(sock).status == ask(other).status == 200

            own_site.write("ca.crl", own_site.authority.crl_pem([gone, lost], number=2))
            assert gateway.audited(event="reload")["result"] == "ok"

            assert sock.recv(1) == b""
            record = gateway.audited(event="connection")
            assert (record["result"], record["reason"]) == ("denied", "certificate_revoked")
            assert record["certificate_subject"] == "CN=alice,OU=platform"
            assert ask(other).status == 200
        assert alert(gateway, own_site.client("lost")) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
        assert gateway.audited(event="handshake")["reason"] == "certificate_revoked"
    assert len(upstream.requests) == 3


def test_a_revoked_intermediate(own_site: Site, upstream: ScriptedUpstream) -> None:
    root, issuing = own_site.authority, own_site.authority.intermediate("issuing")
    own_site.issue("below", authority=issuing, client=True, **CLIENTS["admin"])
    own_site.write("both.pem", root.certificate_pem + issuing.certificate_pem)
    own_site.write("root.crl", root.crl_pem())
    own_site.write("issuing.crl", issuing.crl_pem())
    config = own_site.write_config(upstream.url, tls={"ca_cert": "both.pem", "crl": ["root.crl", "issuing.crl"]})
    with Gateway(config) as gateway, gateway.connect(own_site.client("below")) as sock:
        assert ask(sock).status == 200
        serial = issuing._certificate().serial_number
        own_site.write("root.crl", root.crl_pem([serial], number=2))
        assert gateway.audited(event="reload")["result"] == "ok"
        assert sock.recv(1) == b""
        assert gateway.audited(event="connection")["reason"] == "certificate_revoked"
        assert alert(gateway, own_site.client("below")) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
        assert gateway.audited(event="handshake")["reason"] == "certificate_revoked"
    assert len(upstream.requests) == 1
