"""A health check over TCP, or over TLS without a certificate from a listed address, is nobody's failure."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest
from support.gateway import DEADLINE, Gateway
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

BALANCER, STRANGER = "127.0.0.2", "127.0.0.3"
FAILURES = 3


@pytest.fixture(scope="module")
def served(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    config = site.write_config(
        shared_upstream.url,
        limits={"per_address": {"failed_authentications": FAILURES}, "drain_grace": 0},
        health={"probe_networks": ["192.0.2.0/24", "2001:db8::/32", f"{BALANCER}/32"]},
    )
    with Gateway(config) as running:
        yield running


def connected(served: Gateway, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), DEADLINE, source_address=(address, 0))


def without_certificate(served: Gateway, site: Site, address: str, version: ssl.TLSVersion) -> None:
    context = site.client(None)
    context.minimum_version = context.maximum_version = version
    with (
        connected(served, address) as sock,
        pytest.raises(ssl.SSLError, match=r"(?i)alert"),
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        tls.recv(1)


def checks_counted(served: Gateway, address: str, number: int) -> None:
    """Waits for the audit lines of so many checks."""
    while number > 0:
        record = served.audited(event="connection", reason="never_asked", remote=address)
        assert record["result"] == "ok"
        assert not record.keys() & {"protocol", "certificate_subject"}
        number -= record["connections"]
    assert number == 0


def refused_lately(served: Gateway) -> list[str]:
    return [one["reason"] for one in json.loads(served.ask_admin("/status")[1])["refusals"]]


def handshakes(served: Gateway) -> set[str]:
    lines = served.ask_admin("/metrics")[1].splitlines()
    return {line.split('"')[1] for line in lines if line.startswith("tlsproxy_handshakes_total")}


def test_connecting_and_closing(site: Site, served: Gateway) -> None:
    for linger in (None, struct.pack("ii", 1, 0)):  # the latter ends with a reset
        for _ in range(FAILURES + 1):
            with connected(served) as sock:
                if linger is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        checks_counted(served, "127.0.0.1", FAILURES + 1)
    with Client(served, site.client()) as client:
        assert client.ask().status == 200
    assert not refused_lately(served)
    assert handshakes(served) <= {"ok"}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_without_a_certificate_from_a_listed_address(site: Site, served: Gateway, version: ssl.TLSVersion) -> None:
    for _ in range(FAILURES + 1):
        without_certificate(served, site, BALANCER, version)
    with connected(served, BALANCER) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello, as of one that looks for TLS alone
    checks_counted(served, BALANCER, FAILURES + 2)
    assert not refused_lately(served)
    assert handshakes(served) <= {"ok"}


def test_other_faults_of_a_listed_address_count(served: Gateway) -> None:
    with connected(served, BALANCER) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert served.audited(event="handshake", remote=BALANCER)["reason"] == "plaintext_http"


def test_an_address_that_is_not_listed(site: Site, served: Gateway) -> None:
    for _ in range(FAILURES + 1):
        without_certificate(served, site, STRANGER, ssl.TLSVersion.TLSv1_3)
        assert served.audited(event="handshake", remote=STRANGER)["reason"] == "no_certificate"
    with connected(served, STRANGER) as sock:
        assert sock.recv(1) == b""
    assert served.audited(event="connection", remote=STRANGER)["reason"] == "too_many_failures"
