"""What strangers cannot use up, what free routes do not give, and which secrets nobody is shown.

One section for each bullet of the kind; each has a gateway of its own where it needs other settings.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hyperframe.frame import DataFrame
from support.client import Client
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream, replying
from support.h2raw import fields, h2, message
from support.limits import SLOW
from support.raw import GET, Truncated, connected
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream

from tlsproxy.cli import main

# Secrets in what is told of a configuration

SECRET = "S3CRETzQ9xW7vK"
MISTAKEN = [
    "api_key: *{}",
    "api_key: !{}",
    "api_key: !!{} x",
    "api_key: !!bool {}",
    "api_key: &{}",
    "api_key: %{}",
    "api_key: @{}",
    "api_key: `{}",
    "api_key: |{}",
    "api_key: {{{}",
    "api_key: [{}]",
    "api_key: {{{0}: 1, {0}: 2}}",
    'api_key: "{}',
    "api_key: x: {}",
    "api_key:\n  {}: x",
    "{{api_key:{}}}",
]


def mistaken(config: Path, mistake: str) -> str:
    """The same configuration with a mistake in its first section."""
    text = config.read_text()
    said = mistake.format(SECRET)
    section = f"upstream_: {said}" if said.startswith("{") else f"service:\n  {said}"
    lines = [line for line in text.splitlines() if not line.startswith(("service:", "  host:", "  http_port:"))]
    return f"{section}\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("mistake", MISTAKEN)
def test_check_repeats_no_secret_that_yaml_took_for_something_else(site: Site, mistake: str) -> None:
    config = site.write_config("http://127.0.0.1:1")
    config.write_text(mistaken(config, mistake))
    result = CliRunner().invoke(main, ["check", "--config", str(config)])
    assert result.exit_code == 2
    assert f"{config}:" in result.output
    assert SECRET.lower() not in result.output.lower()
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_nor_does_a_reload_in_the_log_the_status_or_the_audit_log(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)
    sound = config.read_text()
    told = []
    with Gateway(config) as gateway:
        for mistake in MISTAKEN[:4]:
            own_site.replace(config.name, mistaken(config, mistake).encode())
            told.append(json.dumps(gateway.reloaded("failed")))
            told.append(gateway.ask_admin("/status")[1])
            own_site.replace(config.name, sound.encode())
            gateway.hang_up()
            gateway.reloaded()
        told += map(json.dumps, gateway.stop())
        told += gateway.log.seen
    assert any(f"{config}:" in line for line in told)
    assert SECRET.lower() not in "\n".join(told).lower()


def test_the_query_of_a_key_sets_url_is_shown_nowhere(own_site: Site, upstream: ScriptedUpstream) -> None:
    """Neither is what a client library makes of it, nor that it changed, in more than the name of the setting."""
    issuer = {"name": "login", "issuer": "https://login/", "audience": "qdrant", "algorithm": "ES256"}
    url = f"http://127.0.0.1:1/keys?token={SECRET}"
    config = own_site.write_config(upstream.url, jwt_issuers=[issuer | {"jwks": url}])
    told = [CliRunner().invoke(main, ["check", "--config", str(config)]).output]
    with Gateway(config) as gateway:
        told.append(gateway.ask_admin("/status")[1])
        own_site.edit_config(config, jwt_issuers=[issuer | {"jwks": f"{url}2"}])
        told.append(json.dumps(gateway.reloaded()))
        told += [gateway.ask_admin(path)[1] for path in ("/status", "/metrics", "/")]
        told += map(json.dumps, gateway.stop())
        told += gateway.log.seen
    assert any("http://127.0.0.1:1/keys" in line for line in told)
    assert SECRET not in "\n".join(told)


# Readers that are slow, and readers that only seem so

WAIT = 0.4
"""Seconds. A third of a send buffer, after which Linux calls a socket writable, takes the readers here longer."""
SIZE = 6 << 20


def large(connection: Connection, _request: Received) -> None:
    connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE + bytes(SIZE))


@pytest.fixture(scope="module")
def large_upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(large) as running:
        yield running


@pytest.fixture(scope="module")
def large_grpc_upstream() -> Iterator[GrpcUpstream]:
    with GrpcUpstream(replying(*[bytes(1 << 20)] * 8)) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(site: Site, large_upstream: ScriptedUpstream, large_grpc_upstream: GrpcUpstream) -> Iterator[Gateway]:
    limits = {"write_timeout": WAIT, "min_data_rate": 100_000}
    with Gateway(site.write_config(large_upstream.url, grpc=large_grpc_upstream.url, limits=limits)) as running:
        yield running


def pace(seconds: float) -> None:
    """Slowness is what is tested here."""
    if seconds > 0:
        threading.Event().wait(seconds)


def in_small_steps(sock: socket.socket) -> None:
    """A large buffer would open its window, and so acknowledge more, in steps that take longer than ``WAIT``."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072)


