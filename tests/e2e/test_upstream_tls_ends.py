"""Upstreams over TLS that end badly: what breaks off never passes for whole, and a late refusal is told as one."""

from __future__ import annotations

import queue
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.kept_connection import Caller
from support.raw_connection import GET, UPSERT, RawClient, Response, Truncated, connected
from support.site import Site
from support.tls_server import server_context
from support.upstream import OK, Answer, Connection, Received, ScriptedUpstream, plain

from tlsproxy.tls.pki import Authority

LIST = "/qdrant.Collections/List"
TOLD = 'tlsproxy_upstream_tls_failures_total{reason="certificate_refused"}'


class Bench:
    """A gateway whose upstream speaks TLS over all three protocols."""

    def __init__(self, directory: Path, closing: ExitStack) -> None:
        self.site = Site(directory)
        self.authority = Authority.create("upstream CA")
        self.site.write("up-ca.pem", self.authority.certificate_pem)
        self.strangers = Authority.create("other CA")
        self.renew()
        self.issued = self.authority.issue(ips=["127.0.0.1"], server=True)
        self.sound = server_context(directory, self.issued)
        self.upstream = closing.enter_context(ScriptedUpstream(tls=self.sound))
        self.tls = {"ca_cert": "up-ca.pem", "cert": "up.pem", "key": "up.key"}
        address = self.upstream.url.removeprefix("https://")
        listener = {"port": 0, "mode": "tcp", "upstream": address, "allow": ["admin"], "upstream_tls": self.tls}
        self.section = {"rest": self.upstream.url, "grpc": self.upstream.url, "connect_timeout": 1, "tls": self.tls}
        self.config = self.site.write_config(
            self.upstream.url,
            grpc=self.upstream.url,
            upstream=self.section,
            listeners=[listener],
        )
        self.gateway = closing.enter_context(Gateway(self.config))

    def renew(self) -> None:
        issued = self.strangers.issue(common_name="gateway", client=True)
        self.site.replace("up.pem", issued.chain_pem)
        self.site.replace("up.key", issued.key_pem)

    def present(self, context: ssl.SSLContext, **upstream: Any) -> None:
        """Has the upstream speak TLS so. The gateway ends its idle connections, for its certificate is renewed."""
        self.upstream.tls = context
        self.site.edit_config(self.config, upstream=self.section | upstream)
        self.renew()
        assert self.gateway.ask_admin("/reload", "POST")[0] == 200

    def refusals(self) -> int:
        metrics = self.gateway.ask_admin("/metrics")[1]
        return sum(int(float(line.split()[-1])) for line in metrics.splitlines() if line.startswith(TOLD))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ExitStack() as closing:
        yield Bench(tmp_path_factory.mktemp("upstream-tls-ends"), closing)


def cut(connection: Connection) -> None:
    """Ends the stream of bytes below TLS."""
    socket.socket(fileno=connection.sock.detach()).close()


def end(connection: Connection) -> None:
    assert isinstance(connection.sock, ssl.SSLSocket)
    with suppress(OSError):
        connection.sock.unwrap()


def stay(connection: Connection) -> None:
    """Says that it ends, and keeps the socket."""
    end(connection)
    with suppress(OSError):
        connection.sock.recv(1)


def saying(data: bytes, ends: Any) -> Answer:
    def answer(connection: Connection, request: Received) -> None:
        connection.read_body(request)
        connection.sock.sendall(data)
        ends(connection)
        raise EOFError

    return answer


def answered(bench: Bench, answer: Answer) -> Response:
    bench.upstream.answer = answer
    with connected(bench.gateway, bench.site.client()) as client:
        client.send(GET)
        return client.response()


HEAD = b"HTTP/1.1 200 OK\r\n"
BODIES = {
    "length": b"content-length: 10\r\n\r\nhello",
    "chunked": b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "until close": b"connection: close\r\n\r\nhello",
}


