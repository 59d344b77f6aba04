"""gRPC before several nodes: a client's connection is placed on one, and goes on elsewhere when that one goes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, GoAwayFrame
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcCall, GrpcUpstream, never, replying
from support.h2_raw_client import H2Client, h2, raw
from support.polling import until
from support.site import Site
from support.sockets import deaf
from support.upstream import ScriptedUpstream, plain

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
SETTINGS = raw(4, 0, 0)
TRAILERS = b"\x00\x0bgrpc-status\x010"
NOT_READY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


@contextmanager
def scripted(*said: bytes, received: list[bytes] | None = None) -> Iterator[tuple[str, threading.Semaphore]]:
    """A node of one connection, where it says each of these, and then ends it, when it is told to go on."""
    go_on = threading.Semaphore(0)

    def serve() -> None:
        sock, _ = server.accept()
        with sock:
            for part in (SETTINGS, *said):
                sock.sendall(part)
                if received is not None:
                    while b"grpc" not in b"".join(received):
                        received.append(sock.recv(65536))
                assert go_on.acquire(timeout=DEADLINE)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", go_on
        thread.join(DEADLINE)


class Nodes:
    """A gateway before nodes `a`, `b` and `c`, each with a REST API for its checks."""

    def __init__(self, site: Site, stack: ExitStack) -> None:
        self.site = site
        self.stack = stack
        self.rest = {name: stack.enter_context(ScriptedUpstream()) for name in "abc"}
        self.all = {name: stack.enter_context(GrpcUpstream()) for name in "abc"}
        upstream = {"check_interval": 0}
        self.path = site.write_config(self.entries("abc"), upstream=upstream, service={"grpc_port": 0})
        self.gateway = stack.enter_context(Gateway(self.path))

    def entries(self, names: str, **more: Any) -> list[dict[str, Any]]:
        return [{"name": one, "rest": self.rest[one].url, "grpc": self.all[one].url, **more} for one in names]

    def publish(self, nodes: list[dict[str, Any]], **more: Any) -> None:
        usual = {"check_interval": 0, "connect_timeout": 5, "response_timeout": 300, "max_connections": 256}
        upstream = {"nodes": nodes, **usual, **more}
        self.site.edit_config(self.path, upstream=upstream)
        self.gateway.reloaded()

    def use(self, nodes: list[dict[str, Any]], **more: Any) -> None:
        """With nothing known of the nodes, which reply."""
        for name, upstream in self.all.items():
            upstream.answer, self.rest[name].probe = replying(b""), plain()
        nobody = "http://127.0.0.1:9"
        self.publish([{"name": "none", "rest": nobody, "grpc": nobody}])
        self.publish(nodes, **more)
        for upstream in self.all.values():
            upstream.calls.clear()

    def at(self) -> str:
        """The only node that has had calls."""
        (name,) = (name for name, upstream in self.all.items() if upstream.calls)
        return name

    @property
    def counts(self) -> dict[str, int]:
        return {name: len(upstream.calls) for name, upstream in self.all.items()}


@pytest.fixture(scope="module")
def nodes(site: Site) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(site, stack)


@pytest.fixture
def client(nodes: Nodes) -> Iterator[H2Client]:
    with h2(nodes.gateway, nodes.site) as one:
        yield one
        one.lives()
        assert not [frame for frame in one.received if isinstance(frame, GoAwayFrame)], "the connection goes on"


def begun(nodes: Nodes, client: H2Client) -> tuple[int, str]:
    """A call that goes on, and its node."""
    come = threading.Semaphore(0)

    async def running(call: GrpcCall) -> None:
        come.release()
        await never(call)

    for upstream in nodes.all.values():
        upstream.answer = running
    before = nodes.counts
    stream = client.call()
    assert come.acquire(timeout=DEADLINE)
    (name,) = (name for name, count in nodes.counts.items() if count > before[name])
    for upstream in nodes.all.values():
        upstream.answer = replying(b"")
    return stream, name


def begun_at(nodes: Nodes, client: H2Client, url: str, calls: int) -> list[int]:
    """Calls of which none has an answer, at a node that others then stand beside."""
    node = {"name": "scripted", "rest": nodes.rest["b"].url, "grpc": url}
    nodes.use([node])
    streams = [client.open() for _ in range(calls)]
    client.lives()
    nodes.publish([node, *nodes.entries("a")])
    for stream in streams:
        client.send(DataFrame(stream, b"", flags=["END_STREAM"]))
    return streams


def test_connections_are_spread_by_their_calls(nodes: Nodes) -> None:
    nodes.use(nodes.entries("abc"))
    with ExitStack() as stack:
        clients = [stack.enter_context(h2(nodes.gateway, nodes.site)) for _ in range(3)]
        assert sorted(begun(nodes, one)[1] for one in clients) == ["a", "b", "c"]
        for one in clients:
            assert one.status(one.call()) == 0
        assert nodes.counts == {"a": 2, "b": 2, "c": 2}, "each stays at its node"


def test_a_node_that_cannot_be_dialled_fails_no_call(nodes: Nodes, client: H2Client) -> None:
    with socket.create_server(("127.0.0.2", 0)) as sock:
        dead = f"http://127.0.0.2:{sock.getsockname()[1]}"
    nodes.use([{"name": "dead", "rest": nodes.rest["b"].url, "grpc": dead}, *nodes.entries("a")])
    streams = [client.call() for _ in range(3)]
    assert client.statuses(streams) == dict.fromkeys(streams, 0)
    for _ in range(3):
        with h2(nodes.gateway, nodes.site) as other:
            assert other.status(other.call()) == 0
    assert nodes.counts == {"a": 6, "b": 0, "c": 0}


def test_a_node_that_takes_no_connections_holds_up_none_once_it_fails_its_checks(nodes: Nodes) -> None:
    with deaf() as where, h2(nodes.gateway, nodes.site) as first, h2(nodes.gateway, nodes.site) as other:
        silent = {"name": "deaf", "rest": nodes.rest["b"].url, "grpc": f"http://{where}"}
        nodes.use([silent, *nodes.entries("a")], check_interval=0.05, connect_timeout=300)
        called = [(one, one.call()) for one in (first, other)]
        assert [one.status(stream) for one, stream in called] == [0, 0]


def test_a_call_waits_where_the_only_node_left_is_full(nodes: Nodes) -> None:
    with socket.create_server(("127.0.0.2", 0)) as sock:
        dead = f"http://127.0.0.2:{sock.getsockname()[1]}"
    nodes.use(nodes.entries("a", max_connections=1))
    with h2(nodes.gateway, nodes.site) as first, h2(nodes.gateway, nodes.site) as other:
        running, _ = begun(nodes, first)
        entries = nodes.entries("a", max_connections=1)
        nodes.publish([*entries, {"name": "dead", "rest": nodes.rest["b"].url, "grpc": dead}])
        late = other.call()
        other.lives()
        until(lambda: "tlsproxy_upstream_waiting 1.0" in nodes.gateway.ask_admin("/metrics")[1])
        assert nodes.counts["a"] == 1
        first.send(raw(3, 0, running, bytes((0, 0, 0, 8))))
        assert other.status(late) == 0
    assert nodes.counts == {"a": 2, "b": 0, "c": 0}


@pytest.mark.parametrize("most", [{"max_connections": 1}, {}], ids=["of all", "of the node"])
def test_clients_take_turns_where_connections_are_few(nodes: Nodes, most: dict[str, int]) -> None:
    """And hear nothing of it: after a GOAWAY gRPC's libraries wait for a second or more before they dial."""
    nodes.use(nodes.entries("a") if most else nodes.entries("a", max_connections=1), **most)
    with h2(nodes.gateway, nodes.site) as first, h2(nodes.gateway, nodes.site) as other:
        for one in (first, other) * 2:
            assert one.status(one.call()) == 0
        running, _ = begun(nodes, first)
        waiting = other.call()
        until(lambda: "tlsproxy_upstream_waiting 1.0" in nodes.gateway.ask_admin("/metrics")[1])
        first.send(raw(3, 0, running, bytes((0, 0, 0, 8))))
        nodes.all["a"].answer = replying(b"")
        assert other.status(waiting) == 0
        assert first.status(first.call()) == 0
        assert not [one for one in first.received + other.received if isinstance(one, GoAwayFrame)]


