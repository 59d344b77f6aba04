"""What cannot be written down is not done: requests are refused, or wait, while the audit log has no room."""

from __future__ import annotations

import json
import resource
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from hyperframe.frame import HeadersFrame
from support.disk import small_disk
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import fields, h2
from support.polling import until
from support.raw_request import Client, alert, read_response, request
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream, plain

Trouble = Callable[[Gateway, Path], Callable[[], object]]


def directory_is_gone(_gateway: Gateway, directory: Path) -> Callable[[], object]:
    elsewhere = directory.rename(directory.with_name("elsewhere"))
    return lambda: elsewhere.rename(directory)


def disk_is_full(gateway: Gateway, _directory: Path) -> Callable[[], object]:
    """As near as it gets without a disk of one's own: the process may not make a file larger (EFBIG)."""
    pid, kind = gateway.process.pid, resource.RLIMIT_FSIZE
    soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (0, hard))
    return lambda: resource.prlimit(pid, kind, (soft, hard))


@contextmanager
def in_trouble(gateway: Gateway, site: Site, trouble: Trouble) -> Iterator[Callable[[], None]]:
    """Yields once the gateway knows, which takes a line; what is yielded ends the trouble and waits for that."""
    relieve = trouble(gateway, gateway.config.parent / "audit")
    assert "REQUIRED" in alert(gateway, site.client(None))
    gateway.log.wait(lambda line: "cannot be written" in line)

    def end() -> None:
        relieve()
        gateway.log.wait(lambda line: "ready again: audit" in line)

    yield end


def waits(sock: ssl.SSLSocket) -> bool:
    """Whether nothing comes for a while: what would come at once has come by then."""
    sock.settimeout(0.2)
    try:
        return not sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(DEADLINE)


def becomes_ready(gateway: Gateway) -> None:
    until(lambda: gateway.ask_admin("/readyz")[0] == 200)


def written(directory: Path) -> list[dict[str, Any]]:
    lines = [line for path in sorted(directory.glob("audit.*.log")) for line in path.read_text().splitlines()]
    return [record for record in map(json.loads, lines) if "event" not in record]


@pytest.mark.parametrize("trouble", [directory_is_gone, disk_is_full])
def test_requests_are_refused_until_it_can_be_written(
    own_site: Site, upstream: ScriptedUpstream, trouble: Trouble
) -> None:
    config = own_site.write_config(upstream.url, audit={"dir": "audit"})
    with Gateway(config) as gateway, Client(gateway, own_site.client("admin")) as client:
        assert client.ask(target="/collections/before").status == 200
        with in_trouble(gateway, own_site, trouble) as end:
            arrived = len(upstream.requests)
            response = client.ask(target="/collections/during")
            assert response.status == 503
            assert response.json["status"]["error"] == "The audit log cannot be written"
            assert response.fields["retry-after"] == "1"
            assert len(upstream.requests) == arrived
            status, parts = gateway.ask_admin("/readyz")
            assert status == 503
            assert "audit" in parts
            end()
        assert client.ask(target="/collections/after").status == 200
        assert gateway.ask_admin("/readyz")[0] == 200
        client.close()
        gateway.stop()
    outcomes = [
        (record["collection"], record["status"], record["reason"]) for record in written(config.parent / "audit")
    ]
    assert outcomes == [
        ("before", 200, "allowed"),
        ("during", 503, "audit_unavailable"),
        ("after", 200, "allowed"),
    ]


def test_with_block_requests_wait(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, audit={"dir": "audit", "on_full": "block"})
    with Gateway(config) as gateway, gateway.connect(own_site.client("admin")) as sock:
        with in_trouble(gateway, own_site, directory_is_gone) as end:
            arrived = len(upstream.requests)
            sock.sendall(request("GET", "/collections/patient"))
            with gateway.connect(own_site.client("stranger")) as other:
                other.sendall(request("GET", "/collections/stranger"))  # its refusal must be written down too
                assert waits(sock)
                assert waits(other)
                assert len(upstream.requests) == arrived
                end()
                assert read_response(other).status == 403
        assert read_response(sock).status == 200
        assert upstream.requests[-1].line == "GET /collections/patient HTTP/1.1"
        sock.close()  # or the gateway would wait for it
        gateway.stop()
    assert sorted(record["status"] for record in written(config.parent / "audit")) == [200, 403]


