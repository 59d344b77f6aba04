"""CRLs by policy: for whom they speak, what refuses whom they do not cover, and that nobody is blamed for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from support.gateway import Gateway
from support.gateway_clock import WallClock
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import h2
from support.kept_connection import Caller, enters
from support.raw_connection import RawClient, Truncated
from support.raw_request import alert
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

STEP_CA = x509.UniformResourceIdentifier("https://ca.example/1.0/crl")
BLAMED = {"per_address": {"failed_authentications": 1}}


def scoped(authority: Authority, *revoked: int, **fields: bool) -> bytes:
    """In DER, with an issuing distribution point as step-ca has it."""
    now = datetime.now(UTC)
    entries = [x509.RevokedCertificateBuilder().serial_number(one).revocation_date(now).build() for one in revoked]
    names = {"only_contains_user_certs": False, "only_contains_ca_certs": False, **fields}
    point = x509.IssuingDistributionPoint(
        full_name=[STEP_CA],
        relative_name=None,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
        **names,
    )
    builder = x509.CertificateRevocationListBuilder(
        authority._certificate().subject, now - timedelta(minutes=1), now + timedelta(days=1), [], entries
    )
    crl = builder.add_extension(point, critical=True).sign(authority._key(), hashes.SHA256())
    return crl.public_bytes(serialization.Encoding.DER)


@contextmanager
def everywhere(gateway: Gateway, site: Site, name: str) -> Iterator[list[RawClient]]:
    """REST, gRPC and TCP."""
    with ExitStack() as stack:
        rest, tcp = (
            RawClient(stack.enter_context(gateway.connect(site.client(name), port=port)))
            for port in (gateway.port, gateway.ports["TCP"][0])
        )
        calls = stack.enter_context(h2(gateway, site, name))
        yield [rest, tcp, RawClient(calls.sock)]


def closed(client: RawClient) -> bool:
    """Waits for it."""
    try:
        while client.receive():
            pass
    except Truncated:
        return False
    return True


def test_a_distribution_point(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> None:
    """It counts at once, for new clients and for those that are here."""
    serial = own_site.issue("lost", client=True, **CLIENTS["admin"])
    own_site.write("ca.crl", scoped(own_site.authority))
    tunnel = {"port": 0, "mode": "tcp", "upstream": upstream.url.removeprefix("http://"), "allow": ["admin"]}
    config = own_site.write_config(
        upstream.url, grpc=grpc_upstream.url, listeners=[tunnel], tls={"crl": ["ca.crl"]}, limits=BLAMED
    )
    with Gateway(config) as gateway:
        with everywhere(gateway, own_site, "lost") as lost:
            assert enters(gateway, own_site)
            own_site.replace("ca.crl", scoped(own_site.authority, serial))
            gateway.reloaded()
            assert all(map(closed, lost))
            assert gateway.audited(event="connection")["reason"] == "certificate_revoked"
            assert enters(gateway, own_site)
        assert alert(gateway, own_site.client("lost")) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
        refused = gateway.audited(event="handshake")
        assert (refused["reason"], refused["certificate_serial"]) == ("certificate_revoked", f"{serial:x}")


@pytest.mark.parametrize("policy", ["require", "where_present"])
def test_whom_no_crl_covers(own_site: Site, upstream: ScriptedUpstream, policy: str) -> None:
    """One of two CAs has none, or one for CAs alone. That is the operator's doing: nobody is kept out for trying."""
    listed = Authority.create("listed")
    own_site.issue("listed", authority=listed, client=True, **CLIENTS["admin"])
    own_site.write("ca.pem", own_site.authority.certificate_pem + listed.certificate_pem)
    own_site.write("listed.crl", listed.crl_pem())
    tls = {"crl": ["listed.crl"], "crl_policy": policy}
    with Gateway(own_site.write_config(upstream.url, tls=tls, limits=BLAMED)) as gateway:
        for data in (None, scoped(listed, only_contains_user_certs=True)):
            if data is not None:
                own_site.replace("listed.crl", data)
                gateway.reloaded()
            for _ in range(2):
                assert enters(gateway, own_site, "listed")
                if policy == "where_present":
                    assert enters(gateway, own_site)
                else:
                    assert alert(gateway, own_site.client()) == "TLSV1_ALERT_INTERNAL_ERROR"
                    assert gateway.audited(event="handshake")["reason"] == "crl_missing"
        warnings = " ".join(json.loads(gateway.ask_admin("/status")[1])["generation"]["warnings"])
    assert ("has no CRL while others have" in warnings) == (policy == "require")


@pytest.mark.parametrize("policy", ["deny", "warn"])
def test_a_crl_that_runs_out(own_site: Site, upstream: ScriptedUpstream, policy: str) -> None:
    wall = WallClock(own_site.directory)
    own_site.write("ca.crl", scoped(own_site.authority))
    tls = {"crl": ["ca.crl"], "crl_expired": policy}
    config = own_site.write_config(upstream.url, tls=tls, limits=BLAMED)
    with Gateway(config, **wall.environ) as gateway:
        with Caller(gateway, own_site.client()) as caller:
            assert caller.ask().status == 200
            wall.ahead = 2 * 86400.0
            begun = gateway.log.wait(lambda line: "ERROR" in line and "was to be replaced by" in line)
            assert f"{'degraded' if policy == 'warn' else 'not ready'}: crl: " in begun
            if policy == "warn":
                assert caller.ask().status == 200
            else:
                assert caller.is_closed()
                assert gateway.audited(event="connection")["reason"] == "crl_expired"
        for _ in range(2):
            if policy == "warn":
                assert enters(gateway, own_site)
            else:  # the fault is the gateway's, so the client is not told that its certificate has expired
                assert alert(gateway, own_site.client()) == "TLSV1_ALERT_INTERNAL_ERROR"
                assert gateway.audited(event="handshake")["reason"] == "crl_expired"
        code, body = gateway.ask_admin("/readyz")
        assert (code, json.loads(body)["state"]) == ((200, "degraded") if policy == "warn" else (503, "not_ready"))
        own_site.replace("ca.crl", own_site.authority.crl_pem(number=2))
        assert gateway.ask_admin("/reload", "POST")[0] == 200
        assert enters(gateway, own_site)
        ended = gateway.log.wait(lambda line: "ready again: crl" in line)
        assert f"{0 if policy == 'warn' else 2} refused meanwhile" in ended


@pytest.mark.parametrize("policy", ["require", "where_present"])
def test_a_crl_of_another_scope_gives_back_nothing(own_site: Site, upstream: ScriptedUpstream, policy: str) -> None:
    """It takes what it takes; what only its predecessor revoked stays revoked, and that is told."""
    lost = own_site.issue("lost", client=True, **CLIENTS["admin"])
    stolen = own_site.issue("stolen", client=True, **CLIENTS["admin"])
    own_site.write("ca.crl", own_site.authority.crl_pem([lost], number=9))
    tls = {"crl": ["ca.crl"], "crl_policy": policy}
    with Gateway(own_site.write_config(upstream.url, tls=tls)) as gateway:
        assert not enters(gateway, own_site, "lost")
        own_site.replace("ca.crl", scoped(own_site.authority, stolen))
        assert "of another scope" in gateway.reloaded("partial")["error"]
        assert [enters(gateway, own_site, name) for name in ("lost", "stolen", "admin")] == [False, False, True]
        own_site.replace("ca.crl", own_site.authority.crl_pem([stolen], number=10))
        gateway.reloaded()
        assert [enters(gateway, own_site, name) for name in ("lost", "stolen", "admin")] == [True, False, True]
