"""Listeners on unix sockets, by path and by abstract name: TLS as elsewhere, clients by their user."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from support import forked
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcUpstream
from support.haproxy import haproxy
from support.proxy_headers import LOCAL, binary, line
from support.raw_request import ask
from support.site import Site
from support.sockets import serving
from support.upstream import ScriptedUpstream

from tlsproxy.wire.proxy_protocol import Header, read

ME = f"unix:uid={os.geteuid()}"
CLIENT = "203.0.113.7"
NAMED = (("grpc.default_authority", "localhost"),)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


@contextmanager
def connected(site: Site, address: str, header: bytes = b"", name: str | None = "admin") -> Iterator[ssl.SSLSocket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(address)
        sock.sendall(header)
        with site.client(name).wrap_socket(sock, server_hostname="localhost") as tls:
            yield tls


@dataclass(frozen=True)
class Sockets:
    both: str
    announced: str
    tcp: str
    health: str
    admin: str


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Sockets:
    directory, name = tmp_path_factory.mktemp("s"), secrets.token_hex(6)
    both = str(directory / "b")
    with socket.socket(socket.AF_UNIX) as stale:  # as a crash leaves it
        stale.bind(both)
    return Sockets(both, str(directory / "p"), f"@{name}", f"unix:{directory}/h", f"unix:@{name}-admin")


@pytest.fixture(scope="module")
def config(site: Site, shared_upstream: ScriptedUpstream, names: Sockets) -> Iterator[Path]:
    with serving(echo) as address, GrpcUpstream() as calls:
        listeners = [
            {"unix": names.both, "unix_mode": "0600", "protocols": ["rest", "grpc"]},
            {"unix": names.announced, "protocols": ["rest"], "proxy_protocol": {"from": ["unix"]}},
            {"unix": names.tcp, "mode": "tcp", "upstream": address, "allow": ["admin"], "send_proxy_protocol": "v2"},
        ]
        yield site.write_config(
            shared_upstream.url,
            grpc=calls.url,
            listeners=listeners,
            limits={"connections_per_address": 4},
            health={"listen": names.health, "proxy_protocol": {"from": ["unix"]}},
            admin={"listen": names.admin},
            workers=2,
        )


@pytest.fixture(scope="module")
def served(config: Path) -> Iterator[Gateway]:
    with Gateway(config) as running:
        yield running


def test_rest_by_curl(site: Site, served: Gateway, names: Sockets, shared_upstream: ScriptedUpstream) -> None:
    curl = shutil.which("curl")
    assert curl
    files = {"--cacert": "ca.pem", "--cert": "admin.pem", "--key": "admin.key"}
    options = [word for option, file in files.items() for word in (option, str(site.directory / file))]
    command = [curl, "-sS", "--http1.1", "--unix-socket", names.both, *options, "https://localhost/collections"]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    record = served.audited(method="list_collections")
    assert (record["remote"], record.get("via")) == (ME, None)
    assert shared_upstream.requests[-1].fields["x-forwarded-for"] == ME
    assert stat.S_IMODE(Path(names.both).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(names.announced).stat().st_mode) == 0o660


def test_grpc(site: Site, served: Gateway, names: Sockets) -> None:
    files = ("ca.pem", "admin.key", "admin.pem")
    credentials = grpc.ssl_channel_credentials(*((site.directory / one).read_bytes() for one in files))
    with grpc.secure_channel(f"unix:{names.both}", credentials, NAMED) as channel:
        channel.unary_unary("/qdrant.Collections/List")(b"", timeout=DEADLINE)
    assert served.audited(method="list_collections")["remote"] == ME


def test_bytes(site: Site, served: Gateway, names: Sockets) -> None:
    del served
    with connected(site, f"\0{names.tcp[1:]}") as tunnel:
        tunnel.sendall(b"hello")
        told = b""
        while not told.endswith(b"hello"):
            told += tunnel.recv(4096)
    assert read(told) == Header(len(told) - 5), "of no address"
    assert b"\x05alice" in told, "but of a certificate"


def test_users_share_the_limits_of_an_address(site: Site, served: Gateway, names: Sockets) -> None:
    held = [socket.socket(socket.AF_UNIX) for _ in range(5)]
    try:
        for sock in held:
            sock.settimeout(DEADLINE)
            sock.connect(names.both)
        record = served.audited(event="connection", reason="address_limit")
        assert record["remote"] == ME
        with served.connect(site.client()) as elsewhere:
            assert ask(elsewhere).status == 200
        assert served.audited(method="list_collections")["remote"] == "127.0.0.1"
    finally:
        for sock in held:
            sock.close()


@pytest.mark.parametrize(
    ("header", "remote", "via"),
    [(line(CLIENT), CLIENT, ME), (binary("2001:db8::7"), "2001:db8::7", ME), (binary(CLIENT, command=LOCAL), ME, None)],
)
def test_behind_a_balancer(
    site: Site, served: Gateway, names: Sockets, header: bytes, remote: str, via: str | None
) -> None:
    with connected(site, names.announced, header) as sock:
        assert ask(sock).status == 200
    record = served.audited(method="list_collections")
    assert (record["remote"], record.get("via")) == (remote, via)


def test_a_header_is_required(served: Gateway, names: Sockets) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(names.announced)
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        with contextlib.suppress(ConnectionResetError):  # it is closed with bytes unread
            assert sock.recv(1) == b""
    assert served.audited(event="connection", reason="proxy_protocol_missing")["remote"] == ME


def test_haproxy(site: Site, served: Gateway, names: Sockets, tmp_path: Path) -> None:
    with (
        haproxy(tmp_path, ("", f"unix@{names.announced} send-proxy-v2 proxy-v2-options crc32c")) as (port,),
        served.connect(site.client(), port=port) as sock,
    ):
        assert ask(sock).status == 200
    record = served.audited(method="list_collections")
    assert (record["remote"], record["via"]) == ("127.0.0.1", ME)


def test_health_and_admin(served: Gateway, names: Sockets, config: Path) -> None:
    assert (served.health, served.admin) == (names.health, names.admin)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(names.health.removeprefix("unix:"))
        sock.sendall(b"PROXY UNKNOWN\r\nGET /livez HTTP/1.0\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
    done = forked.run("status", "--config", str(config), "--json")
    assert done.returncode == 0, done.stderr
    addresses = [entry["address"] for entry in json.loads(done.stdout)["listeners"]]
    ours = [Path(name) for name in (names.both, names.announced, names.health.removeprefix("unix:"))]
    assert all(path.is_socket() for path in ours)
    assert [f"unix:{name}" for name in (names.both, names.announced, names.tcp)] == addresses[-3:]
    served.stop()
    assert not any(path.exists() for path in ours), "removed at the end"
