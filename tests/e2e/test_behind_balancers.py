"""Behind balancers that speak the PROXY protocol, a connection is its client's; nobody else may tell an address."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcUpstream
from support.haproxy import haproxy
from support.proxy_headers import LOCAL, SIGNATURE, TCP4, UNIX, binary, framed, line
from support.raw_request import ask
from support.site import Site
from support.sockets import serving
from support.upstream import ScriptedUpstream

BALANCER, OTHER = "127.0.0.2", "127.0.0.3"
CLIENT, GUESSER = "203.0.113.7", "203.0.113.9"
FROM = {"from": [f"{BALANCER}/32", "2001:db8::/32", "127.0.0.1"]}
FAILURES = 2
HELD = 3
"""Connections of one address."""


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


@pytest.fixture(scope="module")
def calls() -> Iterator[GrpcUpstream]:
    with GrpcUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def config(site: Site, shared_upstream: ScriptedUpstream, calls: GrpcUpstream) -> Iterator[Path]:
    with serving(echo) as address:
        listeners = [
            {"port": 0, "mode": "tcp", "upstream": address, "allow": ["admin"], "proxy_protocol": FROM},
            {"port": 0, "protocols": ["rest"]},
        ]
        limits: dict[str, object] = {"connections_per_address": HELD, "handshake_timeout": 1}
        limits["per_address"] = {"failed_authentications": FAILURES}
        yield site.write_config(
            shared_upstream.url,
            grpc=calls.url,
            service={"proxy_protocol": FROM},
            listeners=listeners,
            limits=limits,
            health={"listen": "127.0.0.1:0", "proxy_protocol": FROM},
            workers=2,
        )


@pytest.fixture(scope="module")
def served(config: Path) -> Iterator[Gateway]:
    with Gateway(config) as running:
        yield running


@contextmanager
def connected(port: int, address: str = BALANCER) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), DEADLINE, source_address=(address, 0)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


@contextmanager
def announced(
    served: Gateway, site: Site, header: bytes, *, port: int = 0, client: str | None = "admin"
) -> Iterator[ssl.SSLSocket]:
    """A connection through the balancer; its header goes in one segment with the ClientHello."""
    with connected(port or served.port) as sock:
        sock.send(header, socket.MSG_MORE)
        with site.client(client).wrap_socket(sock, server_hostname="localhost") as tls:
            yield tls


def closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:  # it was closed with bytes unread
        return True


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (line(CLIENT), CLIENT),
        (line("2001:db8:7::1", "TCP6"), "2001:db8:7::1"),
        (line(f"::ffff:{CLIENT}", "TCP6", port=0), CLIENT),
        (binary(CLIENT, port=0), CLIENT),
        (binary("2001:db8:7::1"), "2001:db8:7::1"),
        (binary(f"::ffff:{CLIENT}"), CLIENT),
        (binary(CLIENT, (0xEA, b"\1vpce"), (0x77, bytes(3000))), CLIENT),
        (b"PROXY UNKNOWN\r\n", None),
        (framed(0x21, UNIX, bytes(216)), None),
        (binary(CLIENT, command=LOCAL), None),
    ],
)
def test_the_client_of_the_header_is_the_client(
    site: Site, served: Gateway, shared_upstream: ScriptedUpstream, header: bytes, client: str | None
) -> None:
    with announced(served, site, header) as sock:
        assert ask(sock, fields=[("x-forwarded-for", "198.51.100.66")]).status == 200
        record = served.audited(method="list_collections")
        (live,) = json.loads(served.ask_admin("/status")[1])["connections"]["live"]
    told = (client, BALANCER) if client else (BALANCER, None)
    assert (record["remote"], record.get("via")) == (live["address"], live["via"]) == told
    assert shared_upstream.requests[-1].fields["x-forwarded-for"] == told[0]


def test_byte_by_byte(site: Site, served: Gateway) -> None:
    for header in (line(CLIENT), binary(CLIENT, (0x04, b"pad"))):
        with connected(served.port) as sock:
            for byte in header:
                sock.sendall(bytes((byte,)))
            with site.client().wrap_socket(sock, server_hostname="localhost") as tls:
                assert ask(tls).status == 200
        assert served.audited(method="list_collections")["remote"] == CLIENT


MALFORMED = (
    b"PROXY TCP4 192.0.2.1 192.0.2.2 080 443\r\n",
    b"PROXY TCP6 fe80::1%lo fe80::2 1 2\r\n",
    b"PROXY TCP4 " + b"1" * 5000,
    framed(0x21, TCP4, b"", 0xFFFF) + bytes(70_000),
    framed(0x21, 0x12, bytes(12)),
)
MISSING = (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n")


def told(served: Gateway, **left: int) -> None:
    """Waits for the lines of so many connections of each reason: each worker tells of its own, once a second."""
    while any(left.values()):
        record = served.audited(event="connection", remote=BALANCER)
        left[record["reason"]] -= record["connections"]
    assert set(left.values()) == {0}


def test_other_beginnings_are_closed_at_once(served: Gateway) -> None:
    for data in (MALFORMED + MISSING) * 2:
        with connected(served.port) as sock:
            sock.sendall(data)
            assert closed(sock)
    told(served, proxy_protocol_malformed=2 * len(MALFORMED), proxy_protocol_missing=2 * len(MISSING))


def test_a_header_that_does_not_come_or_not_to_its_end(served: Gateway) -> None:
    with connected(served.port) as silent, connected(served.port) as slow, connected(served.port) as checking:
        slow.sendall(SIGNATURE)
        checking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        checking.close()
        with connected(served.port) as cut:
            cut.sendall(line(CLIENT)[:20])
            cut.shutdown(socket.SHUT_WR)
            assert closed(cut)
        assert closed(slow)
        assert closed(silent)
    told(served, proxy_protocol_malformed=2, proxy_protocol_missing=1, never_asked=1)


def test_a_second_header_is_none_of_tls(site: Site, served: Gateway) -> None:
    with connected(served.port) as sock:
        sock.sendall(line(CLIENT) + line("192.0.2.66"))
        assert closed(sock)
    record = served.audited(event="handshake", reason="proxy_protocol")
    assert (record["remote"], record["via"]) == (CLIENT, BALANCER)
    with announced(served, site, line(CLIENT)) as tls:
        tls.sendall(line("192.0.2.66") + b"GET /collections HTTP/1.1\r\nhost: h\r\n\r\n")
        assert tls.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert served.audited(remote=CLIENT, status=400)["via"] == BALANCER


@pytest.mark.parametrize("header", [line(CLIENT), b""])
def test_an_address_that_is_not_listed(served: Gateway, header: bytes) -> None:
    with connected(served.port, OTHER) as sock:
        sock.sendall(header)
        assert closed(sock)
    record = served.audited(event="connection", reason="proxy_protocol_untrusted")
    assert (record["remote"], record["connections"], record.get("via")) == (OTHER, 1, None)


def test_a_listener_without_it_expects_no_header(site: Site, served: Gateway) -> None:
    port = served.ports["REST"][1]
    with served.connect(site.client(), port=port) as sock:
        assert ask(sock).status == 200
    with connected(port, "127.0.0.1") as plain:
        plain.sendall(line(CLIENT))
        assert closed(plain)
    record = served.audited(event="handshake", reason="proxy_protocol")
    assert record["remote"] == "127.0.0.1"
    assert "proxy_protocol of the listener" in record["error"]


def test_limits_are_of_the_client(site: Site, served: Gateway) -> None:
    for _ in range(FAILURES + 1):
        with (
            announced(served, site, line(GUESSER), client=None) as sock,
            pytest.raises(ssl.SSLError, match=r"(?i)alert"),
        ):
            sock.recv(1)
        assert served.audited(event="handshake", reason="no_certificate")["remote"] == GUESSER
    with connected(served.port) as sock:
        sock.sendall(line(GUESSER))
        assert closed(sock)
    record = served.audited(event="connection", reason="too_many_failures")
    assert (record["remote"], record["via"]) == (GUESSER, BALANCER)
    for _ in range(FAILURES + 1):  # the balancer's own check
        with (
            announced(served, site, binary(CLIENT, command=LOCAL), client=None) as sock,
            pytest.raises(ssl.SSLError, match=r"(?i)alert"),
        ):
            sock.recv(1)
        assert served.audited(event="connection", reason="never_asked")["remote"] == BALANCER
    with announced(served, site, line(CLIENT)) as sock:
        assert ask(sock).status == 200


def test_connections_are_counted_by_client(site: Site, served: Gateway) -> None:
    with ExitStack() as stack:
        for number in range(2 * HELD):  # of two clients
            sock = stack.enter_context(announced(served, site, line(f"198.51.100.{number % 2}")))
            assert ask(sock).status == 200
        more = stack.enter_context(connected(served.port))
        more.sendall(line("198.51.100.1"))
        assert closed(more)
    assert served.audited(event="connection", reason="address_limit")["remote"] == "198.51.100.1"


def test_in_tcp_mode(site: Site, served: Gateway) -> None:
    with announced(served, site, binary(CLIENT), port=served.ports["TCP"][0]) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        record = served.audited(event="tcp_open")
    assert (record["remote"], record["via"], record["result"]) == (CLIENT, BALANCER, "ok")


def test_haproxy_behind_the_tcp_mode_is_told_the_client(
    site: Site, shared_upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """HAProxy answers with what it read."""
    told = 'http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[fc_pp_unique_id]"'
    with haproxy(tmp_path, ("accept-proxy\n  mode http\n  " + told, "127.0.0.1:1")) as (port,), ExitStack() as stack:
        listener = {"mode": "tcp", "upstream": f"127.0.0.1:{port}", "allow": ["admin"], "send_proxy_protocol": "v2"}
        listeners = [
            listener | {"port": 0, "host": "127.0.0.1"},
            listener | {"port": 0, "host": "127.0.0.2", "proxy_protocol": FROM},
        ]
        gateway = stack.enter_context(Gateway(site.write_config(shared_upstream.url, listeners=listeners)))
        direct, behind = gateway.ports["TCP"]
        with served_at("127.0.0.1", direct, b"", site) as tls:
            own = tls.getsockname()[1]
            address, source, unique = said(tls)
        record = gateway.audited(event="tcp_open")
        assert (address, source, unique) == ("127.0.0.2", str(own), record["request_id"])
        with served_at("127.0.0.2", behind, binary("2001:db8:7::1"), site) as tls:
            assert said(tls)[:2] == ["2001:db8:7::1", "56324"]
        with served_at("127.0.0.2", behind, binary(CLIENT, command=LOCAL), site) as tls:
            own = tls.getsockname()[1]
            assert said(tls)[:2] == [BALANCER, str(own)], "the balancer's own connection"


@contextmanager
def served_at(host: str, port: int, header: bytes, site: Site) -> Iterator[ssl.SSLSocket]:
    with socket.create_connection((host, port), DEADLINE, source_address=(BALANCER, 0)) as sock:
        sock.sendall(header)
        with site.client().wrap_socket(sock, server_hostname="localhost") as tls:
            yield tls


def said(tls: ssl.SSLSocket) -> list[str]:
    return ask(tls, target="/").body.decode().split()


def test_the_health_listener(served: Gateway) -> None:
    port = int(served.health.rpartition(":")[2])
    ask_health = b"GET /livez HTTP/1.0\r\n\r\n"
    for header in (line(CLIENT), framed(LOCAL, 0, b"")):
        with connected(port) as sock:
            sock.sendall(header + ask_health)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    for address, data in ((BALANCER, ask_health), (OTHER, line(CLIENT) + ask_health)):
        with connected(port, address) as sock:
            sock.sendall(data)
            assert closed(sock)


def test_behind_haproxy(site: Site, served: Gateway, tmp_path: Path) -> None:
    """Both versions, both protocols, and its checks, which need no certificate."""
    rest, calling = f"127.0.0.1:{served.port}", f"127.0.0.1:{served.grpc_port}"
    servers = (
        ("", f"{rest} send-proxy"),
        ("", f"{rest} send-proxy-v2 proxy-v2-options crc32c,unique-id"),
        ("", f"{calling} send-proxy-v2 check inter 100 check-send-proxy check-ssl verify none"),
    )
    with haproxy(tmp_path, *servers) as (first, second, third):
        for port in (first, second):
            with (
                socket.create_connection(("127.0.0.1", port), DEADLINE, source_address=("127.0.0.7", 0)) as sock,
                site.client().wrap_socket(sock, server_hostname="localhost") as tls,
            ):
                assert ask(tls).status == 200
            record = served.audited(method="list_collections")
            assert (record["remote"], record["via"]) == ("127.0.0.7", "127.0.0.1")
        names = ("ca.pem", "admin.key", "admin.pem")
        credentials = grpc.ssl_channel_credentials(*((site.directory / name).read_bytes() for name in names))
        with grpc.secure_channel(f"localhost:{third}", credentials) as channel:
            channel.unary_unary("/qdrant.Collections/List")(b"", timeout=DEADLINE)
        record = served.audited(method="list_collections")
        assert (record["remote"], record["via"], record["grpc_status"]) == ("127.0.0.1", "127.0.0.1", 0)
        assert served.audited(event="connection", reason="never_asked")["remote"] == "127.0.0.1"


def test_other_networks_count_after_a_reload(site: Site, served: Gateway, config: Path) -> None:
    """Last: it changes the gateway."""
    site.edit_config(config, service={"proxy_protocol": {"from": [OTHER]}})
    assert "service.proxy_protocol.from" in served.reloaded()["changes"]
    with connected(served.port, OTHER) as sock:
        sock.sendall(line(CLIENT))
        with site.client().wrap_socket(sock, server_hostname="localhost") as tls:
            assert ask(tls).status == 200
    with connected(served.port) as sock:
        sock.sendall(line(CLIENT))
        assert closed(sock)
    assert served.audited(event="connection", reason="proxy_protocol_untrusted")["remote"] == BALANCER
    site.edit_config(config, service={"proxy_protocol": None})
    served.reloaded()
    with served.connect(site.client()) as tls:
        assert ask(tls).status == 200
