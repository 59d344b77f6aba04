"""Several nodes of Qdrant: requests are spread, and what one node fails is asked of another where that is safe."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.gateway import DEADLINE, Gateway
from support.polling import until
from support.raw_connection import GET, SEARCH, UPSERT, RawClient, Truncated, connected
from support.site import Site
from support.sockets import deaf
from support.upstream import OK, Answer, Connection, Received, ScriptedUpstream, plain

BODY = b"content-length: 13\r\n\r\n" + b'{"limit": 10}'
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n"
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
FEW = 12


def entry(name: str, upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    return {"name": name, "rest": upstream.url, **more}


def silent(connection: Connection, request: Received) -> None:
    """Reads a request and closes without a byte of an answer."""
    request.body = connection.read_body(request)
    raise EOFError


class Nodes:
    """A gateway before three nodes; ``use`` publishes others, or the same with other answers."""

    def __init__(self, site: Site, stack: ExitStack) -> None:
        self.site = site
        self.uses = 0
        self.all = {name: stack.enter_context(ScriptedUpstream()) for name in "abc"}
        self.path = site.write_config(self.entries("abc"), upstream={"check_interval": 0})
        self.gateway = stack.enter_context(Gateway(self.path))

    def entries(self, names: str, **more: Any) -> list[dict[str, Any]]:
        return [entry(name, self.all[name], **more) for name in names]

    def use(self, nodes: list[dict[str, Any]], answer: Answer | None = None, **more: Any) -> None:
        """With nothing known of the nodes: the published ones are new."""
        for upstream in self.all.values():
            upstream.answer, upstream.probe = answer or plain(), plain()
        self.uses += 1
        named = [one | {"name": f"{one['name']}-{self.uses}"} for one in nodes]
        usual = {"check_interval": 0, "affinity": "none", "connect_timeout": 5}
        self.site.edit_config(self.path, upstream={"nodes": named, **usual, **more})
        self.gateway.reloaded()
        for upstream in self.all.values():
            upstream.requests.clear()

    @property
    def counts(self) -> dict[str, int]:
        return {name: len(upstream.requests) for name, upstream in self.all.items()}


@pytest.fixture(scope="module")
def nodes(site: Site) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(site, stack)


@pytest.fixture
def client(nodes: Nodes) -> Iterator[RawClient]:
    with connected(nodes.gateway, nodes.site.client()) as one:
        yield one


def ask(client: RawClient, request: bytes = GET, times: int = FEW) -> Counter[int]:
    statuses: Counter[int] = Counter()
    for _ in range(times):
        client.send(request)
        statuses[client.response().status] += 1
    return statuses


def test_requests_are_spread_and_name_their_node(nodes: Nodes, client: RawClient) -> None:
    nodes.use(nodes.entries("abc"))
    assert ask(client, times=3 * FEW) == {200: 3 * FEW}
    assert min(nodes.counts.values()) > 0
    for upstream in nodes.all.values():
        hosts = {request.fields["host"] for request in upstream.requests}
        assert hosts == {upstream.url.removeprefix("http://")}


@pytest.mark.parametrize("request_bytes", [GET, SEARCH + BODY, UPSERT + BODY])
def test_a_node_that_cannot_be_connected_to_fails_nothing(
    nodes: Nodes, client: RawClient, request_bytes: bytes
) -> None:
    with ScriptedUpstream() as gone:
        dead = entry("dead", gone)
    nodes.use([dead, *nodes.entries("a")])
    assert ask(client, request_bytes) == {200: FEW}
    assert nodes.counts == {"a": FEW, "b": 0, "c": 0}, "each was sent once"


@pytest.mark.parametrize("body", [BODY, b"expect: 100-continue\r\n" + BODY])
def test_a_read_without_a_byte_of_an_answer_is_sent_to_another_node(
    nodes: Nodes, client: RawClient, body: bytes
) -> None:
    nodes.use(nodes.entries("ab"))
    nodes.all["a"].answer = silent
    assert ask(client, SEARCH + body) == {200: FEW}
    assert 0 < nodes.counts["a"] <= 3, "and it is left out after three failures in a row"
    assert {request.body for request in nodes.all["b"].requests} == {b'{"limit": 10}'}


def test_a_write_never_is(nodes: Nodes, client: RawClient) -> None:
    nodes.use(nodes.entries("ab"))
    nodes.all["a"].answer = silent
    statuses = ask(client, UPSERT + BODY)
    assert statuses == {502: nodes.counts["a"], 200: nodes.counts["b"]}
    assert 0 < nodes.counts["a"] <= 3
    assert sum(nodes.counts.values()) == FEW


@pytest.mark.parametrize("begun", [OK[:1], OK[:20], b"no HTTP at all\r\n\r\n", OK[:-5]])
def test_an_answer_that_has_begun_is_not_asked_for_again(nodes: Nodes, begun: bytes) -> None:
    """But its node is left out after three of them in a row."""

    def answer(connection: Connection, request: Received) -> None:
        connection.read_body(request)
        connection.sock.sendall(begun)
        raise EOFError

    nodes.use(nodes.entries("ab"))
    nodes.all["a"].answer = answer
    failed = 0
    for _ in range(FEW):
        with connected(nodes.gateway, nodes.site.client()) as one:
            one.send(GET)
            try:
                failed += one.response().status == 502
            except Truncated:
                failed += 1
    assert failed == nodes.counts["a"] == 3
    assert nodes.counts["b"] == FEW - failed


def test_retries_have_a_budget(nodes: Nodes, client: RawClient) -> None:
    nodes.use(nodes.entries("abc"), silent)
    asked = 60
    before, refused = retries(nodes.gateway), retries(nodes.gateway, "retries_refused")
    assert ask(client, times=asked) == {502: asked}
    assert retries(nodes.gateway) - before <= 0.2 * (asked + 200) + 3
    assert sum(nodes.counts.values()) == asked + retries(nodes.gateway) - before
    assert 0 < retries(nodes.gateway, "retries_refused") - refused <= asked


def status(gateway: Gateway) -> dict[str, Any]:
    return dict(json.loads(gateway.ask_admin("/status")[1]))


def retries(gateway: Gateway, counter: str = "retries") -> int:
    metrics = gateway.ask_admin("/metrics")[1]
    return int(float(metrics.split(f"\ntlsproxy_upstream_{counter}_total ")[1].split()[0]))


def test_a_proxy_that_says_bad_gateway_puts_its_node_out(nodes: Nodes, client: RawClient) -> None:
    def until_close(connection: Connection, _request: Received) -> None:
        connection.sock.sendall(b"HTTP/1.0 502 Bad Gateway\r\ncontent-type: text/html\r\n\r\n<html></html>")
        raise EOFError  # as HAProxy before 2.2

    for answer in (plain(BAD_GATEWAY), until_close):
        nodes.use(nodes.entries("ab"))
        nodes.all["a"].answer = answer
        statuses: Counter[int] = Counter()
        for _ in range(FEW):
            with connected(nodes.gateway, nodes.site.client()) as one:
                statuses += ask(one, times=1)
        assert nodes.counts["a"] == statuses[502] <= 3, "an answer is passed on, whatever it is"
    nodes.use(nodes.entries("ab"))
    own = UNAVAILABLE.replace(b"content-length: 0", b"content-type: application/json\r\ncontent-length: 2") + b"{}"
    nodes.all["a"].answer = plain(own)
    assert ask(client)[503] > 3, "Qdrant's own judgement of a request is none of its health"


def test_all_bad_nodes_go_on_being_asked(nodes: Nodes, client: RawClient) -> None:
    nodes.use(nodes.entries("ab"), silent)
    ask(client)
    for upstream in nodes.all.values():
        upstream.answer = plain()
    assert ask(client, UPSERT + BODY) == {200: FEW}


def test_drained_nodes_and_those_that_come_and_go(nodes: Nodes, client: RawClient) -> None:
    nodes.use([*nodes.entries("a"), *nodes.entries("b", drain=True)])
    assert ask(client) == {200: FEW}
    assert nodes.counts == {"a": FEW, "b": 0, "c": 0}
    nodes.use(nodes.entries("a"))
    assert ask(client) == {200: FEW}
    assert [row["state"] for row in status(nodes.gateway)["nodes"]] == ["up"], "the only one has its row, too"
    nodes.use(nodes.entries("bc"))
    assert ask(client, times=30) == {200: 30}
    assert nodes.counts["a"] == 0 < min(nodes.counts["b"], nodes.counts["c"])


def test_an_identity_stays_at_one_node(nodes: Nodes, client: RawClient) -> None:
    nodes.use(nodes.entries("abc"), affinity="identity")
    with connected(nodes.gateway, nodes.site.client()) as other:
        assert ask(client) + ask(other) == {200: 2 * FEW}
    (home,) = (name for name, count in nodes.counts.items() if count)
    nodes.all[home].answer = silent
    assert ask(client) == {200: FEW}
    assert len([name for name, count in nodes.counts.items() if count]) == 2, "another one while it fails"


def test_a_node_takes_no_more_connections_than_its_own_limit(nodes: Nodes) -> None:
    held, come = threading.Event(), threading.Semaphore(0)

    def waiting(connection: Connection, request: Received) -> None:
        connection.read_body(request)
        come.release()
        assert held.wait(DEADLINE)
        connection.sock.sendall(OK)

    nodes.use([*nodes.entries("a", max_connections=1), *nodes.entries("b")], waiting)
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(nodes.gateway, nodes.site.client())) for _ in range(4)]
        for one in clients:
            one.send(GET)
        for _ in clients:
            assert come.acquire(timeout=DEADLINE)
        assert nodes.counts == {"a": 1, "b": 3, "c": 0}
        held.set()
        assert [one.response().status for one in clients] == [200] * 4


def test_what_moves_waits_where_the_other_node_is_full(nodes: Nodes) -> None:
    """A read that is tried again, and a write whose node cannot be reached."""
    held, come = threading.Event(), threading.Semaphore(0)
    at_b: set[Connection] = set()
    together = []

    def waiting(connection: Connection, request: Received) -> None:
        connection.read_body(request)
        at_b.add(connection)
        together.append(len(at_b))
        come.release()
        assert held.wait(DEADLINE)
        at_b.discard(connection)
        connection.sock.sendall(OK)

    def taken(connection: Connection, request: Received) -> None:
        connection.read_body(request)
        come.release()
        assert not connection.sock.recv(1)
        raise EOFError

    with ExitStack() as stack:
        with ScriptedUpstream(taken) as gone:
            nodes.use([entry("dead", gone), *nodes.entries("b", max_connections=1)], waiting)
            clients = [stack.enter_context(connected(nodes.gateway, nodes.site.client())) for _ in range(3)]
            for one in clients[:2]:
                one.send(GET)
                assert come.acquire(timeout=DEADLINE)
        clients[2].send(UPSERT + BODY)
        until(lambda: "tlsproxy_upstream_waiting 2.0" in nodes.gateway.ask_admin("/metrics")[1])
        held.set()
        assert [one.response().status for one in clients] == [200] * 3
    assert together == [1] * 3


def test_a_wait_for_a_full_node_ends(nodes: Nodes) -> None:
    held, come = threading.Event(), threading.Event()

    def waiting(connection: Connection, request: Received) -> None:
        connection.read_body(request)
        come.set()
        assert held.wait(DEADLINE)
        connection.sock.sendall(OK)

    with ScriptedUpstream() as gone:
        dead = entry("dead", gone)
    nodes.use([dead, *nodes.entries("b", max_connections=1)], waiting, connect_timeout=0.1)
    with ExitStack() as stack:
        first, late = (stack.enter_context(connected(nodes.gateway, nodes.site.client())) for _ in range(2))
        first.send(GET)
        assert come.wait(DEADLINE)
        late.send(UPSERT + BODY)
        response = late.response()
        held.set()
        assert first.response().status == 200
    assert (response.status, nodes.counts["b"]) == (504, 1)
    assert b"became free in time" in response.body


def test_a_node_that_takes_no_connections_holds_up_none_once_it_fails_its_checks(
    nodes: Nodes, client: RawClient
) -> None:
    with deaf() as where:
        silent_node = {"name": "deaf", "rest": f"http://{where}"}
        nodes.use([silent_node, *nodes.entries("a")], check_interval=0.05, connect_timeout=300)
        assert ask(client, UPSERT + BODY) == {200: FEW}


def test_a_node_that_hangs_loses_its_reads_once_it_fails_its_checks(nodes: Nodes) -> None:
    """As a stopped process does, which still takes connections. A write waits for its answer."""
    hung = threading.Event()

    def hanging(connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        assert hung.wait(DEADLINE)
        connection.sock.sendall(OK)

    nodes.use(nodes.entries("ab"), check_interval=0.05)
    nodes.all["a"].answer = hanging
    with ExitStack() as stack:
        sent = (GET, SEARCH + BODY, UPSERT + BODY)
        clients = [stack.enter_context(connected(nodes.gateway, nodes.site.client())) for _ in range(2 * len(sent))]
        for one, request in zip(clients, sent * 2, strict=True):
            one.send(request)
        nodes.all["a"].probe = plain(UNAVAILABLE)
        reads = [one for one, request in zip(clients, sent * 2, strict=True) if request is not sent[-1]]
        assert [one.response().status for one in reads] == [200] * len(reads)
        hung.set()
        assert [one.response().status for one in clients if one not in reads] == [200] * 2
    assert sum(request.line.startswith("PUT") for one in nodes.all.values() for request in one.requests) == 2


def test_a_node_that_says_it_is_not_ready_gets_nothing(nodes: Nodes, client: RawClient) -> None:
    def asked(upstream: ScriptedUpstream, answer: bytes, times: int) -> None:
        """Answers that many checks so."""
        seen = threading.Semaphore(0)

        def probe(connection: Connection, request: Received) -> None:
            connection.sock.sendall(answer)
            if request.line.startswith("GET /readyz "):
                seen.release()

        upstream.probe = probe
        for _ in range(times):
            assert seen.acquire(timeout=DEADLINE)

    nodes.use(nodes.entries("ab"), check_interval=0.05)
    a = nodes.all["a"]
    asked(a, UNAVAILABLE, 3)
    a.requests.clear()
    assert ask(client) == {200: FEW}
    assert not a.requests
    asked(a, OK, 3)
    assert ask(client, times=10 * FEW) == {200: 10 * FEW}
    assert a.requests, "it is back, slowly"
