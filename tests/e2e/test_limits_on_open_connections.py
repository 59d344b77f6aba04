"""A limit that is edited counts for open connections, and for what they wait for; the few that do not say so."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Final

import pytest
from hyperframe.frame import DataFrame
from qdrant_client import grpc as pb
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcUpstream, never, replying
from support.h2_raw_client import H2Client, fields, h2, message
from support.polling import until
from support.raw_connection import GET, UPLOAD, UPSERT, RawClient, Truncated, connected
from support.site import CONFIG, Site
from support.upstream import OK, Connection, Received, ScriptedUpstream, plain

from tlsproxy.config.descriptions import descriptions
from tlsproxy.config.limits import LimitsConfig
from tlsproxy.config.model import AuditConfig, Service, UpstreamConfig
from tlsproxy.config.shape import needs_restart
from tlsproxy.proxy.core.jitter import FEW

LONG, SHORT = 3600, 0.2
"""Seconds: nobody would live to see the one; the other is over soon."""
TIMES: Final = [name for name in LimitsConfig.model_fields if name.endswith("_timeout")]
COUNT = "/qdrant.Points/Count"
DOCS = [{"collection": "docs", "access": "rw"}]
KEPT: Final = {"max_streams", "max_head_size", "inspection_timeout"}
"""Limits that an open connection, or a wait that goes on, keeps, as their descriptions say."""


NEW = b'HTTP/1.1 200 OK\r\ncontent-length: 61\r\n\r\n{"title":"qdrant - vector search engine","version":"1.20.0"} '
"""Answer of an upstream that reads the affinity of a route."""


class Edited:
    """A gateway of long times and large limits. A test opens its connections before it edits any."""

    def __init__(self, site: Site, stack: ExitStack) -> None:
        self.site, self.stack = site, stack
        self.upstream = stack.enter_context(ScriptedUpstream(probe=plain(NEW)))
        self.grpc_upstream = stack.enter_context(GrpcUpstream())
        self.tunnelled = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"127.0.0.1:{self.tunnelled.getsockname()[1]}"
        self.config = site.write_config(
            self.upstream.url,
            grpc=self.grpc_upstream.url,
            tls={"poll_interval": 60},
            roles={
                "admin": {"access": "m"},
                "ingest": {"access": DOCS, "filter": {"tenant": "acme"}},
                "search": {"access": DOCS},
            },
            listeners=[{"port": 0, "mode": "tcp", "upstream": address, "allow": ["admin"]}],
            limits={**dict.fromkeys(TIMES, LONG), "expel_after": LONG, "drain_grace": 0},
            upstream={"rest": self.upstream.url, "grpc": self.grpc_upstream.url},
        )
        self.gateway = stack.enter_context(Gateway(self.config))
        self.before = self.config.read_bytes()
        self.opened: ExitStack

    def reset(self) -> None:
        self.upstream.answer, self.grpc_upstream.answer = plain(), replying(b"")
        self.site.replace(self.config.name, self.before)
        self.reload()

    def reload(self) -> None:
        status, body = self.gateway.ask_admin("/reload", "POST")
        assert status == 200, body

    def limits(self, **changed: Any) -> None:
        self.site.edit_config(self.config, limits=changed)
        self.reload()

    def edit(self, **sections: Any) -> None:
        self.site.edit_config(self.config, **sections)
        self.reload()

    def rest(self, client: str = "admin") -> RawClient:
        """An open connection on which there was a request."""
        opened = self.opened.enter_context(connected(self.gateway, self.site.client(client)))
        assert self.asks(opened) == 200
        return opened

    def asks(self, client: RawClient, request: bytes = b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n") -> int:
        client.send(request)
        return client.response().status

    def grpc(self, client: str = "admin") -> H2Client:
        opened = self.opened.enter_context(h2(self.gateway, self.site, client))
        assert opened.status(opened.call(b"", fields("/qdrant.Qdrant/HealthCheck"))) == 0
        return opened

    def stuck(self) -> threading.Event:
        """The upstream takes requests and never answers. Set when it has one."""
        begun = threading.Event()
        end = threading.Event()
        self.opened.callback(end.set)

        def answer(connection: Connection, request: Received) -> None:
            connection.read_body(request)
            begun.set()
            end.wait(DEADLINE)

        self.upstream.answer = answer
        return begun


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edited]:
    with ExitStack() as stack:
        yield Edited(Site(tmp_path_factory.mktemp("edited")), stack)


@pytest.fixture
def on(edited: Edited) -> Iterator[Edited]:
    with ExitStack() as edited.opened:
        yield edited
    edited.reset()


def idle_timeout(on: Edited) -> None:
    rest, calls = on.rest(), on.grpc()
    on.limits(idle_timeout=SHORT)
    assert rest.ended()
    assert calls.ended()


def body_timeout(on: Edited) -> None:
    """Bodies that are waited for, read or only dropped, and messages, all have the new limit."""
    streamed, read, dropped, calls = on.rest(), on.rest("ingest"), on.rest("search"), on.grpc()
    streamed.send(UPSERT, b"content-length: 9\r\n\r\n", b"{")
    read.send(UPSERT, b"expect: 100-continue\r\ncontent-length: 9\r\n\r\n")
    assert read._until(b"\r\n\r\n")
    dropped.send(b"PUT /collections/other/points HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n{")
    assert dropped.response().status == 403
    stream = calls.open()
    calls.send(DataFrame(stream, message(b"0123")[:7]))
    calls.lives()
    on.limits(body_timeout=SHORT)
    assert [one.response().status for one in (streamed, read)] == [408, 408]
    assert dropped.ended()
    assert calls.status(stream) == 4


def min_data_rate(on: Edited) -> None:
    sends = on.rest()
    on.limits(body_timeout=SHORT * 2)
    sends.send(UPSERT, b"content-length: 1000000\r\n\r\n", bytes(10_000))
    on.limits(min_data_rate=1 << 30)
    assert sends.response().status == 408


def head_timeout(on: Edited) -> None:
    rest = on.rest()
    raw = on.opened.enter_context(on.gateway.connect(_h2(on.site), port=on.gateway.grpc_port))
    rest.send(b"GET / HT")
    on.limits(head_timeout=SHORT)
    assert rest.response().status == 408
    while raw.recv(4096):  # it never sends its preface
        pass


def _h2(site: Site) -> ssl.SSLContext:
    context = site.client()
    context.set_alpn_protocols(["h2"])
    return context


def handshake_timeout(on: Edited) -> None:
    with socket.create_connection(("127.0.0.1", on.gateway.port), timeout=DEADLINE) as sock:
        until(lambda: 'connections_total{outcome="accepted"}' in on.gateway.ask_admin("/metrics")[1])
        on.limits(handshake_timeout=SHORT)
        assert sock.recv(4096) == b""


def write_timeout(on: Edited) -> None:
    def answer(connection: Connection, _request: Received) -> None:
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        while True:
            connection.sock.sendall(bytes(1 << 20))

    rest = on.rest()
    on.upstream.answer = answer
    rest.send(GET)
    assert rest.head().status == 200
    on.limits(write_timeout=SHORT)
    assert on.gateway.audited(reason="client_stalled")["status"] == 200


def tcp_idle_timeout(on: Edited) -> None:
    sock = on.opened.enter_context(on.gateway.connect(on.site.client(), port=on.gateway.ports["TCP"][0]))
    behind = on.opened.enter_context(on.tunnelled.accept()[0])
    sock.sendall(b"x")
    assert behind.recv(1) == b"x"
    on.limits(tcp_idle_timeout=SHORT)
    with suppress(ConnectionError):
        assert behind.recv(1) == b""
    with suppress(ssl.SSLError, ConnectionError):
        assert sock.recv(1) == b""


def linger_timeout(on: Edited) -> None:
    rest = on.rest("search")
    on.limits(linger_timeout=SHORT)
    rest.send(UPLOAD, b"content-length: 1000000\r\n\r\n")
    assert rest.response().status == 403
    assert rest.ended()


def expel_after(on: Edited) -> None:
    rest, begun = on.rest(), on.stuck()
    on.limits(expel_after=SHORT)
    rest.send(b"DELETE /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n")
    assert begun.wait(DEADLINE)
    on.edit(roles={"admin": {"access": "r"}})
    assert rest.response().status == 403


def mass_cut(on: Edited) -> None:
    rest = on.rest()
    on.limits(mass_cut={"number": 0})
    on.site.edit_config(on.config, identities=CONFIG["identities"][1:])
    assert json.loads(on.gateway.ask_admin("/reload", "POST")[1])["result"] == "held"
    assert on.asks(rest) == 200


def max_connection_age(on: Edited) -> None:
    """And ``end_spread``, over which those beyond a few end."""
    several = [on.rest() for _ in range(FEW + 1)]
    on.limits(max_connection_age=SHORT, end_spread=SHORT)
    assert all(rest.ended() for rest in several)


def max_head_size(on: Edited) -> None:
    """REST only: a gRPC client was told its limit when it connected."""
    rest, calls = on.rest(), on.grpc()
    on.limits(max_head_size=1024)
    long = fields("/qdrant.Qdrant/HealthCheck", ("x-long", "x" * 2000))
    assert calls.status(calls.call(b"", long)) == 0
    assert on.asks(rest, b"GET /healthz HTTP/1.1\r\nhost: h\r\nx: %b\r\n\r\n" % (b"x" * 2000)) == 431


def max_headers(on: Edited) -> None:
    rest, calls = on.rest(), on.grpc()
    on.limits(max_headers=4)
    assert on.asks(rest, b"GET / HTTP/1.1\r\nhost: h\r\n" + b"x: y\r\n" * 5 + b"\r\n") == 431
    assert calls.status(calls.call(b"", fields(COUNT, *((f"x-{n}", "y") for n in range(5))))) == 8


def max_upload_size_mb(on: Edited) -> None:
    rest = on.rest()
    on.limits(max_upload_size_mb=1)
    assert on.asks(rest, UPLOAD + b"content-length: 2000000\r\n\r\n") == 400


def max_streams(on: Edited) -> None:
    """Its client was told."""
    calls = on.grpc()
    on.grpc_upstream.answer = never
    on.limits(max_streams=1)
    for _ in range(2):
        calls.call()
    on.grpc_upstream.wait(2)


def streams_per_second(on: Edited) -> None:
    calls = on.grpc()
    on.limits(streams_per_second=1)
    for _ in range(3):
        with suppress(ConnectionError, ssl.SSLError):
            calls.call()
    assert calls.goaway() == 11


def max_message_size_mb(on: Edited) -> None:
    calls = on.grpc("ingest")
    on.limits(max_message_size_mb=1)
    stream, content = calls.open(fields(COUNT)), message(_large())
    for start in range(0, len(content), 16_384):
        calls.send(DataFrame(stream, content[start : start + 16_384]))
    assert calls.status(stream) == 8


def _large() -> bytes:
    """More than a MiB, of a tenant."""
    condition = pb.Condition(field=pb.FieldCondition(key="x" * 1_100_000, match=pb.Match(integer=1)))
    return pb.CountPoints(collection_name="docs", filter=pb.Filter(must=[condition])).SerializeToString()


def inspection_memory_mb(on: Edited) -> None:
    first, second = on.rest("ingest"), on.rest("ingest")
    on.edit(service={"max_request_size_mb": 1}, limits={"inspection_memory_mb": 1, "max_message_size_mb": 1})
    body = b'{"points": [{"id": 1, "vector": [%b]}]}' % b",".join([b"1.25"] * 150_000)
    first.send(UPSERT, b"content-length: %d\r\n\r\n" % len(body), body[:-1])
    until(lambda: on.gateway.inspection_memory() >= len(body) - 1)
    second.send(UPSERT, b"content-length: %d\r\n\r\n" % len(body))
    with suppress(ConnectionError, ssl.SSLError):
        second.send(body)
    assert second.response().status == 503


def connections(on: Edited) -> None:
    """Those that are open stay."""
    rest = on.rest()
    on.limits(connections=1)
    with pytest.raises((OSError, ssl.SSLError)), on.gateway.connect(on.site.client()) as sock:
        assert sock.recv(1) == b"x", "not even a handshake"
    assert on.asks(rest) == 200


def connections_per_address(on: Edited) -> None:
    rest = on.rest()
    on.limits(connections_per_address=1)
    with pytest.raises((OSError, ssl.SSLError)), on.gateway.connect(on.site.client()) as sock:
        assert sock.recv(1) == b"x", "not even a handshake"
    assert on.asks(rest) == 200


def per_address(on: Edited) -> None:
    on.rest()
    on.limits(per_address={"handshakes_per_second": 0.001, "burst": 1})
    on.rest()
    with pytest.raises((OSError, ssl.SSLError)), on.gateway.connect(on.site.client()) as sock:
        assert sock.recv(1) == b"x", "not even a handshake"


def per_identity(on: Edited) -> None:
    rest, calls = on.rest(), on.grpc()
    on.limits(per_identity={"requests_per_second": 0.001, "burst": 1})
    assert on.asks(rest, GET) == 200
    assert on.asks(rest, GET) == 429
    assert calls.status(calls.call()) == 8


def per_key(on: Edited) -> None:
    rest = on.rest()
    on.edit(service={"api_key": "k" * 32}, limits={"per_key": {"requests_per_second": 0.001, "burst": 1}})
    with_key = GET[:-2] + b"api-key: " + b"k" * 32 + b"\r\n\r\n"
    assert [on.asks(rest, with_key) for _ in range(2)] == [200, 429]


def drain_timeout(on: Edited) -> None:
    """And ``drain_grace``: a gateway that stops goes by what was published last."""
    config = on.site.write_config(on.upstream.url, limits={"drain_grace": 60, "drain_timeout": LONG})
    rest_of = on.stuck()
    with Gateway(config) as gateway, ExitStack() as stack:
        idle, busy = (stack.enter_context(connected(gateway, on.site.client())) for _ in range(2))
        busy.send(GET)
        assert rest_of.wait(DEADLINE)
        on.site.edit_config(config, limits={"drain_grace": 0.1, "drain_timeout": SHORT})
        assert gateway.ask_admin("/reload", "POST")[0] == 200
        gateway.stop()  # which waits for its end, for less than these were
        assert idle.ended()
        with pytest.raises(Truncated):
            busy.response()


def response_timeout(on: Edited) -> None:
    rest, calls, begun = on.rest(), on.grpc(), on.stuck()
    on.grpc_upstream.answer = never
    rest.send(GET)
    stream = calls.call()
    assert begun.wait(DEADLINE)
    on.edit(upstream={"response_timeout": SHORT})
    assert rest.response().status == 504
    assert calls.status(stream) == 4


def max_response_timeout(on: Edited) -> None:
    """A request and a call whose clients would wait for longer."""
    rest, calls, begun = on.rest(), on.grpc(), on.stuck()
    on.grpc_upstream.answer = never
    on.edit(upstream={"response_timeout": SHORT})
    rest.send(b"GET /collections?timeout=%d HTTP/1.1\r\nhost: h\r\n\r\n" % LONG)
    stream = calls.call(b"", fields(COUNT, ("grpc-timeout", f"{LONG}S")))
    assert begun.wait(DEADLINE)
    on.limits(max_response_timeout=SHORT)
    assert rest.response().status == 504
    assert calls.status(stream) == 4


def snapshot_timeout(on: Edited) -> None:
    rest, calls, begun = on.rest(), on.grpc(), on.stuck()
    on.grpc_upstream.answer = never
    rest.send(b"POST /snapshots HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")
    stream = calls.call(b"", fields("/qdrant.Snapshots/CreateFull"))
    assert begun.wait(DEADLINE)
    on.limits(snapshot_timeout=SHORT)
    assert rest.response().status == 504
    assert calls.status(stream) == 4


def upstream_idle_timeout(on: Edited) -> None:
    rest = on.rest()
    on.edit(upstream={"idle_timeout": 4.9})
    on.upstream.answer = answered = _Answered()
    assert on.asks(rest) == 200
    on.edit(upstream={"idle_timeout": SHORT})
    assert answered.closed.wait(DEADLINE)


class _Answered:
    """Answers once, and tells when the connection is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def __call__(self, connection: Connection, _request: Received) -> None:
        connection.sock.sendall(OK)
        if not connection.sock.recv(1):
            self.closed.set()
            raise EOFError


