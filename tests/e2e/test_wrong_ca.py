"""A certificate counts for what its issuer is worth: another CA's, or nobody's, is refused in the handshake."""

from __future__ import annotations

import json
import socket
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from support.gateway import DEADLINE, Gateway
from support.raw_request import alert, ask
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority


def refused(site: Site, gateway: Gateway, upstream: ScriptedUpstream, client: str) -> None:
    before = len(upstream.requests)
    assert alert(gateway, site.client(client)) == "TLSV1_ALERT_UNKNOWN_CA"
    record = gateway.audited(event="handshake")
    assert (record["result"], record["reason"]) == ("denied", "unknown_ca")
    presented = x509.load_pem_x509_certificate((site.directory / f"{client}.pem").read_bytes())
    named = ("certificate_subject", "certificate_issuer", "certificate_serial", "certificate_sha256")
    assert tuple(record[name] for name in named) == (
        presented.subject.rfc4514_string(),
        presented.issuer.rfc4514_string(),
        f"{presented.serial_number:x}",
        presented.fingerprint(hashes.SHA256()).hex(),
    )
    assert "tls.ca_cert" in record["error"]
    (latest,) = (
        one for one in json.loads(gateway.ask_admin("/status")[1])["refusals"][:1] if one["operation"] == "handshake"
    )
    assert (latest["presented"], latest["identity"]) == (presented.subject.rfc4514_string(), None)
    assert len(upstream.requests) == before


@pytest.mark.parametrize("called", ["another CA", "tlsproxy development CA"])
def test_another_authority_even_of_the_same_name(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, called: str
) -> None:
    label = "other-" + called.replace(" ", "-")
    site.issue(label, authority=Authority.create(called), client=True, **CLIENTS["admin"])
    refused(site, shared_gateway, shared_upstream, label)


def test_a_certificate_that_signed_itself(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    itself = Authority.create("alice")
    site.write("self.pem", itself.certificate_pem)
    site.write("self.key", itself.key_pem)
    refused(site, shared_gateway, shared_upstream, "self")


def test_an_intermediate_that_was_not_sent(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    issued = site.authority.intermediate("issuing").issue(client=True, **CLIENTS["admin"])
    site.write("bare.pem", issued.certificate_pem)
    site.write("bare.key", issued.key_pem)
    refused(site, shared_gateway, shared_upstream, "bare")


def test_an_intermediate_that_was_sent_is_fine(site: Site, shared_gateway: Gateway) -> None:
    site.issue("chained", authority=site.authority.intermediate("issuing"), client=True, **CLIENTS["admin"])
    with shared_gateway.connect(site.client("chained")) as sock:
        assert ask(sock).status == 200
    assert shared_gateway.audited(status=200)["role"] == "admin"


@pytest.mark.parametrize(("trusted", "name"), [("other.pem", "localhost"), ("ca.pem", "qdrant.example.org")])
def test_a_client_that_refuses_the_gateways_certificate(
    site: Site, shared_gateway: Gateway, trusted: str, name: str
) -> None:
    """Its alert is in the audit line: it does not know the CA, or meant another name."""
    site.write("other.pem", Authority.create("other").certificate_pem)
    context = ssl.create_default_context(cafile=site.directory / trusted)
    with (
        socket.create_connection(("127.0.0.1", shared_gateway.port), timeout=DEADLINE) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(sock, server_hostname=name)
    record = shared_gateway.audited(event="handshake")
    ending = "alert_unknown_ca" if trusted == "other.pem" else "alert_bad_certificate"
    assert (record["reason"], record["error"].endswith(ending)) == ("client_alert", True)
