"""An ended connection is gone at once, by reference count: the garbage collector would find it late, and all at a time.

A full collection looks at every live connection, in one pause.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import H2Client
from support.raw_connection import GET
from support.site import Site
from support.upstream import ScriptedUpstream, plain

from tlsproxy.audit.log import NoAudit
from tlsproxy.config.listeners import ALPN, TCP, listening
from tlsproxy.proxy.core.connection_manager import Entry
from tlsproxy.proxy.frontend.handshake import AcceptedConnection
from tlsproxy.proxy.frontend.listener import Bound, bind
from tlsproxy.proxy.grpc.call import Call
from tlsproxy.proxy.grpc.relay import Relay
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.proxy.rest.connection import RestConnection
from tlsproxy.proxy.rest.exchange import Exchange
from tlsproxy.proxy.tcp.connection import TcpConnection
from tlsproxy.proxy.transport.stream import Stream
from tlsproxy.service.serving import Serving
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.startup import first_generation

PARTS = (Stream, AcceptedConnection, Entry, RestConnection, Exchange, Relay, Call, TcpConnection, ssl.SSLObject)

Talk = Callable[[ssl.SSLSocket], None]


def rest(sock: ssl.SSLSocket) -> None:
    for _ in range(2):
        sock.sendall(GET)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def grpc(sock: ssl.SSLSocket) -> None:
    client = H2Client(sock)
    client.start()
    assert client.status(client.call(b"")) == 0


def half_a_request(sock: ssl.SSLSocket) -> None:
    sock.sendall(GET[:10])


def nothing(sock: ssl.SSLSocket) -> None:
    assert sock.version()


def no_record(sock: ssl.SSLSocket) -> None:
    rest(sock)
    os.write(sock.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        sock.recv(1)


def parts() -> list[object]:
    return [one for one in gc.get_objects() if isinstance(one, PARTS)]


@pytest.fixture(scope="module")
def _no_collector() -> Iterator[None]:
    """Objects of the tests before are frozen: to look through them takes half a second for each of these."""
    gc.collect()
    gc.disable()
    gc.freeze()
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.enable()


async def ended(
    site: Site, rest_url: str, grpc_url: str, protocol: str, client: str | None, talk: Talk, visits: int = 3
) -> list[object]:
    """What is left of a connection that its client has ended, once the gateway has told that it is over."""
    listener = {"port": 0, "mode": "tcp", "upstream": rest_url.removeprefix("http://"), "allow": ["admin"]}
    limits = {"drain_grace": 0, "inspection_memory_mb": 32, "max_message_size_mb": 32, "inspection_timeout": 1}
    path = site.write_config(rest_url, grpc=grpc_url, listeners=[listener], limits=limits)
    generation = first_generation(path, {}, read_inputs(path, {}), {}).generation
    with ExitStack() as stack:
        bound = [
            Bound.of(stack.enter_context(closing(bind(where.endpoint, 0))).sock, where)
            for where in listening(generation.config)
        ]
        serving = stack.enter_context(
            closing(
                Serving(
                    generation,
                    bound,
                    NoAudit(),
                    LimitTable.private(),
                    lambda _event: None,
                    itertools.count(1),
                    affinity_key=b"",
                    alone=True,
                )
            )
        )
        assert all(one is not generation for one in gc.get_objects()), "what is there for good is not looked at"
        port = next(
            one.sock.getsockname()[1]
            for one in bound
            if (one.where.protocols == TCP if protocol == "tcp" else protocol in one.where.protocols)
        )
        context = site.client(client)
        if protocol != "tcp":
            context.set_alpn_protocols([ALPN[protocol]])  # type: ignore[index]

        def visit() -> None:
            with (
                suppress(ssl.SSLError),
                socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
                context.wrap_socket(sock, server_hostname="localhost") as connected,
            ):
                talk(connected)

        for _ in range(visits):
            await asyncio.to_thread(visit)
        await serving.drain(asyncio.Event())
        serving._upstreams.pool.close()
        for _ in range(5):  # each tells its end from the loop
            await asyncio.sleep(0)
        return parts()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize(
    ("protocol", "client", "talk"),
    [
        pytest.param("rest", "admin", rest, id="rest"),
        pytest.param("rest", "admin", half_a_request, id="half-a-request"),
        pytest.param("rest", "admin", nothing, id="idle"),
        pytest.param("rest", "admin", no_record, id="no-record"),
        pytest.param("grpc", "admin", grpc, id="grpc"),
        pytest.param("tcp", "admin", rest, id="tcp"),
        pytest.param("tcp", "ingest", nothing, id="tcp-refused"),
        pytest.param("rest", None, nothing, id="failed-handshake"),
    ],
)
def test_nothing_is_left_of_it(
    runner: asyncio.Runner,
    site: Site,
    upstream: ScriptedUpstream,
    grpc_upstream: GrpcUpstream,
    protocol: str,
    client: str | None,
    talk: Talk,
) -> None:
    before = {id(one) for one in parts()}
    left = runner.run(ended(site, upstream.url, grpc_upstream.url, protocol, client, talk))
    mine = [type(one).__name__ for one in left if id(one) not in before]
    assert mine == []


def too_many_reductions(sock: ssl.SSLSocket) -> None:
    """Five at once, of which the memory budget holds two or three."""
    sock.settimeout(30)
    with ExitStack() as stack:
        others = [socket.create_connection(sock.getpeername(), timeout=30) for _ in range(4)]
        clients = [
            sock,
            *(stack.enter_context(sock.context.wrap_socket(other, server_hostname="localhost")) for other in others),
        ]
        for client in clients:
            client.sendall(b"GET /telemetry HTTP/1.1\r\nhost: h\r\n\r\n")
        statuses = {client.recv(12) for client in clients}
    assert statuses == {b"HTTP/1.1 200", b"HTTP/1.1 503"}


@pytest.mark.usefixtures("_no_collector")
def test_nothing_is_left_of_a_response_that_found_no_memory(
    runner: asyncio.Runner, site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    content = b'{"result":{"id":"%b"},"status":"ok","time":0.0}' % (b"x" * (6 << 20))
    upstream.answer = plain(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content))
    before = {id(one) for one in parts()}
    left = runner.run(ended(site, upstream.url, grpc_upstream.url, "rest", "ingest", too_many_reductions, visits=1))
    assert [type(one).__name__ for one in left if id(one) not in before] == []
