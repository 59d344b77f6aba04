"""A listener of mode tcp: whoever has one of its roles is connected through, byte for byte; nobody else is."""

from __future__ import annotations

import json
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from support.gateway import DEADLINE, Gateway
from support.raw_connection import memory
from support.site import Site
from support.sockets import serving
from support.upstream import ScriptedUpstream

Serve = Callable[[socket.socket], None]


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def count(sock: socket.socket) -> None:
    """Hears its client out, then says how much that was."""
    size = 0
    while data := sock.recv(65536):
        size += len(data)
    sock.sendall(b"%d bytes" % size)


@contextmanager
def tunnel(site: Site, address: str, rest: str, **sections: object) -> Iterator[tuple[Gateway, int]]:
    """A gateway, and the port of its TCP listener."""
    listener = {"port": 0, "mode": "tcp", "upstream": address, "allow": ["admin", "search"]}
    with Gateway(site.write_config(rest, listeners=[listener], **sections)) as gateway:  # type: ignore[arg-type]
        yield gateway, gateway.ports["TCP"][0]


def through(gateway: Gateway, site: Site, port: int, client: str = "admin") -> ssl.SSLSocket:
    return gateway.connect(site.client(client), port=port)


def exactly(sock: ssl.SSLSocket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = sock.recv(65536)
        assert data, f"ended after {len(got)} bytes"
        got += data
    return got


def test_bytes_go_both_ways(site: Site, shared_upstream: ScriptedUpstream) -> None:
    with serving(echo) as upstream, tunnel(site, upstream, shared_upstream.url) as (gateway, port):
        with through(gateway, site, port) as sock:
            sock.sendall(b"hello")
            assert exactly(sock, 5) == b"hello"
            opened = gateway.audited(event="tcp_open")
            assert (opened["result"], opened["role"], opened["certificate_subject"]) == (
                "ok",
                "admin",
                "CN=alice,OU=platform",
            )
            assert (opened["tls_version"], opened["tls_cipher"]) == (sock.version(), sock.cipher()[0])
            (live,) = json.loads(gateway.ask_admin("/status")[1])["connections"]["live"]
            assert (live["protocol"], live["bytes_in"], live["bytes_out"]) == ("tcp", 5, 5)
        closed = gateway.audited(event="tcp_close")
        assert (closed["bytes_in"], closed["bytes_out"], closed["role"]) == (5, 5, "admin")


def test_many_bytes_at_the_pace_of_the_slower(site: Site, shared_upstream: ScriptedUpstream) -> None:
    """64 MB each way at once, in a gateway whose memory stays small."""
    size, piece = 64 << 20, bytes(range(256)) * 256
    with serving(echo) as upstream, tunnel(site, upstream, shared_upstream.url) as (gateway, port):
        context = site.client()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock:
            tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
            _handshake(tls, sock, incoming, outgoing)
            before = memory(gateway)
            sent = got = 0
            sock.setblocking(False)
            waiting = b""
            while got < size:
                if sent < size and not waiting:
                    sent += tls.write(piece)
                    waiting = outgoing.read()
                with suppress(BlockingIOError):
                    waiting = waiting[sock.send(waiting) :] if waiting else b""
                try:
                    incoming.write(sock.recv(262_144))
                    while True:
                        data = tls.read(262_144)
                        assert data == (piece * 6)[got % 65536 :][: len(data)]
                        got += len(data)
                except (BlockingIOError, ssl.SSLWantReadError):
                    pass
        assert got == size
        assert memory(gateway) < before + (16 << 20)


def _handshake(tls: ssl.SSLObject, sock: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))
        else:
            sock.sendall(outgoing.read())
            return


def test_a_client_that_has_said_all_hears_the_answer(site: Site, shared_upstream: ScriptedUpstream) -> None:
    """Half-close: a close_notify ends the one direction, and the other goes on."""
    with serving(count) as upstream, tunnel(site, upstream, shared_upstream.url) as (gateway, port):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock:
            tls = site.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
            _handshake(tls, sock, incoming, outgoing)
            tls.write(b"x" * 1000)
            with pytest.raises(ssl.SSLWantReadError):
                tls.unwrap()
            sock.sendall(outgoing.read())
            said = b""
            while len(said) < 10:
                incoming.write(sock.recv(65536))
                try:
                    said += tls.read(100)
                except ssl.SSLWantReadError:
                    continue
            assert said == b"1000 bytes"
        assert gateway.audited(event="tcp_close")["bytes_out"] == 10


