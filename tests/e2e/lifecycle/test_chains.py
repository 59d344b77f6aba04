"""Staying takes the same as being let in: a chain is judged by names and keys, dates and revocations, as of now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import certified, fingerprint
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import H2Client, fields, h2
from support.kept_connection import Caller
from support.raw_connection import GET, RawClient
from support.raw_request import alert
from support.site import CLIENTS, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

LIST = "/qdrant.Collections/List"


@dataclass
class Live:
    """One client's connections: REST, TCP and gRPC."""

    http: list[RawClient]
    grpc: H2Client

    def go_on(self) -> bool:
        for client in self.http:
            client.send(GET)
        return all(client.response().status == 200 for client in self.http) and self._answers()

    def end(self) -> bool:
        return all(client.receive() == b"" for client in self.http) and self.grpc.ended()

    def _answers(self) -> bool:
        return self.grpc.status(self.grpc.call(b"", fields(LIST))) == 0


@contextmanager
def live(gateway: Gateway, site: Site, name: str) -> Iterator[Live]:
    with ExitStack() as stack:
        ports = gateway.port, gateway.ports["TCP"][0]
        http = [RawClient(stack.enter_context(gateway.connect(site.client(name), port=port))) for port in ports]
        yield Live(http, stack.enter_context(h2(gateway, site, name)))


@pytest.fixture
def running(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> Callable[..., Gateway]:
    tunnel = {"port": 0, "mode": "tcp", "upstream": upstream.url.removeprefix("http://"), "allow": ["admin"]}

    def start(**tls: object) -> Gateway:
        config = own_site.write_config(upstream.url, grpc=grpc_upstream.url, listeners=[tunnel], tls=tls)
        return Gateway(config)

    return start


def enters(gateway: Gateway, site: Site, name: str) -> bool:
    with Caller(gateway, site.client(name)) as caller:
        return caller.ask().status == 200


def test_a_ca_is_issued_anew_crossed_moved_or_joined(own_site: Site, running: Callable[..., Gateway]) -> None:
    root, other = own_site.authority, Authority.create("another")
    middle, again, crossed = root.intermediate("middle"), certified(root, root), certified(root, other)
    own_site.issue("below", authority=middle, client=True, **CLIENTS["admin"])
    own_site.write("trusted.pem", root.certificate_pem)
    files = {
        "issued anew": [again],
        "old and new": [root, again],
        "new": [again],
        "its cross-signed twin": [crossed],
        "another one beside": [other, root],
        "the intermediate too": [root, middle],
    }
    with (
        running(ca_cert="trusted.pem") as gateway,
        live(gateway, own_site, "admin") as direct,
        live(gateway, own_site, "below") as below,
    ):
        for name, authorities in files.items():
            own_site.replace("trusted.pem", b"".join(one.certificate_pem for one in authorities))
            gateway.reloaded()
            assert direct.go_on(), name
            assert below.go_on(), name
            assert enters(gateway, own_site, "admin"), name
        own_site.replace("trusted.pem", middle.certificate_pem)
        gateway.reloaded()
        assert direct.end()
        assert gateway.audited(event="connection")["reason"] == "issuer_not_trusted"
        assert below.go_on()
        own_site.replace("trusted.pem", again.certificate_pem)
        gateway.reloaded()
        assert below.go_on()


def test_another_ca_of_the_name_has_serial_numbers_of_its_own(own_site: Site, running: Callable[..., Gateway]) -> None:
    """A CRL of the former CA says nothing of them."""
    old, new = own_site.authority, Authority.create()
    assert old.certificate_pem != new.certificate_pem
    serial = own_site.issue("moved", authority=new, client=True, **CLIENTS["admin"])
    own_site.write("trusted.pem", old.certificate_pem + new.certificate_pem)
    own_site.write("old.crl", old.crl_pem())
    own_site.write("new.crl", new.crl_pem())
    with (
        running(ca_cert="trusted.pem", crl=["old.crl", "new.crl"]) as gateway,
        live(gateway, own_site, "moved") as moved,
        live(gateway, own_site, "admin") as admin,
    ):
        own_site.replace("old.crl", old.crl_pem([serial], number=2))
        gateway.reloaded()
        assert moved.go_on()
        assert enters(gateway, own_site, "moved")
        own_site.replace("trusted.pem", new.certificate_pem)
        gateway.reloaded()
        assert admin.end()
        assert gateway.audited(event="connection")["reason"] == "issuer_not_trusted"
        assert moved.go_on()


def test_an_identity_that_rests_on_the_digest_of_a_ca_goes_with_it(own_site: Site, upstream: ScriptedUpstream) -> None:
    """A rule that names a certificate of a CA is not met by another certificate of it, on live connections either."""
    root = own_site.authority
    own_site.write("trusted.pem", root.certificate_pem)
    rules = [
        {"name": "digest", "match": {"cn": "ingest-7", "ca_sha256": fingerprint(root)}, "role": "admin"},
        {"name": "name", "match": {"cn": "alice", "ca": root._certificate().subject.rfc4514_string()}, "role": "admin"},
    ]
    config = own_site.write_config(upstream.url, tls={"ca_cert": "trusted.pem"}, identities=rules)
    with (
        Gateway(config) as gateway,
        Caller(gateway, own_site.client("ingest")) as by_digest,
        Caller(gateway, own_site.client("admin")) as by_name,
    ):
        assert by_digest.ask().status == by_name.ask().status == 200
        own_site.replace("trusted.pem", certified(root, root).certificate_pem)
        gateway.reloaded()
        assert by_digest.is_closed()
        assert by_name.ask().status == 200


def test_nobody_is_blamed_for_dates_and_cas_of_ours(own_site: Site, upstream: ScriptedUpstream) -> None:
    """OpenSSL does not say whose certificate it refused: a client of a CA that is out of date, or for servers only."""
    now, day = datetime.now(UTC), timedelta(days=1)
    past, only = Authority.create("past"), Authority.create("for servers")
    expired = certified(past, past, not_after=now - timedelta(seconds=10))
    servers = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    own = only._certificate()
    builder = x509.CertificateBuilder(own.subject, own.subject, own.public_key(), 7, now - day, now + day)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.add_extension(servers, critical=False).sign(only._key(), hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    own_site.write("trusted.pem", own_site.authority.certificate_pem + expired.certificate_pem + pem)
    own_site.issue("past", authority=past, client=True, **CLIENTS["admin"])
    own_site.issue("only", authority=only, client=True, **CLIENTS["admin"])
    own_site.issue("early", client=True, not_before=now + day, **CLIENTS["admin"])
    limits = {"per_address": {"failed_authentications": 1}}
    config = own_site.write_config(upstream.url, tls={"ca_cert": "trusted.pem"}, limits=limits)
    with Gateway(config) as gateway:
        for name, reason in (
            ("past", "certificate_expired"),
            ("only", "certificate_purpose"),
            ("early", "certificate_not_yet_valid"),
        ):
            for _ in range(2):
                assert alert(gateway, own_site.client(name))
                assert gateway.audited(event="handshake")["reason"] == reason
        assert enters(gateway, own_site, "admin")
        warnings = " ".join(json.loads(gateway.ask_admin("/status")[1])["generation"]["warnings"])
    assert "CN=past expired" in warnings
    assert "CN=for servers may not vouch for clients" in warnings
