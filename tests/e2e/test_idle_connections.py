"""What an idle client costs in memory, and that thousands of them disturb nobody."""

from __future__ import annotations

import os
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.gateway import Gateway
from support.polling import until
from support.raw_connection import GET
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream, plain

COUNT = 10_000 if os.environ.get("TLSPROXY_SOAK") else 200
WARM = 50
"""Connections before the first look: what is loaded and allocated once is none of the later ones' cost."""
BOUND = 60_000
"""Bytes: twice what was measured (CPython 3.11, OpenSSL 3.0)."""


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many as there may be, for the clients here and for the gateway, which inherits them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < COUNT + 200:
        pytest.skip(f"{before[1]} descriptors are too few for {COUNT} connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def memory(gateway: Gateway) -> int:
    """Bytes that are the process's alone (proc(5), smaps_rollup)."""
    rollup = Path(f"/proc/{gateway.process.pid}/smaps_rollup").read_text()
    fields = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) << 10


def idle(gateway: Gateway, context: ssl.SSLContext) -> socket.socket:
    """A connection that has had one answer. Its client's TLS is given up, which costs memory here, and nobody hears."""
    with gateway.connect(context) as connected:
        connected.sendall(GET)
        assert connected.recv(65536).startswith(b"HTTP/1.1 200 ")
        return socket.socket(fileno=connected.detach())


def forty(stack: ExitStack, gateway: Gateway, context: ssl.SSLContext) -> list[ssl.SSLSocket]:
    """Connections that have had one answer each."""
    connections = [stack.enter_context(gateway.connect(context)) for _ in range(40)]
    for connection in connections:
        connection.sendall(GET)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    return connections


def test_a_connection_that_has_uploaded_much_keeps_little_of_the_room(site: Site, gateway: Gateway) -> None:
    """A memory BIO keeps the size that it once had."""
    context, body = site.client(), bytes(1 << 20)
    upload = b"PUT /collections/docs/points HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with ExitStack() as stack:
        connections = forty(stack, gateway, context)
        before = memory(gateway)
        for connection in connections:
            connection.sendall(upload + body)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert (memory(gateway) - before) / len(connections) < 100_000


def test_nor_does_one_that_was_sent_much(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    context, size = site.client(), 1 << 20
    with ExitStack() as stack:
        connections = forty(stack, gateway, context)
        before = memory(gateway)
        upstream.answer = plain(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        for connection in connections:
            connection.sendall(GET)
            came = 0
            while came < size:
                came += len(connection.recv(65536))
        assert (memory(gateway) - before) / len(connections) < 100_000


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("descriptors")
def test_memory_of_an_idle_connection(
    site: Site,
    upstream: ScriptedUpstream,
    record_property: pytest.RecordProperty,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limits = {"connections": 2 * COUNT, "connections_per_address": 2 * COUNT, "idle_timeout": 600.0}
    context = site.client()
    with Gateway(site.write_config(upstream.url, limits=limits), fresh=True) as gateway, ExitStack() as stack:
        for _ in range(WARM):
            stack.enter_context(idle(gateway, context))
        before = memory(gateway)
        for _ in range(COUNT):
            stack.enter_context(idle(gateway, context))
        each = (memory(gateway) - before) / COUNT
        record_property("bytes_per_idle_connection", each)
        with capsys.disabled():
            print(f"\n{COUNT} idle TLS connections: {each:,.0f} bytes each")  # noqa: T201 - what the test is for
        assert f'"open": {COUNT + WARM}' in gateway.ask_admin("/status")[1]
        with Client(gateway, context) as client:
            assert client.ask().status == 200, "who comes now is served"
        assert 0 < each < BOUND
        stack.close()
        until(lambda: '"open": 0' in gateway.ask_admin("/status")[1])