def test_a_steady_reader_has_its_whole_download(site: Site, impatient: Gateway) -> None:
    """1.5 MB in each second."""
    with connected(impatient, site.client()) as client:
        in_small_steps(client.sock)
        client.send(GET)
        began, size = time.monotonic(), 0
        for piece in client.body(client.head()):
            size += len(piece)
            pace(size / 1_500_000 - (time.monotonic() - began))
        assert size == SIZE
    assert impatient.audited(status=200)["reason"] == "allowed"


def test_so_has_one_of_grpc(site: Site, impatient: Gateway) -> None:
    with h2(impatient, site, INITIAL_WINDOW_SIZE=(1 << 31) - 1) as client:
        in_small_steps(client.sock)
        client.grant(0, (1 << 31) - 1 - 65_535)
        stream = client.call()
        began, size = time.monotonic(), 0
        for frame in client.frames():
            if frame.stream_id == stream and "END_STREAM" in frame.flags:
                break
            size += frame.body_len
            pace(size / 2_000_000 - (time.monotonic() - began))
        assert size > 8 << 20


@pytest.mark.parametrize("step", [0, 500], ids=["nothing", "a trickle"])
def test_one_that_takes_less_than_the_lowest_rate_is_cut(site: Site, impatient: Gateway, step: int) -> None:
    with connected(impatient, site.client()) as client:
        in_small_steps(client.sock)
        client.send(GET)
        client.head()
        ended = threading.Event()
        reading = threading.Thread(target=trickle, args=(client.sock, step, ended))
        reading.start()
        try:
            assert impatient.audited(reason="client_stalled")["status"] == 200
        finally:
            ended.set()
            reading.join()
        with pytest.raises(Truncated):
            client.response()


def trickle(sock: ssl.SSLSocket, step: int, ended: threading.Event) -> None:
    while not ended.wait(WAIT / 10):
        sock.recv(step) if step else None


# Routes that ask for no credential

FREE = ["/", "/healthz", "/livez", "/readyz"]
DASHBOARD = ["/dashboard/", "/dashboard/assets/index.js"]


@pytest.fixture(scope="module")
def limited(site: Site) -> Iterator[tuple[Gateway, ScriptedUpstream, GrpcUpstream]]:
    """Two requests for each identity and each address of those who are unidentified, and one key."""
    with ScriptedUpstream() as upstream, GrpcUpstream() as grpc:
        config = site.write_config(
            upstream.url,
            grpc=grpc.url,
            service={"verify_https_client_certificate": False, "api_key": "manage-k3y", "grpc_port": 0},
            limits={
                "per_identity": {**SLOW, "burst": 2},
                "per_key": {**SLOW, "burst": 2},
                "per_address": {"unidentified": {**SLOW, "burst": 2}},
            },
        )
        with Gateway(config) as gateway:
            yield gateway, upstream, grpc


