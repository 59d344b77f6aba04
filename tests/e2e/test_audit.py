"""One line for each request and for each handshake that failed, whatever became of it; and never a secret in it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable

import pytest
from support.gateway import Gateway
from support.raw_request import Client, alert, ask, read_response, request
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

FIELDS = [
    "timestamp",
    "method",
    "api",
    "auth_type",
    "subject",
    "remote",
    "tls_version",
    "tls_cipher",
    "collection",
    "tracing_id",
    "result",
    "error",
    "role",
    "rule",
    "certificate_subject",
    "certificate_sha256",
    "ca_sha256",
    "request_id",
    "status",
    "bytes_in",
    "bytes_out",
    "duration_ms",
    "reason",
]


def requests_of(gateway: Gateway) -> list[dict[str, object]]:
    return [record for record in gateway.stop() if "event" not in record]


def test_every_field_and_their_order(site: Site, gateway: Gateway) -> None:
    body = b'{"limit":1}'
    with gateway.connect(site.client("ingest")) as sock:
        trace = [("x-request-id", "trace-1"), ("traceparent", "another")]
        assert ask(sock, "POST", "/collections/docs/points/scroll?timeout=3", trace, body).status == 200
        assert ask(sock, "POST", "/collections/other/points/scroll", (), body).status == 403
    allowed, denied = requests_of(gateway)
    for record in (allowed, denied):
        record.pop("tls_group", None)  # told by some versions of Python
    assert list(allowed) == [field for field in FIELDS if field != "error"]
    assert list(denied) == [field for field in FIELDS if field != "tracing_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", str(allowed["timestamp"]))
    assert 0 < float(str(allowed["duration_ms"])) < 20_000
    assert re.fullmatch(r"[0-9a-f]{64}", str(allowed["certificate_sha256"]))
    assert re.fullmatch(r"[0-9a-f]{32}", str(allowed["request_id"]))
    for field in ("timestamp", "duration_ms", "certificate_sha256", "ca_sha256", "request_id"):
        del allowed[field]
    assert allowed == {
        "method": "scroll",
        "api": "/collections/docs/points/scroll",
        "auth_type": "Certificate",
        "subject": "CN=ingest-7",
        "remote": "127.0.0.1",
        "tls_version": "TLSv1.3",
        "tls_cipher": "TLS_AES_256_GCM_SHA384",
        "collection": "docs",
        "tracing_id": "trace-1",
        "result": "ok",
        "role": "ingest",
        "rule": "ingest-jobs",
        "certificate_subject": "CN=ingest-7",
        "status": 200,
        "bytes_in": len(body),
        "bytes_out": 15,
        "reason": "allowed",
    }
    assert denied["error"] == "Forbidden: Access to collection other is required"
    assert (denied["result"], denied["status"], denied["reason"]) == ("denied", 403, "collection")
    assert denied["collection"] == "other"


def test_log_api_false_leaves_the_path_out(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, audit={"log_api": False})) as gateway:
        with gateway.connect(site.client("admin")) as sock:
            ask(sock)
        assert "api" not in requests_of(gateway)[0]


def broken(_connection: Connection, _request: Received) -> None:
    raise EOFError


def cut_short(connection: Connection, _request: Received) -> None:
    connection.sock.sendall(OK[:-5])
    raise EOFError


def sends(data: bytes) -> Callable[[Gateway, Site], None]:
    def act(gateway: Gateway, site: Site) -> None:
        with gateway.connect(site.client("admin")) as sock:
            sock.sendall(data)
            read_response(sock)

    return act


OUTCOMES: dict[str, tuple[Callable[[Gateway, Site], None], tuple[str, int, str]]] = {
    "allowed": (sends(request("GET", "/collections")), ("ok", 200, "allowed")),
    "unknown route": (sends(request("GET", "/nothing")), ("denied", 404, "unknown_operation")),
    "ambiguous path": (sends(request("GET", "/%00")), ("denied", 404, "ambiguous_path")),
    "bad target": (sends(request("GET", "/%zz")), ("denied", 400, "bad_request")),
    "no HTTP": (sends(b"hello\r\n\r\n"), ("denied", 400, "bad_request")),
    "bare LF": (sends(b"GET / HTTP/1.1\nhost: localhost\n\n"), ("denied", 400, "bad_request")),
    "HTTP/1.0": (sends(b"GET / HTTP/1.0\r\nhost: localhost\r\n\r\n"), ("denied", 505, "http_version")),
    "huge head": (sends(b"GET /" + b"a" * 40_000), ("denied", 431, "head_too_large")),
    "expectation": (sends(request("GET", "/", [("expect", "a-miracle")])), ("denied", 417, "expectation")),
    "CL and TE": (
        sends(request("POST", "/", [("content-length", "1"), ("transfer-encoding", "chunked")])),
        ("denied", 400, "bad_request"),
    ),
    "huge body": (
        sends(request("POST", "/collections/docs/points", [("content-length", str(33 << 20))])),
        ("ok", 400, "body_too_large"),
    ),
    "bad chunk": (
        sends(request("POST", "/collections/docs/points", [("transfer-encoding", "chunked")], b"x\r\n")),
        ("ok", 400, "bad_request"),
    ),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_one_line_for_each_outcome(site: Site, shared_gateway: Gateway, outcome: str) -> None:
    act, expected = OUTCOMES[outcome]
    act(shared_gateway, site)
    with shared_gateway.connect(site.client("search")) as sock:  # a mark behind which nothing of it can come
        assert ask(sock, target="/collections", fields=[("x-request-id", f"mark {outcome}")]).status == 200
    before = len(shared_gateway._audit.seen)
    shared_gateway.audited(tracing_id=f"mark {outcome}")
    records = [json.loads(line) for line in shared_gateway._audit.seen[before:-1]]
    found = [(one["result"], one["status"], one["reason"]) for one in records if "event" not in one]
    assert found == [expected]


def test_one_line_when_the_upstream_fails(site: Site, upstream: ScriptedUpstream, gateway: Gateway) -> None:
    upstream.answer = broken
    with gateway.connect(site.client("admin")) as sock:
        assert ask(sock, "PUT", "/collections/docs").status == 502
    upstream.answer = cut_short
    with gateway.connect(site.client("admin")) as sock:
        sock.sendall(request("GET", "/collections"))
        while sock.recv(65536):
            pass
    first, second = requests_of(gateway)
    assert (first["status"], first["reason"]) == (502, "upstream_broken")
    assert (second["status"], second["reason"], second["bytes_out"]) == (200, "upstream_broken", 10)


def test_one_line_when_the_client_is_gone(site: Site, upstream: ScriptedUpstream, gateway: Gateway) -> None:
    def never(connection: Connection, _request: Received) -> None:
        sock.close()
        connection.sock.recv(1)
        raise EOFError

    upstream.answer = never
    sock = gateway.connect(site.client("admin"))
    sock.sendall(request("GET", "/collections"))
    gateway.audited(reason="client_gone")
    (record,) = requests_of(gateway)
    assert (record["status"], record["result"]) == (499, "ok")


def test_no_line_for_a_connection_that_asks_nothing(site: Site, gateway: Gateway) -> None:
    with gateway.connect(site.client("admin")) as sock:
        assert ask(sock).status == 200
    with gateway.connect(site.client("admin")):
        pass
    with gateway.connect(site.client("admin")) as sock:
        sock.sendall(b"GET /half")
    assert [record["status"] for record in requests_of(gateway)] == [200]


def test_pipelined_requests_have_a_line_each(site: Site, gateway: Gateway) -> None:
    """In the order in which they were asked, the refused ones too."""
    targets = [f"/collections/{'docs' if number % 3 else 'other'}/exists" for number in range(60)]
    data = b"".join(request("GET", target) for target in targets[:-1])
    with gateway.connect(site.client("ingest")) as sock:
        sock.sendall(data + request("GET", targets[-1], [("connection", "close")]))
        while sock.recv(65536):
            pass
    found = [(record["api"], record["status"]) for record in requests_of(gateway)]
    assert found == [(target, 403 if "other" in target else 200) for target in targets]


def test_one_line_for_each_failed_handshake(site: Site, gateway: Gateway) -> None:
    for _ in range(5):
        alert(gateway, site.client(None))
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.sendall(b"\x16\x03\x01\x00\x05hello")
        while sock.recv(4096):
            pass
    records = [record for record in gateway.stop() if record.get("event") == "handshake"]
    assert len(records) == 6
    assert {record["result"] for record in records} == {"denied"}
    assert [list(record)[:5] for record in records] == [["timestamp", "remote", "result", "event", "reason"]] * 6


def test_no_line_can_be_forged(site: Site, gateway: Gateway) -> None:
    evil = '\xa0","result":"ok"}\x85{"forged":1}\t\xff\x9b2J'
    with gateway.connect(site.client("ingest")) as sock:
        ask(sock, target="/collections/%22%7D%C2%85%E2%80%AE", fields=[("x-request-id", evil)])
    (record,) = requests_of(gateway)
    assert record["result"] == "denied"
    assert record["tracing_id"] == evil
    assert all(line.isascii() and line.isprintable() for line in gateway._audit.seen)


def test_nothing_secret_is_written(site: Site, upstream: ScriptedUpstream) -> None:
    """Not the keys that are sent or configured, and nothing of a body or a query."""
    keys = {"api_key": "S3CRET-a", "alt_api_key": "S3CRET-b", "read_only_api_key": "S3CRET-c"}
    config = site.write_config(
        upstream.url,
        service={"verify_https_client_certificate": False, **keys},
        upstream={"api_key": "S3CRET-d"},
        log_level="DEBUG",
    )
    body = b'{"points":[{"id":1,"vector":[0.5317],"payload":{"S3CRET-payload":"x"}}]}'
    upstream.answer = lambda connection, _: connection.sock.sendall(
        b"HTTP/1.1 200 OK\r\nx-answer: S3CRET-e\r\ncontent-length: 8\r\n\r\nS3CRET-f"
    )
    with Gateway(config) as gateway:
        for client in (None, "admin", "ingest", "stranger"):
            with Client(gateway, site.client(client)) as connection:
                for key in (*keys.values(), "S3CRET-wrong"):
                    for fields in ([("api-key", key)], [("authorization", f"Bearer {key}")]):
                        connection.ask("GET", "/collections?api-key=S3CRET-query", fields)
                        connection.ask("GET", "/nothing?api-key=S3CRET-query", fields)
                        connection.ask("GET", "/%00?api-key=S3CRET-query", fields)
                    connection.ask("GET", "/collections", [("authorization", f"Basic {key}"), ("cookie", key)])
                    connection.ask("GET", "/collections", [("api-key", key), ("api-key", key)])
                    connection.ask("GET", "/collections", [("api-key ", key)])
                connection.ask("PUT", "/collections/docs/points", [("api-key", "S3CRET-a"), ("x-y", "S3CRET-h")], body)
        status, metrics = gateway.ask_admin("/metrics")
        _, told = gateway.ask_admin("/status")
        assert status == 200
        records = gateway.stop()
    assert len(records) > 100
    written = "\n".join([*gateway._audit.seen, *gateway.log.seen, metrics, told])
    assert "S3CRET" not in written
    assert "0.5317" not in written