def test_an_upstream_that_has_said_all_hears_the_client_out(site: Site, shared_upstream: ScriptedUpstream) -> None:
    heard: list[bytes] = []
    done = threading.Event()

    def greet(sock: socket.socket) -> None:
        sock.sendall(b"hello and goodbye")
        sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(100):
            heard.append(data)
        done.set()

    with serving(greet) as upstream, tunnel(site, upstream, shared_upstream.url) as (gateway, port):
        with through(gateway, site, port) as sock:
            assert exactly(sock, 17) == b"hello and goodbye"
            assert sock.recv(1) == b""
            sock.sendall(b"one more thing")
        assert done.wait(DEADLINE)
        assert b"".join(heard) == b"one more thing"


@pytest.mark.parametrize(("client", "reason"), [("ingest", "role_not_allowed"), ("stranger", "no_role")])
def test_who_may_not(site: Site, shared_upstream: ScriptedUpstream, client: str, reason: str) -> None:
    """Not a byte reaches the upstream, nor a connection."""
    connected: list[socket.socket] = []
    with (
        serving(connected.append) as upstream,
        tunnel(site, upstream, shared_upstream.url) as (gateway, port),
        through(gateway, site, port, client) as sock,
    ):
        sock.sendall(b"let me in")
        assert sock.recv(1) == b""
        record = gateway.audited(event="tcp_open")
        assert (record["result"], record["reason"]) == ("denied", reason)
        assert not connected


def test_a_reset_is_no_end(site: Site, shared_upstream: ScriptedUpstream) -> None:
    """A reset by either side reaches the other one as a reset, so that nobody takes a part for the whole."""
    reset, heard = struct.pack("ii", 1, 0), queue.SimpleQueue[bytes | str]()

    def broken(sock: socket.socket) -> None:
        if sock.recv(1) == b"r":
            sock.sendall(b"half an ans")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            return
        try:
            heard.put(sock.recv(1))
        except ConnectionResetError:
            heard.put("reset")

    with serving(broken) as upstream, tunnel(site, upstream, shared_upstream.url) as (gateway, port):
        with through(gateway, site, port) as sock:
            sock.suppress_ragged_eofs = False
            sock.sendall(b"r")
            with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):  # noqa: PT012 - after the bytes before it
                while sock.recv(100):
                    pass
        assert gateway.audited(event="tcp_close")["reason"] == "upstream_broken"
        with through(gateway, site, port) as sock:
            sock.sendall(b"c")
            gateway.audited(event="tcp_open")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        assert heard.get(timeout=DEADLINE) == "reset"
        assert gateway.audited(event="tcp_close")["reason"] == "client_gone"


