"""Strangers use up nothing that others need, free routes give nothing away, and secrets are shown to nobody.

One section for each bullet of the kind; each has a gateway of its own where it needs other settings.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner
from hyperframe.frame import DataFrame, PingFrame, SettingsFrame
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream, replying
from support.h2_raw_client import PREFACE, H2Client, fields, h2, message, raw
from support.h2_upstream import H2Upstream
from support.limit_answers import SLOW
from support.raw_connection import GET, Truncated, connected
from support.raw_request import Client
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream

from tlsproxy.authz.tokens import mint
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

WAIT = 1.0
"""Seconds. A third of a send buffer, after which Linux calls a socket writable, takes the readers here longer."""
SLOWLY = 1_000_000
"""Bytes per second, for three times as long; then there is no more to see."""
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
    limits = {"write_timeout": WAIT, "min_data_rate": 20_000}
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
    with connected(impatient, site.client()) as client:
        in_small_steps(client.sock)
        client.send(GET)
        began, size = time.monotonic(), 0
        for piece in client.body(client.head()):
            size += len(piece)
            pace(min(3 * WAIT, size / SLOWLY) - (time.monotonic() - began))
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
            pace(min(3 * WAIT, size / SLOWLY) - (time.monotonic() - began))
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


# Strangers on gRPC, and whoever is refused

COUNT = "/qdrant.Points/Count"
DOCS = b"\x0a\x04docs"
REFUSED = {
    "a stranger": ("stranger", COUNT, DOCS, 7),
    "a stranger's unknown method": ("stranger", "/nobody.Knows/This", b"", 7),
    "an unknown method": ("admin", "/nobody.Knows/This", b"", 12),
    "a reader that writes": ("search", "/qdrant.Points/Upsert", DOCS, 7),
    "a limited caller elsewhere": ("ingest", COUNT, b"\x0a\x05other", 7),
    "a limited caller that lists all": ("ingest", "/qdrant.Collections/CollectionClusterInfo", b"\x0a\x05other", 7),
    "no message": ("ingest", COUNT, b"\x0b", 3),
}


@pytest.fixture(scope="module")
def frames() -> Iterator[H2Upstream]:
    with H2Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def narrow(site: Site, shared_upstream: ScriptedUpstream, frames: H2Upstream) -> Iterator[Gateway]:
    """Two upstream connections, for both protocols."""
    upstream = {"max_connections": 2, "connect_timeout": 1.0}
    with Gateway(site.write_config(shared_upstream.url, grpc=frames.url, upstream=upstream)) as gateway:
        yield gateway


def of_clients(frames: H2Upstream) -> list[bytearray]:
    """Connections of clients, by their bytes: the gateway's own, for its readiness, ask for health at most."""
    return [came for came in frames.accepted if came and b"Health" not in came]


@pytest.mark.parametrize("case", REFUSED)
def test_whose_every_call_is_refused_has_no_upstream_connection(
    site: Site, narrow: Gateway, frames: H2Upstream, case: str
) -> None:
    """Nor has its SETTINGS, PING, window or anything else of it a way there: it is answered here."""
    who, method, content, status = REFUSED[case]
    before = len(of_clients(frames))
    with h2(narrow, site, who, INITIAL_WINDOW_SIZE=70_000) as client:
        client.grant(0, 100_000)
        client.send(PingFrame(0, b"a secret"))
        assert "ACK" in client.until(PingFrame, lambda frame: frame.opaque_data == b"a secret").flags
        for _ in range(3):
            assert client.status(client.call(content, fields(method))) == status
        client.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 80_000}))
        client.until(SettingsFrame, lambda frame: "ACK" in frame.flags)
        client.lives()
    assert len(of_clients(frames)) == before
    assert narrow.audited(grpc_status=status)["status"] in {200, 499}


def test_any_number_of_them(site: Site, narrow: Gateway, frames: H2Upstream) -> None:
    before = len(of_clients(frames))
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(h2(narrow, site, "stranger"))
            assert client.status(client.call(DOCS, fields(COUNT))) == 7
        client = stack.enter_context(h2(narrow, site))
        assert client.status(client.call(DOCS, fields(COUNT))) == 0
    assert len(of_clients(frames)) == before + 1


