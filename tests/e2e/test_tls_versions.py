"""TLS 1.2 with AEAD ciphers, TLS 1.3, nothing older or weaker; no ticket, and no session that outlives its trust."""

from __future__ import annotations

import json
import ssl

import pytest
from support.gateway import Gateway
from support.operator_tools import s_client
from support.raw_request import ask
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
REQUEST = "GET /collections HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def of_version(site: Site, version: ssl.TLSVersion, client: str = "admin") -> ssl.SSLContext:
    context = site.client(client)
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize(
    ("version", "cipher"),
    [
        (V13, ""),
        (V12, "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (V12, "ECDHE-ECDSA-AES256-GCM-SHA384"),
        (V12, "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ],
)
def test_served(site: Site, shared_gateway: Gateway, version: ssl.TLSVersion, cipher: str) -> None:
    context = of_version(site, version)
    if cipher:
        context.set_ciphers(cipher)
    with shared_gateway.connect(context) as sock:
        assert sock.version() == version.name.replace("v1_", "v1.")
        assert sock.compression() is None
        assert ask(sock).status == 200
        agreed = {"tls_version": sock.version(), "tls_cipher": sock.cipher()[0]}
        assert shared_gateway.audited(method="list_collections").items() >= agreed.items()
        told = json.loads(shared_gateway.ask_admin("/status")[1])
        ((live, counted),) = [*zip(told["connections"]["live"], told["tls"], strict=True)]
        assert live.items() >= agreed.items()
        assert (counted["version"], counted["cipher"], counted["connections"]) == (*agreed.values(), 1)
        assert live["tls_group"] == counted["group"]
        labels = f'cipher="{agreed["tls_cipher"]}",group="{counted["group"] or ""}",side="client"'
        assert f"tlsproxy_handshakes_negotiated_total{{{labels}" in shared_gateway.ask_admin("/metrics")[1]


@pytest.mark.parametrize(
    ("options", "told", "reason"),
    [
        (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "alert protocol version", "protocol_version"),
        (["-tls1", "-cipher", "ALL:@SECLEVEL=0"], "alert protocol version", "protocol_version"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"], "alert handshake failure", "no_shared_cipher"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA"], "alert handshake failure", "no_shared_cipher"),
        (["-tls1_2", "-cipher", "AES128-GCM-SHA256"], "alert handshake failure", "no_shared_cipher"),
        (["-tls1_2", "-cipher", "ADH-AES128-SHA256:@SECLEVEL=0"], "alert handshake failure", "no_shared_cipher"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0"], "alert handshake failure", "no_shared_cipher"),
    ],
    ids=["1.1", "1.0", "CBC-SHA256", "CBC-SHA", "RSA-key-exchange", "anonymous", "NULL"],
)
def test_refused_with_an_alert(site: Site, shared_gateway: Gateway, options: list[str], told: str, reason: str) -> None:
    assert told in s_client(shared_gateway, site, "admin", *options)
    assert shared_gateway.audited(event="handshake")["reason"] == reason


def test_renegotiation_is_refused(site: Site, shared_gateway: Gateway) -> None:
    said = s_client(shared_gateway, site, "admin", "-tls1_2", order="R")
    assert "Secure Renegotiation IS supported" in said
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_no_ticket_is_given(site: Site, shared_gateway: Gateway, version: str) -> None:
    said = s_client(shared_gateway, site, "admin", version, "-crlf", say=REQUEST.replace("\r", ""))
    assert "HTTP/1.1 200 OK" in said
    assert "session ticket" not in said.lower()
    assert "Reused" not in said


def test_an_offered_session_of_tls_1_3_is_not_taken(site: Site, shared_gateway: Gateway) -> None:
    context = of_version(site, V13)
    with shared_gateway.connect(context) as sock:
        assert ask(sock).status == 200
        assert sock.session is None or not sock.session.has_ticket


def test_a_saved_session_does_not_get_a_revoked_certificate_in(own_site: Site, upstream: ScriptedUpstream) -> None:
    serial = own_site.issue("lost", client=True, **CLIENTS["admin"])
    own_site.write("ca.crl", own_site.authority.crl_pem())
    context = of_version(own_site, V12, "lost")
    with Gateway(own_site.write_config(upstream.url, tls={"crl": ["ca.crl"]})) as gateway:
        with gateway.connect(context) as sock:
            session = sock.session
            assert ask(sock).status == 200
            sock.unwrap()
        own_site.write("ca.crl", own_site.authority.crl_pem([serial], number=2))
        gateway.audited(event="reload", result="ok")
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REVOKED"):
            gateway.connect(context, session=session)
        assert gateway.audited(event="handshake")["reason"] == "certificate_revoked"
    assert len(upstream.requests) == 1