def test_a_certificate_is_needed_wherever_it_is_optional(site: Site, shared_upstream: ScriptedUpstream) -> None:
    """A key could not be sent: who somebody is, is known by certificate alone."""
    context = ssl.create_default_context(cafile=site.directory / "ca.pem")
    service = {"verify_https_client_certificate": False, "api_key": "a key"}
    with (
        serving(echo) as upstream,
        tunnel(site, upstream, shared_upstream.url, service=service) as (_gateway, port),
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as sock,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        assert not sock.recv(1)


def test_an_upstream_that_is_not_there(site: Site, shared_upstream: ScriptedUpstream) -> None:
    with socket.socket() as taken:  # bound, so that nobody else listens there, and not listening
        taken.bind(("127.0.0.1", 0))
        upstream = f"127.0.0.1:{taken.getsockname()[1]}"
        _assert_refused(site, upstream, shared_upstream.url)


def _assert_refused(site: Site, upstream: str, rest: str) -> None:
    with tunnel(site, upstream, rest) as (gateway, port), through(gateway, site, port) as sock:
        assert sock.recv(1) == b""
        record = gateway.audited(event="tcp_open")
        assert (record["result"], record["reason"]) == ("denied", "upstream_unreachable")


def test_a_connection_outlives_the_time_that_connecting_may_take(site: Site, shared_upstream: ScriptedUpstream) -> None:
    timeouts = {"connect_timeout": 0.3}
    with (
        serving(echo) as upstream,
        tunnel(site, upstream, shared_upstream.url, upstream=timeouts) as (gateway, port),
        through(gateway, site, port) as sock,
    ):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            sock.sendall(b"hello")
            assert exactly(sock, 5) == b"hello"


def test_a_connection_that_idles(site: Site, shared_upstream: ScriptedUpstream) -> None:
    limits = {"tcp_idle_timeout": 0.5}
    with (
        serving(echo) as upstream,
        tunnel(site, upstream, shared_upstream.url, limits=limits) as (gateway, port),
        through(gateway, site, port) as sock,
    ):
        assert sock.recv(1) == b""
        assert gateway.audited(event="tcp_close")["reason"] == "idle"


SLOWLY = 1_000_000
"""Bytes per second: less than a third of a send buffer, after which a socket is writable again, in `write_timeout`."""


def slowly(sock: socket.socket, size: int) -> int:
    """Takes so much, as far as it comes, steadily for three seconds: how much that was."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # a large buffer would be emptied in large steps
    came, began = 0, time.monotonic()
    while came < size and (data := sock.recv(65_536)):
        came += len(data)
        threading.Event().wait(max(0.0, min(3.0, came / SLOWLY) - (time.monotonic() - began)))
    return came


@pytest.mark.parametrize("reader", ["client", "upstream"])
def test_one_that_takes_its_time_has_all_of_it(site: Site, shared_upstream: ScriptedUpstream, reader: str) -> None:
    size = 7 << 20

    def serve(sock: socket.socket) -> None:
        if reader == "client":
            sock.sendall(bytes(size))
        else:
            sock.sendall(b"%d" % slowly(sock, size))

    with (
        serving(serve) as upstream,
        tunnel(site, upstream, shared_upstream.url, limits={"write_timeout": 1.0}) as (gateway, port),
        through(gateway, site, port) as sock,
    ):
        if reader == "client":
            assert slowly(sock, size) == size
        else:
            sock.sendall(bytes(size))
            assert sock.recv(100) == b"%d" % size


def test_a_role_that_is_taken_off_the_list(own_site: Site, upstream: ScriptedUpstream) -> None:
    """At once, in the middle of whatever goes on; the other role's connections go on."""
    with (
        serving(echo) as address,
        tunnel(own_site, address, upstream.url) as (gateway, port),
        through(gateway, own_site, port) as lost,
        through(gateway, own_site, port, "search") as kept,
    ):
        for sock in (lost, kept):
            sock.sendall(b"hello")
            assert exactly(sock, 5) == b"hello"
        listener = {"port": 0, "mode": "tcp", "upstream": address, "allow": ["search"]}
        own_site.edit_config(gateway.config, listeners=[listener])
        with suppress(ConnectionError, ssl.SSLEOFError):
            assert lost.recv(1) == b""
        assert gateway.audited(event="connection")["reason"] == "role_not_allowed"
        kept.sendall(b"still here")
        assert exactly(kept, 10) == b"still here"


def test_it_is_a_request_that_lasts_for_its_clients_limits(site: Site, upstream: ScriptedUpstream) -> None:
    limits = {"per_identity": {"concurrent_requests": 1}}
    with (
        serving(echo) as address,
        tunnel(site, address, upstream.url, limits=limits) as (gateway, port),
        through(gateway, site, port) as first,
    ):
        first.sendall(b"one")
        assert exactly(first, 3) == b"one"
        with through(gateway, site, port) as second:
            assert second.recv(1) == b""
        record = gateway.audited(event="tcp_open", result="denied")
        assert record["reason"] == "too_many_requests_in_flight"
        assert "has 1 requests at a time" in record["error"]
        first.close()
        gateway.audited(event="tcp_close")
        with through(gateway, site, port) as third:
            third.sendall(b"three")
            assert exactly(third, 5) == b"three"