def test_with_the_first_allowed_call_its_client_is_introduced(site: Site, narrow: Gateway, frames: H2Upstream) -> None:
    """Its settings and windows as they are by then; no word of what it asked for before, and no PING ever."""
    before = len(of_clients(frames))
    with h2(narrow, site, "ingest", INITIAL_WINDOW_SIZE=70_000, MAX_HEADER_LIST_SIZE=20_000) as client:
        client.grant(0, 100_000)
        client.send(PingFrame(0, b"a secret"))
        assert client.status(client.call(b"\x0a\x05other", fields(COUNT, ("x-word", "unheard-of")))) == 7
        assert len(of_clients(frames)) == before
        client.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 80_000}))
        assert client.status(client.call(DOCS, fields(COUNT))) == 0
        client.send(PingFrame(0, b"a secret"))
        assert client.status(client.call(DOCS, fields(COUNT))) == 0
    (came,) = of_clients(frames)[before:]
    head = PREFACE + raw(4, 0, 0, bytes(24))[:9]
    assert came.startswith(head)
    settings = {bytes(came[at : at + 6]) for at in range(len(head), len(head) + 24, 6)}
    told = ("000100000000", "000200000000", "000400013880", "000600004e20")
    assert settings == {bytes.fromhex(one) for one in told}
    assert raw(8, 0, 0, (100_000).to_bytes(4, "big")) in came
    assert b"a secret" not in came
    assert b"unheard-of" not in came


def test_large_windows_count_from_the_first_answer_on(site: Site, narrow: Gateway, frames: H2Upstream) -> None:
    """What its client granted before there was an upstream is granted to it: the answer needs no more of it."""
    frames.answer = message(bytes(150_000))
    try:
        with h2(narrow, site, INITIAL_WINDOW_SIZE=200_000) as client:
            client.grant(0, 100_000)
            assert client.status(client.call(DOCS, fields(COUNT))) == 0
    finally:
        frames.answer = bytes(5)


def test_calls_of_both_protocols_share_the_upstreams_limit(site: Site, narrow: Gateway, frames: H2Upstream) -> None:
    """One that finds no place waits for one as requests do, and is told if there is none in time."""
    frames.most = 0
    with h2(narrow, site) as one, h2(narrow, site, "search") as two, h2(narrow, site, "ingest") as three:
        calls = [client.open(fields(COUNT)) for client in (one, two)]
        frames.wait(lambda seen: not seen.ended and ("x-forwarded-proto", "https") in seen.fields)
        stream = three.call(DOCS, fields(COUNT))
        assert three.status(stream) == 14
        assert narrow.audited(reason="overloaded")["certificate_subject"] == "CN=ingest-7"
        stream = three.call(DOCS, fields(COUNT, ("x-waits", "1")))
        one.send(DataFrame(calls[0], message(DOCS), flags=["END_STREAM"]))
        assert one.status(calls[0]) == 0
        assert three.status(stream) == 0
    assert frames.most <= 2


def test_a_connection_without_calls_gives_way(site: Site, narrow: Gateway, frames: H2Upstream) -> None:
    """Its place upstream goes to the next, and it stays: nobody is shut out by connections that are kept."""
    frames.most = 0
    with ExitStack() as stack:
        clients = [stack.enter_context(h2(narrow, site, who)) for who in ("admin", "search", "ingest", "admin")]
        for client in clients:
            assert client.status(client.call(DOCS, fields(COUNT))) == 0
        for client in clients:
            assert client.status(client.call(DOCS, fields(COUNT))) == 0
    assert frames.most <= 2


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
def test_who_never_asks_is_written_down(site: Site, narrow: Gateway, protocol: str) -> None:
    for who, name in (("stranger", "CN=nobody"), ("admin", "CN=alice,OU=platform")):
        context = site.client(who)
        context.set_alpn_protocols([protocol])
        with narrow.connect(context, port=narrow.grpc_port if protocol == "h2" else None) as sock:
            if protocol == "h2":
                client = H2Client(sock)
                client.start()
                client.lives()
        record = narrow.audited(event="connection", reason="never_asked", certificate_subject=name)
        assert (record["result"], record["connections"], record["remote"]) == ("ok", 1, "127.0.0.1")
        assert record["protocol"] == ("grpc" if protocol == "h2" else "rest")
        assert 0 <= record["age_ms"] < 20_000


def test_what_a_token_depends_on_is_asked_though_its_connection_is_the_only_one(
    site: Site, upstream: ScriptedUpstream, frames: H2Upstream
) -> None:
    """A connection that waits for that has no place which the question would have to wait for."""

    def answer(connection: Connection, request: Received) -> None:
        connection.read_body(request)
        body = b'{"result": {"points": [{"id": 1}]}}'
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    key = "a key that is long enough to sign with"
    exists = {"collection": "users", "matches": [{"key": "name", "value": "alice"}]}
    token = mint(key, {"access": "r", "value_exists": exists})
    upstream.answer = answer
    config = site.write_config(
        upstream.url,
        grpc=frames.url,
        service={"verify_https_client_certificate": False, "api_key": key, "jwt_rbac": True},
        upstream={"rest": upstream.url, "grpc": frames.url, "max_connections": 1},
    )
    before = len(of_clients(frames))
    with Gateway(config) as gateway, h2(gateway, site, None) as client:
        for _ in range(3):
            stream = client.call(DOCS, fields(COUNT, ("authorization", f"Bearer {token}")))
            assert client.status(stream) == 0
        assert len(of_clients(frames)) == before + 1
