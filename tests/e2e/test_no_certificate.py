"""Who shows no certificate is told so in the handshake, and nobody else hears of it."""

from __future__ import annotations

import socket
import ssl

import pytest
from support.gateway import DEADLINE, Gateway
from support.operator_tools import curl
from support.raw_request import alert
from support.site import Site
from support.upstream import ScriptedUpstream


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (ssl.TLSVersion.TLSv1_3, "TLSV13_ALERT_CERTIFICATE_REQUIRED"),
        (ssl.TLSVersion.TLSv1_2, "SSLV3_ALERT_HANDSHAKE_FAILURE"),
    ],
)
def test_the_alert_reaches_the_client(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, version: ssl.TLSVersion, told: str
) -> None:
    context = site.client(None)
    context.minimum_version = context.maximum_version = version
    assert alert(shared_gateway, context) == told
    record = shared_gateway.audited(event="handshake")
    assert (record["result"], record["reason"]) == ("denied", "no_certificate")
    assert record["remote"] == "127.0.0.1"
    assert shared_upstream.connections == 0


def test_curl_sees_why(site: Site, shared_gateway: Gateway) -> None:
    code, status, _ = curl(shared_gateway, site, None, "/collections")
    assert (code, status) == (56, 0)
    assert shared_gateway.audited(event="handshake")["reason"] == "no_certificate"


def test_not_even_health_is_answered(site: Site, shared_gateway: Gateway) -> None:
    assert alert(shared_gateway, site.client(None)) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    with shared_gateway.connect(site.client(None)) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            sock.recv(1)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET /collections HTTP/1.1\r\nhost: localhost\r\n\r\n", "plaintext_http"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09", "not_tls"),
        (b"\x16\x03\x01", "client_closed"),
    ],
)
def test_what_is_not_tls_is_closed_and_audited(
    shared_gateway: Gateway, shared_upstream: ScriptedUpstream, said: bytes, reason: str
) -> None:
    with socket.create_connection(("127.0.0.1", shared_gateway.port), timeout=DEADLINE) as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    assert shared_gateway.audited(event="handshake", reason=reason)["result"] == "denied"
    assert shared_upstream.connections == 0