def test_with_block_the_wait_is_bounded(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(
        upstream.url, audit={"dir": "audit", "on_full": "block"}, limits={"write_timeout": 0.5}
    )
    with Gateway(config) as gateway, Client(gateway, own_site.client("admin")) as client:
        with in_trouble(gateway, own_site, directory_is_gone) as end:
            response = client.ask(target="/collections/impatient")
            assert response.status == 503
            assert response.json["status"]["error"] == "The audit log has no room"
            end()
        assert client.ask(target="/collections/after").status == 200
    assert "impatient" not in "".join(one.line for one in upstream.requests)


OWN = [
    ("GET", "/collections/x", "stranger", b"", 403),
    ("GET", "/no/such/route", "admin", b"", 404),
    ("DELETE", "/collections/x", "search", b"", 403),
    ("GET", "/_tlsproxy/whoami", "admin", b"", 200),
    ("GET", "/healthz", "admin", b"x", 400),
    ("GET", "/a%zz", "admin", b"", 400),
    ("GET", "/a/..", "admin", b"", 404),
    ("POST", "/audit/logs", "admin", b"{}", 200),
    ("POST", "/collections/docs/points/query", "ingest", b'{"lookup_from":{"collection":"other"}}', 403),
    ("PUT", "/collections/x/points", "admin", b"x" * ((1 << 20) + 1), 400),
]
"""Requests that the gateway answers itself: method, target, client, body, status."""


@pytest.mark.parametrize("on_full", ["refuse", "block"])
def test_what_the_gateway_answers_itself_asks_for_room_too(
    own_site: Site, upstream: ScriptedUpstream, on_full: str
) -> None:
    """Else a refusal would be one that nobody can find."""
    config = own_site.write_config(
        upstream.url, audit={"dir": "audit", "on_full": on_full}, service={"max_request_size_mb": 1}
    )
    with Gateway(config) as gateway, ExitStack() as stack:
        sockets = [stack.enter_context(gateway.connect(own_site.client(client))) for _, _, client, _, _ in OWN]
        sockets.append(stack.enter_context(gateway.connect(own_site.client("admin"))))
        with in_trouble(gateway, own_site, directory_is_gone) as end:
            for sock, (method, target, _, body, _) in zip(sockets, OWN, strict=False):
                sock.sendall(request(method, target, body=body[:1000], fields=[("content-length", str(len(body)))]))
            sockets[-1].sendall(b"GET / HTTP/1.0\r\n\r\n")  # no request at all
            if on_full == "refuse":
                assert [read_response(sock).status for sock in sockets] == [503] * len(sockets)
            else:
                assert all(map(waits, sockets))
            end()
        if on_full == "block":
            assert [read_response(sock).status for sock in sockets] == [*(status for *_, status in OWN), 505]
        gateway.stop()
    lines = [
        json.loads(line) for path in (own_site.directory / "audit").iterdir() for line in path.read_text().splitlines()
    ]
    requests = [record for record in lines if "request_id" in record]
    lost = sum(record["lost"] for record in lines if record.get("event") == "audit")
    assert len(requests) + lost == len(sockets)
    if on_full == "block":
        assert lost == 0


@pytest.mark.parametrize("on_full", ["refuse", "block"])
def test_calls_too(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, on_full: str) -> None:
    config = own_site.write_config(
        upstream.url,
        grpc=grpc_upstream.url,
        audit={"dir": "audit", "on_full": on_full},
    )
    delete, unknown = fields("/qdrant.Collections/Delete"), fields("/qdrant.Nothing/Here")
    with Gateway(config) as gateway, h2(gateway, own_site, "search") as speaks:
        assert speaks.status(speaks.call(of=fields("/qdrant.Collections/List"))) == 0
        with in_trouble(gateway, own_site, directory_is_gone) as end:
            streams = [speaks.call(of=of) for of in (delete, unknown, fields("/qdrant.Collections/List"))]
            if on_full == "refuse":
                assert speaks.statuses(streams) == dict.fromkeys(streams, 14)
            else:
                speaks.lives()
                assert not [
                    frame for frame in speaks.received if frame.stream_id in streams and isinstance(frame, HeadersFrame)
                ]
            assert sum(len(call.messages) for call in grpc_upstream.calls) == 1
            end()
        if on_full == "block":
            assert speaks.statuses(streams) == dict(zip(streams, (7, 12, 0), strict=True))
        gateway.stop()


def test_with_block_a_call_waits_no_longer_than_a_request(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    config = own_site.write_config(
        upstream.url,
        grpc=grpc_upstream.url,
        audit={"dir": "audit", "on_full": "block"},
        limits={"write_timeout": 0.5},
    )
    with Gateway(config) as gateway, h2(gateway, own_site, "search") as speaks:
        with in_trouble(gateway, own_site, directory_is_gone) as end:
            streams = [speaks.call(of=fields(f"/qdrant.Collections/{name}")) for name in ("Delete", "List")]
            answers = [speaks.fields(stream) for stream in streams]
            assert {(each["grpc-status"], each["grpc-message"]) for each in answers} == {
                ("14", "The audit log has no room")
            }
            end()
        assert speaks.status(speaks.call(of=fields("/qdrant.Collections/List"))) == 0


@pytest.mark.parametrize("on_full", ["refuse", "block"])
def test_relayed_connections_too(own_site: Site, upstream: ScriptedUpstream, on_full: str) -> None:
    where = upstream.url.removeprefix("http://")
    tunnel = {"port": 0, "mode": "tcp", "upstream": where, "allow": ["admin"]}
    config = own_site.write_config(upstream.url, audit={"dir": "audit", "on_full": on_full}, listeners=[tunnel])
    with Gateway(config) as gateway:
        port = gateway.ports["TCP"][0]
        with in_trouble(gateway, own_site, directory_is_gone) as end:
            connections = upstream.connections
            with (
                gateway.connect(own_site.client("admin"), port=port) as admin,
                gateway.connect(own_site.client("search"), port=port) as search,
            ):
                admin.sendall(b"GET /through HTTP/1.1\r\nhost: h\r\n\r\n")
                if on_full == "refuse":
                    assert admin.recv(1) == search.recv(1) == b""
                else:
                    assert waits(admin)
                    assert waits(search)
                assert upstream.connections == connections
                end()
                if on_full == "block":
                    assert read_response(admin).status == 200
                    assert search.recv(1) == b""


@pytest.mark.parametrize("on_full", ["refuse", "block"])
def test_a_line_that_is_owed_takes_room(own_site: Site, upstream: ScriptedUpstream, on_full: str) -> None:
    """With room for one line there is room for one request at a time."""
    begun, release = threading.Event(), threading.Event()

    def slow(connection: Connection, received: Received) -> None:
        begun.set()
        assert release.wait(10)
        plain()(connection, received)

    upstream.answer = slow
    config = own_site.write_config(upstream.url, audit={"queue_size": 1, "on_full": on_full})
    context = own_site.client("admin")
    with Gateway(config) as gateway, gateway.connect(context) as first, gateway.connect(context) as second:
        gateway.audited(event="start")
        until(lambda: "tlsproxy_audit_queue_length 0" in gateway.ask_admin("/metrics")[1])
        first.sendall(request("GET", "/collections/first"))
        assert begun.wait(10)
        second.sendall(request("GET", "/collections/second"))
        if on_full == "refuse":
            assert read_response(second).status == 503
        release.set()
        assert read_response(first).status == 200
        if on_full == "block":
            assert read_response(second).status == 200
    expected = ["first", "second"] if on_full == "block" else ["first"]
    assert [one.line.split()[1] for one in upstream.requests] == [f"/collections/{name}" for name in expected]


@pytest.mark.parametrize("on_full", ["refuse", "block"])
def test_a_disk_that_fills_under_load(own_site: Site, upstream: ScriptedUpstream, on_full: str) -> None:
    """A line may be begun when the room ends: it is finished afterwards, and none is lost, torn, or there twice."""
    directory, clients, ids = own_site.directory / "audit", 4, []
    config = own_site.write_config(upstream.url, audit={"dir": "audit", "on_full": on_full})
    ended, relieved = threading.Event(), threading.Event()
    told: SimpleQueue[int] = SimpleQueue()

    def load(number: int) -> None:
        with Client(gateway, own_site.client("admin")) as client:
            while not ended.is_set():
                answer = client.ask(target=f"/collections/c{number}")
                ids.append((answer.fields["x-request-id"], answer.status))
                told.put(answer.status)
                if answer.status == 503:  # as told: the lines of those who do not wait would fill so small a disk
                    relieved.wait(30)

    with small_disk(directory) as fill, Gateway(config) as gateway:
        threads = [threading.Thread(target=load, args=(number,)) for number in range(clients)]
        with Client(gateway, own_site.client("admin")) as client:
            assert client.ask().status == 200
        relieve = fill(gateway)
        for thread in threads:
            thread.start()
        full = gateway.log.wait(lambda line: "cannot be written" in line)
        assert "No space left on device" in full or "File too large" in full
        assert gateway.ask_admin("/readyz")[0] == 503
        if on_full == "refuse":
            while told.get(timeout=30) != 503:
                pass
        relieve()
        becomes_ready(gateway)  # not by the log: by its line so small a disk may be full again
        relieved.set()
        while not told.empty():
            told.get()
        answered = 0
        while answered < clients:
            answered += told.get(timeout=30) == 200
        ended.set()
        for thread in threads:
            thread.join(10)
        gateway.stop()
        records = written(directory)
    assert "audit: lines lost" not in "\n".join(gateway.log.seen)
    assert {status for _, status in ids} == ({200, 503} if on_full == "refuse" else {200})
    found = Counter(str(one["request_id"]) for one in records)
    assert set(found.values()) == {1}
    owed = {name for name, _ in ids}
    # A refusal for want of room may have no line of its own: such refusals are told by number.
    assert {name for name, status in ids if status == 200} <= found.keys()
    assert found.keys() <= owed | {records[0]["request_id"]}