def rest(on: Edited) -> None:
    """The next request of an open connection goes where the upstream is now, whatever connections are kept."""
    client = on.rest()
    with ScriptedUpstream() as other:
        on.edit(upstream={"rest": other.url})
        assert on.asks(client, GET) == 200
        assert len(other.requests) == 1


def grpc(on: Edited) -> None:
    calls = on.grpc()
    with GrpcUpstream() as other:
        on.edit(upstream={"grpc": other.url})
        assert calls.status(calls.call()) == 0
        assert len(other.calls) == 1
        on.reset()


def route_affinity(on: Edited) -> None:
    client = on.rest()
    until(lambda: on.gateway.ask_admin("/readyz")[0] == 200)  # before, it has not been asked for its release
    assert on.asks(client, GET) == 200
    assert "x-qdrant-route-affinity" in on.upstream.requests[-1].fields
    on.edit(upstream={"route_affinity": "none"})
    assert on.asks(client, GET) == 200
    assert "x-qdrant-route-affinity" not in on.upstream.requests[-1].fields


def max_connections(on: Edited) -> None:
    begun = on.stuck()
    clients = [on.opened.enter_context(connected(on.gateway, on.site.client())) for _ in range(3)]
    on.edit(upstream={"max_connections": 2})
    for client in clients:
        client.send(GET)
    assert begun.wait(DEADLINE)
    until(lambda: "upstream_waiting 1.0" in on.gateway.ask_admin("/metrics")[1])