def test_a_body_that_breaks_off_is_never_whole(bench: Bench) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = server_context(bench.site.directory, bench.issued)
        context.maximum_version = version
        bench.present(context)
        for body in BODIES.values():
            with pytest.raises(Truncated):
                answered(bench, saying(HEAD + body, cut))
            assert bench.gateway.audited(status=200)["reason"] == "upstream_broken"
        for half in (b"", HEAD, HEAD + b"content-le"):
            assert answered(bench, saying(half, cut)).status == 502
            assert bench.gateway.audited(status=502)["reason"] == "upstream_broken"


def test_a_close_notify_is_an_end(bench: Bench) -> None:
    for ends in (end, stay):
        assert answered(bench, saying(HEAD + BODIES["until close"], ends)).body == b"hello"
        with pytest.raises(Truncated):
            answered(bench, saying(HEAD + BODIES["length"], ends))
        assert answered(bench, saying(OK, ends)).status == 200
    assert answered(bench, plain()).status == 200


def test_a_tcp_connection_that_breaks_off_has_no_end(bench: Bench) -> None:
    """The client can tell a cut from an end, as the gateway can."""
    bench.present(bench.sound)
    for ends, whole in ((cut, False), (end, True)):
        bench.upstream.answer = saying(bytes(300_000), ends)
        with bench.gateway.connect(bench.site.client(), port=bench.gateway.ports["TCP"][0]) as sock:
            client, size = RawClient(sock), 0
            client.send(GET)
            with nullcontext() if whole else pytest.raises(Truncated):
                while data := client.receive():
                    size += len(data)
        if whole:
            assert size == 300_000
        else:
            assert bench.gateway.audited(event="tcp_close")["reason"] == "upstream_broken"


def test_idle_connections_end_with_a_close_notify(bench: Bench) -> None:
    heard: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()

    def listening(connection: Connection, _request: Received) -> None:
        connection.sock.sendall(OK)
        try:
            while data := connection.sock.recv(65536):
                connection.sock.sendall(OK)
            heard.put(data)
        except OSError as error:
            heard.put(error)
        raise EOFError

    bench.present(bench.sound)
    assert answered(bench, listening).status == 200
    bench.present(bench.sound)
    assert heard.get(timeout=DEADLINE) == b""


def test_a_refusal_after_the_handshake_is_told_over_all_three(bench: Bench) -> None:
    """With TLS 1.3 a server judges our certificate once the handshake is done for us, and the request is sent."""
    gateway, client = bench.gateway, bench.site.client()
    bench.present(server_context(bench.site.directory, bench.issued, bench.authority))
    requests, before = len(bench.upstream.requests), bench.refusals()
    with connected(gateway, client) as raw:
        for asked in (GET, UPSERT + b"content-length: 2\r\n\r\n{}"):
            raw.send(asked)
            response = raw.response()
            assert response.status == 502
            assert b"securely; its operator can see why" in response.body
            assert gateway.audited(status=502)["reason"] == "upstream_tls"
    bench.upstream.tls = server_context(bench.site.directory, bench.issued, bench.authority, ("h2",))
    with channel(gateway, bench.site) as opened:
        answer = call(opened, LIST)
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert "securely" in answer.text
        assert gateway.audited(grpc_status=14)["reason"] == "upstream_tls"
    with gateway.connect(client, port=gateway.ports["TCP"][0]) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b""
    record = gateway.audited(event="tcp_close")
    assert record["reason"] == "upstream_tls"
    assert record["error"] == "the server does not know the CA of our client certificate"
    assert bench.refusals() - before == 4
    assert len(bench.upstream.requests) == requests
    bench.present(bench.sound)


def test_a_handshake_that_stalls(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        bench.present(bench.sound, rest=url)
        with Caller(bench.gateway, bench.site.client()) as caller:
            assert caller.ask().status == 504
        assert bench.gateway.audited(status=504)["reason"] == "upstream_timeout"
    bench.present(bench.sound)