def test_all_nodes_that_cannot_be_dialled(nodes: Nodes, client: H2Client) -> None:
    with socket.create_server(("127.0.0.2", 0)) as sock:
        dead = f"http://127.0.0.2:{sock.getsockname()[1]}"
    nodes.use([{"name": name, "rest": nodes.rest["b"].url, "grpc": dead} for name in ("dead", "gone")])
    assert client.status(client.call()) == UNAVAILABLE
    nodes.publish(nodes.entries("a"))
    assert client.status(client.call()) == 0


def test_a_call_names_its_node(nodes: Nodes, client: H2Client) -> None:
    """As `:authority`, whichever node stands first."""
    received: list[bytes] = []
    with scripted(received=received) as (url, go_on):
        there = {"name": "scripted", "rest": nodes.rest["b"].url, "grpc": url}
        nodes.use([*nodes.entries("a", drain=True), there])
        stream = client.call()
        go_on.release()
        assert client.status(stream) == UNAVAILABLE
    said = b"".join(received)
    assert url.removeprefix("http://").encode() in said
    assert nodes.all["a"].url.removeprefix("http://").encode() not in said


def test_a_proxy_that_says_bad_gateway_puts_its_node_out(nodes: Nodes, client: H2Client) -> None:
    answers = b"".join(raw(1, 5, stream, b"\x08\x03502") for stream in (1, 3, 5))
    with scripted(answers) as (url, go_on):
        running = begun_at(nodes, client, url, calls=3)
        go_on.release()
        assert [client.fields(stream)[":status"] for stream in running] == ["502"] * 3, "an answer is passed on"
        assert client.status(client.call()) == 0
        go_on.release()
    assert nodes.counts == {"a": 1, "b": 0, "c": 0}