def connect_timeout(on: Edited) -> None:
    begun = on.stuck()
    first, second = (on.opened.enter_context(connected(on.gateway, on.site.client())) for _ in range(2))
    on.edit(upstream={"max_connections": 1, "connect_timeout": LONG})
    first.send(GET)
    assert begun.wait(DEADLINE)
    second.send(GET)
    until(lambda: "upstream_waiting 1.0" in on.gateway.ask_admin("/metrics")[1])
    on.edit(upstream={"connect_timeout": SHORT})
    assert second.response().status == 504


def api_key(on: Edited) -> None:
    client = on.rest()
    on.edit(upstream={"api_key": "new"})
    assert on.asks(client, GET) == 200
    assert on.upstream.requests[-1].fields["api-key"] == "new"


def max_request_size_mb(on: Edited) -> None:
    client = on.rest()
    on.edit(service={"max_request_size_mb": 1})
    assert on.asks(client, UPSERT + b"content-length: 1100000\r\n\r\n") == 400


LIMITS: dict[str, Callable[[Edited], None]] = {
    one.__name__: one
    for one in (
        body_timeout,
        connections,
        connections_per_address,
        drain_timeout,
        expel_after,
        handshake_timeout,
        head_timeout,
        idle_timeout,
        inspection_memory_mb,
        linger_timeout,
        mass_cut,
        max_connection_age,
        max_head_size,
        max_headers,
        max_message_size_mb,
        max_response_timeout,
        max_streams,
        max_upload_size_mb,
        min_data_rate,
        per_address,
        per_identity,
        per_key,
        snapshot_timeout,
        streams_per_second,
        tcp_idle_timeout,
        write_timeout,
    )
} | {"drain_grace": drain_timeout, "inspection_timeout": inspection_memory_mb, "end_spread": max_connection_age}
UPSTREAM: dict[str, Callable[[Edited], None]] = {
    one.__name__: one
    for one in (rest, grpc, api_key, max_connections, connect_timeout, response_timeout, route_affinity)
} | {"idle_timeout": upstream_idle_timeout, "api_key_file": api_key, "on_change": rest, "resolve_interval": rest}
ELSEWHERE: Final = {"nodes", "check_interval", "affinity", "tls"}
"""Several nodes, and TLS with Qdrant, have tests of their own (tests/e2e/test_nodes.py, test_upstream_tls.py)."""


