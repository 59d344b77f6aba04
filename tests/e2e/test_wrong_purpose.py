"""A certificate that was issued for something else admits nobody, whoever issued it."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import CN, issue_odd, name
from support.gateway import Gateway
from support.raw_request import alert, ask
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream

OU = ((x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "platform"), (CN, "alice"))


@pytest.mark.parametrize(
    "purpose",
    [
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CODE_SIGNING,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    ],
    ids=lambda oid: oid._name,
)
def test_another_extended_key_usage(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, purpose: x509.ObjectIdentifier
) -> None:
    issue_odd(site, f"purpose-{purpose._name}", name(*OU), purposes=[purpose])
    told = alert(shared_gateway, site.client(f"purpose-{purpose._name}"))
    assert told == "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"
    assert shared_gateway.audited(event="handshake")["reason"] == "certificate_purpose"
    assert not shared_upstream.requests


def test_the_ca_itself(site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    site.write("root.pem", site.authority.certificate_pem)
    site.write("root.key", site.authority.key_pem)
    assert alert(shared_gateway, site.client("root")) == "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"
    assert shared_gateway.audited(event="handshake")["reason"] == "certificate_purpose"
    assert not shared_upstream.requests


def test_a_client_certificate_that_may_sign_others(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    issue_odd(site, "signer", name(*OU), ca=True)
    with shared_gateway.connect(site.client("signer")) as sock:
        response = ask(sock)
    assert response.status == 403
    assert "a CA certificate used as a client's" in response.json["status"]["error"]
    assert shared_gateway.audited(status=403)["reason"] == "certificate_defect"
    assert not shared_upstream.requests


def test_no_extended_key_usage_is_any(site: Site, shared_gateway: Gateway) -> None:
    site.issue("unlimited", **CLIENTS["admin"])
    with shared_gateway.connect(site.client("unlimited")) as sock:
        assert ask(sock).status == 200
    assert shared_gateway.audited(status=200)["role"] == "admin"