def test_a_node_that_is_lost(nodes: Nodes, client: H2Client) -> None:
    """Its open calls end, the next ones are made elsewhere."""
    with scripted() as (url, go_on):
        running = begun_at(nodes, client, url, calls=3)
        go_on.release()
        assert client.statuses(running) == dict.fromkeys(running, UNAVAILABLE)
    streams = [client.call() for _ in range(3)]
    assert client.statuses(streams) == dict.fromkeys(streams, 0)
    assert nodes.counts == {"a": 3, "b": 0, "c": 0}


def test_a_node_that_wants_no_more_calls(nodes: Nodes, client: H2Client) -> None:
    """As one that is stopped well says by GOAWAY: what it has begun ends there, what it has not may be made again."""
    goaway = raw(7, 0, 0, (1).to_bytes(4, "big") + bytes(4))
    with scripted(goaway + raw(1, 4, 1, b"\x88"), raw(1, 5, 1, TRAILERS)) as (url, go_on):
        running, late = begun_at(nodes, client, url, calls=2)
        go_on.release()
        assert client.reset(late) == ErrorCodes.REFUSED_STREAM
        assert client.fields(running)[":status"] == "200"
        streams = [client.call() for _ in range(3)]
        assert client.statuses(streams) == dict.fromkeys(streams, 0)
        go_on.release()
        assert client.status(running) == 0
        go_on.release()
    assert nodes.counts == {"a": 3, "b": 0, "c": 0}


def test_a_node_that_fails_its_checks(nodes: Nodes, client: H2Client) -> None:
    nodes.use(nodes.entries("abc"), check_interval=0.05)
    running, name = begun(nodes, client)
    nodes.rest[name].probe = plain(NOT_READY)
    assert client.status(running) == UNAVAILABLE
    streams = [client.call() for _ in range(3)]
    assert client.statuses(streams) == dict.fromkeys(streams, 0)
    assert nodes.counts[name] == 1
    assert nodes.gateway.audited(grpc_status=UNAVAILABLE)["reason"] == "upstream_unreachable"


def test_a_node_that_answers_nothing_in_time(nodes: Nodes, client: H2Client) -> None:
    """By the gateway's own time: it is left out like one that fails."""
    nodes.use(nodes.entries("ab"), response_timeout=0.1)
    _, name = begun(nodes, client)
    nodes.all[name].answer = never
    streams = [client.call() for _ in range(2)]
    assert client.statuses(streams) == dict.fromkeys(streams, DEADLINE_EXCEEDED)
    rows = json.loads(nodes.gateway.ask_admin("/status")[1])["nodes"]
    assert [row["name"] for row in rows if row["ejections"]] == [name]
    nodes.all[name].answer = replying(b"")
    assert client.status(client.call()) == 0


def test_an_idle_connection_at_a_node_that_fails_its_checks(nodes: Nodes, client: H2Client) -> None:
    nodes.use(nodes.entries("ab"), check_interval=0.05)
    assert client.status(client.call()) == 0
    name = nodes.at()
    with ExitStack() as stack:
        others = [stack.enter_context(h2(nodes.gateway, nodes.site)) for _ in range(2)]
        running = {name: (one, stream) for one in others for stream, name in [begun(nodes, one)]}
        nodes.rest[name].probe = plain(NOT_READY)
        other, stream = running[name]
        assert other.status(stream) == UNAVAILABLE
    before = nodes.counts[name]
    assert client.status(client.call()) == 0
    assert nodes.counts[name] == before


@pytest.mark.parametrize("removed", [False, True])
def test_a_node_that_is_drained_or_removed(nodes: Nodes, client: H2Client, *, removed: bool) -> None:
    """The calls that run there go on."""
    nodes.use(nodes.entries("ab"))
    running, name = begun(nodes, client)
    other = "b" if name == "a" else "a"
    nodes.publish(nodes.entries(other) if removed else [*nodes.entries(other), *nodes.entries(name, drain=True)])
    streams = [client.call() for _ in range(3)]
    assert client.statuses(streams) == dict.fromkeys(streams, 0)
    assert (nodes.counts[name], nodes.counts[other]) == (1, 3)
    assert not nodes.all[name].calls[0].ended.is_set()
    client.send(raw(3, 0, running, bytes((0, 0, 0, 8))))
    assert nodes.all[name].calls[0].ended.wait(DEADLINE)
