"""Qdrant wants a key that the gateway does not have, or not the right one: the gateway is blamed, not the client."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from support.forked import run
from support.gateway import Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcCall, GrpcUpstream, replying
from support.raw_request import Client
from support.site import Site
from support.upstream import OK, Answer, Connection, Received, ScriptedUpstream, plain

KEY = "qdrants-own-key-that-nobody-guesses"
BLAMED = "The gateway's own key for Qdrant is missing or wrong"


class Qdrant:
    """REST and gRPC with an API key: as Qdrant, `/` and the health check are free, and the key is compared as text."""

    def __init__(self, rest: ScriptedUpstream, calls: GrpcUpstream, key: str) -> None:
        self.key = key
        self.rest, self.grpc = rest, calls
        rest.answer = rest.probe = self._request
        calls.answer = calls.probe = self._call

    @staticmethod
    def _text(sent: object) -> str:
        missing = "Must provide an API key or an Authorization bearer token"
        return missing if sent is None else "Invalid API key or JWT"

    def _request(self, connection: Connection, request: Received) -> None:
        connection.read_body(request)
        sent = request.fields.get("api-key")
        if request.line.startswith("GET / ") or sent == self.key:
            connection.sock.sendall(OK)
            return
        text = self._text(sent)
        connection.sock.sendall(f"HTTP/1.1 401 Unauthorized\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())

    async def _call(self, asked: GrpcCall) -> None:
        sent = asked.metadata.get("api-key")
        if sent == self.key:
            await replying(b"")(asked)
        else:
            await asked.fail(grpc.StatusCode.UNAUTHENTICATED, self._text(sent))


@contextmanager
def qdrant(key: str = KEY) -> Iterator[Qdrant]:
    with ScriptedUpstream() as rest, GrpcUpstream() as calls:
        yield Qdrant(rest, calls, key)


REQUESTS = (
    ("GET", "/collections/docs", "admin", b""),
    ("PUT", "/collections/docs/points", "admin", b'{"points":[]}'),
    ("GET", "/collections", "ingest", b""),
    ("POST", "/collections/docs/points/query", "ingest", b'{"query":[0.1]}'),
)


@pytest.mark.parametrize(("own", "told"), [(None, "is missing"), ("another", "Qdrant refuses the gateway's own key")])
def test_a_key_that_is_missing_or_wrong(site: Site, own: str | None, told: str) -> None:
    with qdrant() as upstream:
        settings = {"rest": upstream.rest.url, "grpc": upstream.grpc.url} | ({"api_key": own} if own else {})
        config = site.write_config(upstream.rest.url, grpc=upstream.grpc.url, upstream=settings)
        checked = run("check", "--connect", "--config", str(config))
        assert checked.returncode == 1
        assert told in checked.stderr
        assert "upstream.api_key_file" in checked.stderr
        assert KEY not in checked.stderr + checked.stdout
        with Gateway(config) as gateway:
            lines = [gateway.log.wait(lambda line: "not ready: upstream_" in line) for _ in range(2)]
            assert all("ERROR" in line and told in line and "upstream.api_key_file" in line for line in lines)
            status, body = gateway.ask_admin("/readyz")
            assert (status, body.count("upstream.api_key_file")) == (503, 4)
            for method, path, name, content in REQUESTS:
                with Client(gateway, site.client(name)) as client:
                    answer = client.ask(method, path, (), content)
                    assert answer.status == 502, (path, answer)
                    assert answer.json["status"]["error"].startswith(BLAMED)
                    assert client.ask("GET", "/collections/docs").status == 502, "the connection is kept"
                assert gateway.audited(reason="upstream_key_refused")["status"] == 502
            for name in ("admin", "ingest"):  # relayed as it is, and reduced
                with channel(gateway, site, name) as opened:
                    for _ in range(2):
                        answered = call(opened, "/qdrant.Collections/List")
                        assert answered.code is grpc.StatusCode.UNAVAILABLE
                        assert answered.text.startswith(BLAMED)
            assert gateway.audited(grpc_status=14)["reason"] == "upstream_key_refused"
            upstream.key = own or ""
            if own:
                gateway.log.wait(lambda line: "ready again: upstream_rest" in line and "8 refused" in line)
                with Client(gateway, site.client()) as client:
                    assert client.ask().status == 200


def test_a_key_that_may_not_write(site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    """A read-only key passes every look; what Qdrant says of a write is told as it is meant, compressed or not."""
    text = b'{"status":{"error":"Forbidden: Global manage access is required"},"time":0.0}'
    head = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\n"
    gzipped = b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
    packed, brotli = gzip.compress(text), b"\x0b\x02\x80no matter\x03"
    answers = {
        b"content-length: %d\r\n\r\n%b" % (len(text), text): 502,
        gzipped + b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed): 502,
        b"connection: close\r\n\r\n%b" % text: 502,
        b"content-encoding: br\r\ncontent-length: %d\r\n\r\n%b" % (len(brotli), brotli): 403,
    }
    with Client(shared_gateway, site.client()) as client:
        for rest, status in answers.items():
            shared_upstream.answer = ending(head + rest)
            answer = client.ask("PUT", "/collections/docs", (), b"{}")
            assert answer.status == status
            assert answer.body.startswith(b"\x0b") or answer.json["status"]["error"].startswith(BLAMED)


def ending(response: bytes) -> Answer:
    """An answer that closes its connection if it says so."""

    def answer(connection: Connection, request: Received) -> None:
        plain(response)(connection, request)
        if b"connection: close" in response:
            raise EOFError

    return answer


def test_a_refusal_of_something_else_is_the_clients(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    gateway, upstream, before = shared_gateway, shared_upstream, shared_upstream.connections
    text = b'{"status":{"error":"Forbidden: write operations are locked"},"time":0.0}'
    locked = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(text),
        text,
    )
    big = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 100000\r\n\r\n" + bytes(100_000)
    chunked = b"HTTP/1.1 403 Forbidden\r\ntransfer-encoding: chunked\r\n\r\n3\r\nno!\r\n0\r\n\r\n"
    with Client(gateway, site.client()) as client:
        for response, status, body in ((locked, 403, text), (big, 401, bytes(100_000)), (chunked, 403, b"no!")):
            upstream.answer = plain(response)
            for _ in range(2):
                answer = client.ask(target="/collections/elsewhere")
                assert (answer.status, answer.body) == (status, body)
                assert gateway.audited(status=status, collection="elsewhere")["reason"] == "allowed"
    assert upstream.connections <= before + 1
    assert gateway.ask_admin("/readyz")[0] == 200
