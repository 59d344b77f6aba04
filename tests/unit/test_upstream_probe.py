"""The gateway's own questions to an upstream, asked of real servers."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.grpc_upstream import GrpcUpstream, failing
from support.sockets import deaf
from support.upstream import Connection, Received, ScriptedUpstream, plain

from tlsproxy.admin import upstream_probe
from tlsproxy.admin.readiness import Part
from tlsproxy.admin.upstream_findings import Finding
from tlsproxy.admin.upstream_probe import DEADLINE, Target, UpstreamProbe, asked, is_ready
from tlsproxy.config.model import HttpProtocol
from tlsproxy.snapshot.nodes import Upstream
from tlsproxy.tls.pki import Authority

KEY = "upstream-key"
MISSING = "Must provide an API key or an Authorization bearer token"
WRONG = "Invalid API key or JWT"


def target(url: str, protocol: HttpProtocol = "rest", key: str | None = None) -> Target:
    host, port = url.removeprefix("http://").rsplit(":", 1)
    return target_at(url, ((socket.AF_INET, (host, int(port))),), protocol, key)


def target_at(url: str, addresses: tuple[Any, ...], protocol: HttpProtocol = "rest", key: str | None = None) -> Target:
    return Target(protocol, Upstream(url, url.removeprefix("http://").encode(), addresses), key)


def found(url: str, protocol: HttpProtocol = "rest", key: str | None = None) -> Finding:
    async def scenario() -> Finding:
        finding, conversation = await asked(target(url, protocol, key))
        assert finding is not None
        if conversation is not None:
            conversation.socket.close()
        return finding.finding

    return asyncio.run(scenario())


def denying(status: str, text: str) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()


def qdrant(connection: Connection, request: Received) -> None:
    """As Qdrant with an API key: `/` is open, all else is not."""
    sent = request.fields.get("api-key")
    if request.line.startswith("GET / ") or sent == KEY:
        plain()(connection, request)
    else:
        connection.sock.sendall(denying("401 Unauthorized", MISSING if sent is None else "words of a later version"))


def test_rest_with_and_without_the_key() -> None:
    with ScriptedUpstream(probe=qdrant) as upstream:
        assert found(upstream.url, key=KEY) is Finding.GOOD
        assert found(upstream.url, key="another") is Finding.KEY_REFUSED
        assert found(upstream.url) is Finding.KEY_MISSING
        upstream.probe = plain()
        assert found(upstream.url) is Finding.GOOD
        assert not upstream.requests


def test_rest_of_a_server_that_closes_after_each_answer() -> None:
    def closing(connection: Connection, request: Received) -> None:
        open_to_all = request.line.startswith("GET / ")
        text = "hello" if open_to_all else MISSING
        connection.sock.sendall(f"HTTP/1.0 {200 if open_to_all else 401} \r\n\r\n{text}".encode())
        raise EOFError

    with ScriptedUpstream(probe=closing) as upstream:
        assert found(upstream.url) is Finding.KEY_MISSING


@pytest.mark.parametrize(
    ("response", "finding"),
    [
        (denying("403 Forbidden", "ExpiredSignature"), Finding.KEY_REFUSED),
        (denying("403 Forbidden", "the collection is locked"), Finding.FAILS),
        (denying("401 Unauthorized", "another realm"), Finding.FAILS),
        (denying("301 Moved Permanently", ""), Finding.FAILS),
        (denying("404 Not Found", ""), Finding.GOOD),
        (denying("503 Service Unavailable", ""), Finding.FAILS),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", Finding.GOOD),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", Finding.FAILS),
        (b"220 smtp.example.org ESMTP\r\n\r\n", Finding.NO_HTTP),
    ],
)
def test_rest_by_its_answer(response: bytes, finding: Finding) -> None:
    def answer(connection: Connection, _: Received) -> None:
        connection.sock.sendall(response)

    with ScriptedUpstream(answer, answer) as upstream:
        assert found(upstream.url, key=KEY) is finding


def test_grpc_with_and_without_the_key() -> None:
    with GrpcUpstream() as upstream:
        assert found(upstream.url, "grpc") is Finding.GOOD
        upstream.probe = failing(grpc.StatusCode.UNAUTHENTICATED, WRONG)
        assert found(upstream.url, "grpc", KEY) is Finding.KEY_REFUSED
        upstream.probe = failing(grpc.StatusCode.UNAUTHENTICATED, MISSING)
        assert found(upstream.url, "grpc") is Finding.KEY_MISSING
        upstream.probe = failing(grpc.StatusCode.PERMISSION_DENIED, "words of a later version")
        assert found(upstream.url, "grpc", KEY) is Finding.KEY_REFUSED
        upstream.probe = failing(grpc.StatusCode.UNIMPLEMENTED)
        assert found(upstream.url, "grpc", KEY) is Finding.GOOD
        assert found(upstream.url, "rest") is Finding.OTHER_PORT
        assert not upstream.calls


def test_a_rest_port_where_grpc_is_expected() -> None:
    with ScriptedUpstream(answer=lambda connection, _: connection.sock.sendall(denying("400 Bad Request", ""))) as rest:
        assert found(rest.url, "grpc") is Finding.OTHER_PORT


@contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does this with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock, suppress(OSError):
                        handle(sock)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_one_that_speaks_tls(tmp_path: Path, protocol: HttpProtocol) -> None:
    """OpenSSL closes without a word where it is sent HTTP."""
    issued = Authority.create().issue(common_name="qdrant", server=True)
    path = tmp_path / "both.pem"
    path.write_bytes(issued.chain_pem + issued.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    def handle(sock: socket.socket) -> None:
        context.wrap_socket(sock, server_side=True).close()

    with serving(handle) as url:
        assert found(url, protocol) is Finding.SPEAKS_TLS


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_one_that_closes(protocol: HttpProtocol) -> None:
    with serving(lambda sock: sock.close()) as url:
        assert found(url, protocol) is Finding.CLOSES


def test_one_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert found(f"http://127.0.0.1:{port}") is Finding.UNREACHABLE


def test_each_address_is_tried_and_there_may_be_none() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            dead = (socket.AF_INET, listener.getsockname())
        with ScriptedUpstream() as upstream:
            alive = target(upstream.url).upstream.addresses[0]
            for addresses, finding in (((dead, alive), Finding.GOOD), ((), Finding.NO_ADDRESS)):
                one, conversation = await asked(target_at(upstream.url, addresses))
                assert one is not None
                assert one.finding is finding
                if conversation is not None:
                    conversation.socket.close()

    asyncio.run(scenario())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def with_probe(
    run: Callable[[UpstreamProbe, Clock, list[Received]], Coroutine[Any, Any, None]], wanted: list[Target] | None = None
) -> None:
    """``run`` with a probe of an upstream, and the questions that it has had."""
    questions: list[Received] = []

    def answer(connection: Connection, request: Received) -> None:
        questions.append(request)
        qdrant(connection, request)

    async def scenario() -> None:
        with ScriptedUpstream(probe=answer) as upstream:
            clock, targets = Clock(), wanted if wanted is not None else []
            targets.append(target(upstream.url, key=KEY))
            probe = UpstreamProbe(lambda: targets[-1], clock=clock)
            await run(probe, clock, questions)
            probe.close()

    asyncio.run(scenario())


def test_an_address_that_takes_no_connection_leaves_time_for_the_next() -> None:
    async def scenario() -> None:
        where, _, port = silent.rpartition(":")
        addresses = ((socket.AF_INET, (where, int(port))), *target(upstream.url).upstream.addresses)
        both = target_at(upstream.url, addresses)
        (found, conversation), ready = await asyncio.gather(asked(both), is_ready(both, DEADLINE))
        assert found is not None
        assert found.finding is Finding.GOOD
        assert ready
        assert conversation is not None
        conversation.socket.close()

    with ScriptedUpstream() as upstream, deaf() as silent:
        asyncio.run(scenario())


def test_the_release_is_told_of_the_present_target_alone() -> None:
    told: list[tuple[Finding, tuple[int, int] | None]] = []

    async def scenario() -> None:
        body = b'{"title":"qdrant","version":"1.19.2"}'
        versioned = plain(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        with ScriptedUpstream(probe=versioned) as upstream, ScriptedUpstream() as unknown:
            targets = [target(one.url) for one in (upstream, unknown)]
            present = [targets[0]]
            probe = UpstreamProbe(
                lambda: present[0], answered=lambda found: told.append((found.finding, found.release)), clock=Clock()
            )
            await probe()
            asking = asyncio.create_task(probe._ask(targets[0]))
            present[0] = targets[1]
            await asking
            await probe()
            probe.close()

    asyncio.run(scenario())
    assert told == [(Finding.GOOD, (1, 19)), (Finding.GOOD, None)]


def lines(questions: list[Received]) -> list[str]:
    return [one.line.split()[1] for one in questions]


def test_an_answer_is_kept_for_a_second_and_a_connection_for_the_next() -> None:
    async def scenario(probe: UpstreamProbe, clock: Clock, questions: list[Received]) -> None:
        assert all(part.good for part in await asyncio.gather(probe(), probe()))
        assert lines(questions) == ["/", "/collections"]
        clock.now = 0.9
        assert (await probe()).good
        assert len(questions) == 2
        clock.now = 1.0
        assert (await probe()).good
        assert lines(questions[2:]) == ["/"], "the key was taken on this connection"
        probe.doubt()
        assert (await probe()).good
        assert lines(questions[3:]) == ["/", "/collections"], "whoever doubts has all of it asked anew"

    with_probe(scenario)


def test_one_that_fails_is_asked_ever_more_rarely_and_another_at_once() -> None:
    targets: list[Target] = []

    async def scenario(probe: UpstreamProbe, clock: Clock, questions: list[Received]) -> None:
        good = targets[-1]
        targets.append(target(good.url))
        moments = []
        for tenth in range(200):
            clock.now, before = tenth / 10, len(questions)
            part: Part = await probe()
            assert not part.good
            moments += [clock.now] if len(questions) > before else []
            probe.doubt()
        assert moments[:4] == [0.0, 1.0, 3.0, 7.0]
        assert moments[4] - moments[3] == 4.0
        targets.append(good)
        assert (await probe()).good

    with_probe(scenario, targets)


def test_one_that_is_silent_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_probe, "DEADLINE", 0.2)

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            probe = UpstreamProbe(lambda: target(f"http://127.0.0.1:{listener.getsockname()[1]}"))
            assert "does not answer" in str(await probe())
            probe.close()

    asyncio.run(scenario())