@pytest.mark.parametrize("name", [name for name, test in LIMITS.items() if name == test.__name__])
def test_a_limit(on: Edited, name: str) -> None:
    LIMITS[name](on)


@pytest.mark.parametrize(
    "name", [name for name in UPSTREAM if name not in {"api_key_file", "on_change", "resolve_interval"}]
)
def test_what_is_said_of_the_upstream(on: Edited, name: str) -> None:
    UPSTREAM[name](on)


def test_the_largest_body(on: Edited) -> None:
    max_request_size_mb(on)


def test_no_other_is_there() -> None:
    assert LIMITS.keys() == LimitsConfig.model_fields.keys()
    assert UPSTREAM.keys() | ELSEWHERE == UpstreamConfig.model_fields.keys()
    for model in (LimitsConfig, UpstreamConfig):
        for name, text in descriptions(model).items():
            assert ("open" in text and "keeps" in text) == (name in KEPT), name
    for section, applied in ((AuditConfig, {"log_api", "probes", "trust_forwarded_headers"}),):
        needed = {name for name, field in section.model_fields.items() if needs_restart(field)}
        assert section.model_fields.keys() == needed | applied
    sizes = {name for name in Service.model_fields if name.startswith("max_")}
    assert sizes == {"max_request_size_mb"}