def test_the_dashboard_counts_against_whoever_asks_for_it_and_probes_do_not(
    site: Site, limited: tuple[Gateway, ScriptedUpstream, GrpcUpstream]
) -> None:
    """By a role's holder, a certificate without a role, a key, and at last nobody, who is an address."""
    gateway, upstream, _ = limited
    callers: list[tuple[str | None, list[tuple[str, str]]]] = [
        ("admin", []), ("stranger", []), (None, [("api-key", "manage-k3y")]), (None, []),
    ]  # fmt: skip
    for name, credential in callers:
        with Client(gateway, site.client(name)) as client:
            seen = len(upstream.requests)
            assert [client.ask("GET", target, credential).status for target in (*DASHBOARD, *DASHBOARD)] == [
                200,
                200,
                429,
                429,
            ]
            assert len(upstream.requests) == seen + 2
            assert gateway.audited(method="web_ui", status=429)["reason"] == "rate_limited"
            assert client.ask("HEAD", "/dashboard/", credential).status == 429
            assert [client.ask("GET", target, credential).status for target in FREE] == [200] * len(FREE)
    with Client(gateway, site.client(None)) as client:
        assert client.ask("GET", "/collections").status == 429, "nor is it free to be refused"


@pytest.fixture(scope="module")
def for_anybody(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    service = {"verify_https_client_certificate": False, "api_key": "manage-k3y"}
    with Gateway(site.write_config(shared_upstream.url, service=service)) as running:
        yield running


@pytest.mark.parametrize("name", ["admin", "stranger", None])
@pytest.mark.parametrize("target", [*FREE, "/dashboard/"])
def test_what_asks_for_no_credential_takes_no_body(
    site: Site, for_anybody: Gateway, shared_upstream: ScriptedUpstream, target: str, name: str | None
) -> None:
    seen = len(shared_upstream.requests)
    for framing, body in (
        ([], b"x"),
        ([("content-length", str(1 << 24))], b""),
        ([("transfer-encoding", "chunked")], b"5\r\nhello\r\n0\r\n\r\n"),
        ([("transfer-encoding", "chunked")], b"0\r\n\r\n"),
        ([("content-length", "5"), ("expect", "100-continue")], b""),
    ):
        with Client(for_anybody, site.client(name)) as client:
            answer = client.ask("GET", target, framing, body)
            assert (answer.status, answer.json["status"]["error"]) == (400, "This route takes no body")
        assert for_anybody.audited(reason="unexpected_body")["result"] == "denied"
    assert len(shared_upstream.requests) == seen
    with Client(for_anybody, site.client(name)) as client:
        assert client.ask("GET", target, [("content-length", "0")]).status == 200


def test_nor_does_a_preflight(site: Site, for_anybody: Gateway) -> None:
    asked = [("origin", "https://a.example"), ("access-control-request-method", "PUT")]
    with Client(for_anybody, site.client(None)) as client:
        assert client.ask("OPTIONS", "/collections", asked, b"x").status == 400
        assert client.ask("OPTIONS", "/collections", asked).status == 200


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Check", "/qdrant.Qdrant/HealthCheck"])
@pytest.mark.parametrize("name", ["admin", None])
def test_a_health_check_is_free_and_small(
    site: Site, limited: tuple[Gateway, ScriptedUpstream, GrpcUpstream], method: str, name: str | None
) -> None:
    gateway, _, grpc = limited
    with h2(gateway, site, name) as speaks:
        assert [speaks.status(speaks.call(b"\n\x01x", of=fields(method))) for _ in range(4)] == [0] * 4
        assert speaks.status(speaks.call(b"x" * 1025, of=fields(method))) == 8
        stream = speaks.open(fields(method))
        for _ in range(3):  # in pieces, and as several messages
            speaks.send(DataFrame(stream, message(b"x" * 400)))
        assert speaks.status(stream) == 8
        assert gateway.audited(grpc_status=8)["reason"] == "body_too_large"
        speaks.lives()
    assert max(sum(map(len, call.messages)) for call in grpc.calls) <= 1024
