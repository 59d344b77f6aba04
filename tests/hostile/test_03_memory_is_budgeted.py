"""A caller cannot make the gateway hold more memory than `limits.inspection_memory_mb`, whatever it sends or does not
take: what comes, what it decodes to and what is made of it are counted before they are there.

Resident memory of a real process is measured, over what it had before, and what was used goes back to the system.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import grpc
import pytest
from hyperframe.frame import DataFrame
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import channel
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import SEARCH, fields, h2, message
from support.polling import until
from support.raw_connection import Truncated, connected, memory
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream, plain

from tlsproxy.wire.protobuf import delimited

BUDGET, SLACK = 64 << 20, 24 << 20
"""Bytes. The slack is for connections, TLS and what the allocator keeps."""
LARGE = 31 << 20
QUERY = "/collections/docs/points/query"
ROLES = {
    "admin": {"access": "m"},
    "ingest": {"access": [{"collection": "docs", "access": "rw"}]},
    "search": {"access": [{"collection": "docs", "access": "rw"}], "filter": {"tenant": "acme"}},
}
"""The second is limited to a collection, the third to some of its points: its bodies are written anew."""


@pytest.fixture(scope="module")
def answers() -> Iterator[GrpcUpstream]:
    with GrpcUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, answers: GrpcUpstream) -> Iterator[Gateway]:
    limits = {"inspection_memory_mb": BUDGET >> 20}
    with Gateway(site.write_config(shared_upstream.url, grpc=answers.url, roles=ROLES, limits=limits)) as running:
        yield running


@contextmanager
def within_budget(gateway: Gateway) -> Iterator[None]:
    """Not more is resident at any time meanwhile, and what was comes back."""
    before = memory(gateway, "VmRSS")
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")  # begins the peak anew
    yield
    assert (memory(gateway) - before) >> 20 <= (BUDGET + SLACK) >> 20
    end = time.monotonic() + DEADLINE
    while memory(gateway, "VmRSS") - before > SLACK and time.monotonic() < end:
        time.sleep(0.02)  # nothing tells of it
    assert memory(gateway, "VmRSS") - before <= SLACK


def together(count: int, ask: Callable[[], int]) -> Counter[int]:
    """Statuses of as many callers at a time."""
    told: Counter[int] = Counter()

    def one() -> None:
        told[ask()] += 1

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


# REST


def repeated(unit: bytes, size: int) -> bytes:
    return b'{"filter":[%b0]}' % (unit * (size // len(unit)))


@cache
def body(name: str) -> bytes:
    vector = b",".join(b"0.%07d" % (number * 7919 % 10**7) for number in range(1000))
    point = b'{"id":1,"vector":[%b],"payload":{"a":"b"}},' % vector
    return {
        "blanks": lambda: b"{%b}" % (b" " * LARGE),
        "numbers": lambda: repeated(b"-9,", 10 << 20),
        "arrays": lambda: repeated(b"[" * 100 + b"]" * 100 + b",", 499_000 * 2),
        "objects": lambda: repeated(b'{"a":{}},', 249_000 * 9),
        "strings": lambda: repeated(b'"a",', 990_000 * 4),
        "one string": lambda: b'{"a":"%b"}' % (b"a" * LARGE),
        "a wide string": lambda: b'{"a":"%b\\ud83d\\ude00"}' % (b"a" * (LARGE - 100)),
        "points": lambda: b'{"points":[%b{"id":2}]}' % (point * (LARGE // len(point))),
    }[name]()


def post(gateway: Gateway, site: Site, who: str, content: bytes, coding: str = "identity") -> int:
    """The status, 0 where the connection ended while the body was on its way."""
    with connected(gateway, site.client(who)) as client:
        try:
            head = f"POST {QUERY} HTTP/1.1\r\nhost: h\r\ncontent-encoding: {coding}\r\ncontent-length: {len(content)}"
            client.send(head.encode(), b"\r\n\r\n", content)
        except OSError:
            return 0
        try:
            return client.response().status
        except Truncated:
            return 0


def test_compressed_bodies_of_one_caller(gateway: Gateway, site: Site, shared_upstream: ScriptedUpstream) -> None:
    """6 times 32 KB that decode to 31 MB each: two at a time fit, and the others wait their turn."""
    shared_upstream.answer = plain()
    content = gzip.compress(body("blanks"))
    assert len(content) < 33_000
    with within_budget(gateway):
        told = together(6, lambda: post(gateway, site, "ingest", content, "gzip"))
    assert told[200] >= 1
    assert set(told) <= {200, 503}


@pytest.mark.parametrize(
    ("name", "coding", "who"),
    [
        ("numbers", "gzip", "search"),
        ("arrays", "deflate", "search"),
        ("objects", "gzip", "search"),
        ("strings", "deflate", "search"),
        ("one string", "gzip", "ingest"),
        ("a wide string", "deflate", "ingest"),
    ],
)
def test_whatever_is_made_of_a_small_body(gateway: Gateway, site: Site, name: str, coding: str, who: str) -> None:
    compress = gzip.compress if coding == "gzip" else zlib.compress
    content = compress(body(name), 6)
    with within_budget(gateway):
        told = together(4, lambda: post(gateway, site, who, content, coding))
    assert set(told) <= {200, 400, 403, 503}


@pytest.mark.parametrize("who", ["ingest", "search"])
def test_large_bodies_at_once(gateway: Gateway, site: Site, who: str) -> None:
    with within_budget(gateway):
        told = together(4, lambda: post(gateway, site, who, body("points")))
    assert set(told) <= {0, 200, 400, 503}


def test_what_would_take_more_than_all_is_refused_clearly(gateway: Gateway, site: Site) -> None:
    with connected(gateway, site.client("search")) as client:
        content = gzip.compress(body("numbers"), 6)
        client.send(b"POST %b HTTP/1.1\r\nhost: h\r\ncontent-encoding: gzip\r\n" % QUERY.encode())
        client.send(b"content-length: %d\r\n\r\n" % len(content), content)
        response = client.response()
    assert response.status == 400
    assert json.loads(response.body)["status"]["error"].startswith("Reading this takes more memory than there is")
    assert gateway.audited(reason="inspection_too_large")["result"] == "denied"


def test_answers_that_are_read_and_not_taken(gateway: Gateway, site: Site, shared_upstream: ScriptedUpstream) -> None:
    """Telemetry that is reduced for its reader, of 12 MB each, and no reader takes it."""
    content = b'{"result":{"id":"%b"},"status":"ok","time":0.0}' % (b"x" * (12 << 20))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
    shared_upstream.answer = plain(head + content)
    with within_budget(gateway), ExitStack() as stack:
        clients = [stack.enter_context(connected(gateway, site.client("ingest"))) for _ in range(8)]
        for client in clients:
            client.send(b"GET /telemetry HTTP/1.1\r\nhost: h\r\n\r\n")
        statuses = [client.head().status for client in clients]
    assert statuses.count(200) >= 2
    assert set(statuses) <= {200, 503}


# gRPC


VECTOR = delimited(1, b"docs") + delimited(2, bytes(LARGE))
NESTED = delimited(7, bytes(2 << 20))
for _ in range(90):
    NESTED = delimited(1, NESTED)
NESTED = delimited(1, b"docs") + delimited(2, NESTED)


def calls(gateway: Gateway, site: Site, who: str, method: str, content: bytes) -> Counter[int]:
    """The statuses of four compressed calls on each of three connections."""
    told: Counter[int] = Counter()
    framed = message(content, flag=1)
    parts = [framed[begin : begin + 16_000] for begin in range(0, len(framed), 16_000)]
    with h2(gateway, site, who) as first, h2(gateway, site, who) as second, h2(gateway, site, who) as third:
        opened = []
        for client in (first, second, third):
            streams = [client.open(fields(method, ("grpc-encoding", "gzip"))) for _ in range(4 // len(parts) or 1)]
            for stream in streams:
                client.send(*(DataFrame(stream, part) for part in parts), DataFrame(stream, flags=["END_STREAM"]))
            opened.append((client, streams))
        for client, streams in opened:
            told.update(client.statuses(streams).values())
    return told


@pytest.mark.parametrize("who", ["ingest", "search"])
@pytest.mark.parametrize(
    ("method", "content"), [(SEARCH, VECTOR), ("/qdrant.Points/Query", NESTED)], ids=["a vector", "nested 90 deep"]
)
def test_compressed_messages(gateway: Gateway, site: Site, who: str, method: str, content: bytes) -> None:
    compressed = gzip.compress(content)
    with within_budget(gateway):
        told = calls(gateway, site, who, method, compressed)
    assert set(told) <= {0, 8}


def test_what_a_message_names_before_it_ends_is_counted(gateway: Gateway, site: Site) -> None:
    """A call is followed while it comes, and is never whole: its names are kept until then."""
    looked_up = (delimited(1, b"%0250d" % number) for number in range(200))
    named = b"".join(delimited(2, delimited(8, one)) for one in looked_up)
    content = message(delimited(1, b"docs") + named + bytes(1000))[:-1000]
    with h2(gateway, site, "ingest") as client:
        stream = client.open(fields("/qdrant.Points/Query"))
        client.send(*(DataFrame(stream, content[begin : begin + 16_000]) for begin in range(0, len(content), 16_000)))
        until(lambda: gateway.inspection_memory() >= 200 * 250)
        assert 200 * 250 <= gateway.inspection_memory() < BUDGET
    until(lambda: not gateway.inspection_memory())


def test_large_messages_of_a_tenant(gateway: Gateway, site: Site) -> None:
    content = delimited(1, b"docs") + delimited(2, bytes(20 << 20))

    def call() -> int:
        with channel(gateway, site, "search") as opened:
            try:
                opened.unary_unary(SEARCH)(content, timeout=DEADLINE)
            except grpc.RpcError as error:
                return int(error.code().value[0])
        return 0

    with within_budget(gateway):
        told = together(4, call)
    assert set(told) <= {0, 8}


def test_ids_of_a_retrieval_are_counted_until_its_answer(
    gateway: Gateway, site: Site, shared_upstream: ScriptedUpstream
) -> None:
    """A tenant's answer is put in the order of the ids, which are kept until then."""
    asked, answered = threading.Event(), threading.Event()

    def answer(connection: Connection, request: Received) -> None:
        connection.read_body(request)
        asked.set()
        answered.wait(DEADLINE)
        connection.sock.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n{"result":{"points":[]}}')

    def in_use() -> float:
        return float(gateway.ask_admin("/metrics")[1].split("\ntlsproxy_inspection_memory_bytes ")[1].split()[0])

    shared_upstream.answer = answer
    body = json.dumps({"ids": [f"{number:032x}" for number in range(10_000)]}).encode()
    head = b"POST /collections/docs/points HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(body)
    with connected(gateway, site.client("search")) as client:
        client.send(head, body)
        assert asked.wait(DEADLINE)
        assert in_use() > 10_000 * 36
        answered.set()
        assert client.response().status == 200
    until(lambda: not in_use())
    shared_upstream.answer = plain()
