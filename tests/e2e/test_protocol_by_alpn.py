"""What a client speaks is agreed on in the handshake (ALPN): REST, gRPC, or nothing that its port serves."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream
from support.raw_request import ask
from support.site import Site
from support.upstream import ScriptedUpstream

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # RFC 9113 §3.4: and empty SETTINGS
BOTH = {"port": 0, "protocols": ["rest", "grpc"]}


@pytest.fixture(scope="module")
def served(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """REST on one port, gRPC on another, both on a third."""
    with (
        GrpcUpstream() as grpc,
        Gateway(site.write_config(shared_upstream.url, grpc=grpc.url, listeners=[BOTH])) as running,
    ):
        yield running


def offering(site: Site, *protocols: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = site.client()
    context.minimum_version = context.maximum_version = version
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


@pytest.mark.parametrize(
    ("port", "offered"),
    [
        (port, offered)
        for port in ("REST", "REST and gRPC")
        for offered in (("http/1.1",), (), ("spdy/1",), ("h2", "http/1.1"), ("http/1.1", "h2"))
    ],
    ids=str,
)
def test_rest(site: Site, served: Gateway, port: str, offered: tuple[str, ...]) -> None:
    with served.connect(offering(site, *offered), port=served.ports[port][0]) as sock:
        assert sock.selected_alpn_protocol() == ("http/1.1" if "http/1.1" in offered else None)
        assert ask(sock).status == 200


@pytest.mark.parametrize(
    ("port", "offered"),
    [("REST and gRPC", ("h2",)), *(("gRPC", more) for more in (("h2",), ("h2", "http/1.1"), ("http/1.1", "h2")))],
    ids=str,
)
def test_grpc(site: Site, served: Gateway, port: str, offered: tuple[str, ...]) -> None:
    with served.connect(offering(site, *offered), port=served.ports[port][0]) as sock:
        assert sock.selected_alpn_protocol() == "h2"
        sock.sendall(PREFACE)
        assert not sock.recv(4096).startswith(b"HTTP/1")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("offered", [("http/1.1",), ()], ids=str)
def test_nothing_else_on_the_port_of_grpc(
    site: Site, served: Gateway, offered: tuple[str, ...], version: ssl.TLSVersion
) -> None:
    """Neither HTTP/1.1 nor HTTP/2 that was not agreed on: the connection is refused before anything is said."""
    before = counted(served)
    for said, told in ((b"GET / HTTP/1.1\r\nhost: h\r\n\r\n", b"HTTP/1.1 400 "), (PREFACE, bytes(3) + b"\x04")):
        with served.connect(offering(site, *offered, version=version), port=served.grpc_port) as sock:
            assert sock.selected_alpn_protocol() is None
            sock.sendall(said)
            assert sock.recv(4096).startswith(told)
            assert sock.recv(4096) == b"", "a clean end"
        record = served.audited(event="handshake")
        assert (record["result"], record["reason"], record["error"]) == (
            "denied",
            "no_protocol",
            "h2 was not agreed on",
        )
    assert counted(served) == before + 2


def counted(gateway: Gateway) -> float:
    prefix = 'tlsproxy_handshakes_total{outcome="no_protocol"} '
    lines = gateway.ask_admin("/metrics")[1].splitlines()
    return sum(float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))


def test_http_2_on_the_port_of_rest_is_told_what_is_served(site: Site, served: Gateway) -> None:
    with served.connect(offering(site, "h2")) as sock:
        assert sock.selected_alpn_protocol() is None
        sock.sendall(PREFACE)
        assert sock.recv(4096).startswith(b"HTTP/1.1 505 ")
    assert served.audited(status=505)["result"] == "denied"
