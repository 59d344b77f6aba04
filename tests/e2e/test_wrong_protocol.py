"""A client that speaks another protocol than its port is told so in a sentence, in the protocol that it speaks."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator

import grpc
import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import certificates
from support.grpc_upstream import GrpcUpstream
from support.h2_raw_client import PREFACE, H2Client, fields, h2
from support.operator_tools import curl, tool
from support.raw_request import read_response, request
from support.site import Site
from support.upstream import ScriptedUpstream

BOTH = {"port": 0, "protocols": ["rest", "grpc"]}
PORTS = ["REST", "gRPC", "REST and gRPC", "TCP"]


@pytest.fixture(scope="module")
def served(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """REST, gRPC, both, and TCP, each on a port of its own."""
    tcp = {"port": 0, "mode": "tcp", "upstream": shared_upstream.url.removeprefix("http://"), "allow": ["admin"]}
    with (
        GrpcUpstream() as grpc_upstream,
        Gateway(site.write_config(shared_upstream.url, grpc=grpc_upstream.url, listeners=[BOTH, tcp])) as running,
    ):
        yield running


def said_to(served: Gateway, site: Site, port: str, *options: str, path: str = "/collections") -> tuple[int, str]:
    """(HTTP status, the refusal's text) as curl shows them."""
    url = ["--connect-to", f"localhost:{served.port}:localhost:{served.ports[port][0]}"]
    code, status, body = curl(served, site, "admin", path, *url, *options)
    assert code == 0, body
    return status, json.loads(body)["status"]["error"] if body else ""


# REST over HTTP/2


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ([], "/"),
        ([], "/collections/docs?x=" + "a" * 8000),
        (["-X", "DELETE"], "/collections/docs"),
        (["--json", '{"vectors": {"size": 4, "distance": "Dot"}}', "-X", "PUT"], "/collections/docs"),
        (["--json", '{"vector": [1, 2], "limit": 1}'], "/collections/docs/points/search"),
    ],
    ids=["root", "GET", "DELETE", "PUT", "POST"],
)
def test_rest_over_http_2_is_told_where_it_is_served(
    site: Site, served: Gateway, options: list[str], path: str
) -> None:
    status, text = said_to(served, site, "gRPC", "--http2-prior-knowledge", *options, path=path)
    assert (status, "HTTP/1.1" in text, "gRPC" in text) == (421, True, True)
    record = served.audited(reason="not_grpc")
    assert (record["status"], record["error"]) == (421, text)


def test_curl_as_it_comes_gets_rest(site: Site, served: Gateway) -> None:
    """It offers h2 and http/1.1, like Go, Java, undici and browsers."""
    for options in ([], ["--http2"], ["--http2-prior-knowledge"]):
        assert curl(
            served,
            site,
            "admin",
            "/collections",
            "--connect-to",
            f"localhost:{served.port}:localhost:{served.ports['REST and gRPC'][0]}",
            *options,
        )[:2] == (0, 200)


def test_a_grpc_channel_as_it_comes_gets_grpc(site: Site, served: Gateway) -> None:
    credentials = grpc.ssl_channel_credentials(**certificates(site))
    with grpc.secure_channel(f"localhost:{served.ports['REST and gRPC'][0]}", credentials) as channel:
        assert channel.unary_unary("/qdrant.Qdrant/HealthCheck")(b"", timeout=DEADLINE) == b""


def test_heads_and_uploads_over_http_2(site: Site, served: Gateway) -> None:
    assert said_to(served, site, "gRPC", "--http2-prior-knowledge", "--head", "-o", "/dev/null") == (421, "")
    upload = ["--http2-prior-knowledge", "-X", "PUT", "--data-binary", "x" * 100_000]
    assert said_to(served, site, "gRPC", *upload, path="/collections/docs/points")[0] == 421


GET = [(":method", "GET"), (":scheme", "https"), (":path", "/collections"), (":authority", "localhost")]


def test_a_client_that_offers_h2_alone_where_both_are_served(site: Site, served: Gateway) -> None:
    context = site.client()
    context.set_alpn_protocols(["h2"])
    with served.connect(context, port=served.ports["REST and gRPC"][0]) as sock:
        client = H2Client(sock)
        client.start()
        for stream in (1, 3):
            client.send(client.headers(GET, None, "END_STREAM"))
            told = client.fields(stream)
            data = client.until(DataFrame)
            assert (told[":status"], told["content-type"]) == ("421", "application/json")
            assert (data.stream_id, data.flags) == (stream, {"END_STREAM"})
            assert int(told["content-length"]) == len(data.data)
            assert "HTTP/1.1" in json.loads(data.data)["status"]["error"]
        assert client.status(client.call(b"", fields("/qdrant.Qdrant/HealthCheck"))) == 0, "the connection goes on"


def test_a_body_fits_into_the_clients_window(site: Site, served: Gateway) -> None:
    with h2(served, site, INITIAL_WINDOW_SIZE=10) as client:
        client.send(client.headers(GET, None, "END_STREAM"))
        head = client.until(HeadersFrame)
        assert "END_STREAM" in head.flags
        assert ("content-length", "0") in client.decoder.decode(head.data)
        client.lives()


# HTTP/1.1 on the port of gRPC


def test_http_1_on_the_port_of_grpc(site: Site, served: Gateway) -> None:
    for options in (["--http1.1"], ["--no-alpn"], ["--http1.0", "--no-alpn"]):
        status, text = said_to(served, site, "gRPC", *options)
        assert (status, "gRPC" in text, "another port" in text) == (400, True, True)
        assert served.audited(event="handshake")["reason"] == "no_protocol"


def test_other_bytes_on_the_port_of_grpc(site: Site, served: Gateway) -> None:
    with served.connect(site.client(), port=served.grpc_port) as sock:
        sock.sendall(b"\x00\x01\x02")
        assert sock.recv(4096) == b"", "a clean end"


def test_http_2_without_alpn(site: Site, served: Gateway) -> None:
    with served.connect(site.client(), port=served.grpc_port) as sock:
        client = H2Client(sock)
        client.start()
        assert b"ALPN h2" in client.until(GoAwayFrame).additional_data


# In clear


def test_plain_http_by_curl(served: Gateway) -> None:
    done = subprocess.run(
        [tool("curl"), "-sS", "--noproxy", "*", "-w", "\n%{http_code}", f"http://127.0.0.1:{served.port}/collections"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    assert (status, "https://" in json.loads(body)["status"]["error"]) == ("400", True)
    record = served.audited(event="handshake", error="HTTP/1 without TLS")
    assert (record["result"], record["reason"]) == ("denied", "plaintext_http")


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "PROPFIND"])
def test_plain_http(served: Gateway, port: str, method: str) -> None:
    with socket.create_connection(("127.0.0.1", served.ports[port][0]), timeout=DEADLINE) as sock:
        sock.sendall(request(method, "/collections", body=b"{}" if method == "PUT" else b""))
        response = read_response(sock, method)  # type: ignore[arg-type]
    assert (response.status, response.closing) == (400, True)
    assert (b"This port speaks TLS" in response.body) is (method != "HEAD")
    assert served.audited(event="handshake", error="HTTP/1 without TLS")["reason"] == "plaintext_http"


def test_plain_http_that_comes_byte_by_byte(served: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /":
            sock.send(bytes((byte,)))
        assert read_response(sock).status == 400  # type: ignore[arg-type]


@pytest.mark.parametrize("port", PORTS)
def test_plain_http_2(served: Gateway, port: str) -> None:
    """A gRPC channel without TLS."""
    with socket.create_connection(("127.0.0.1", served.ports[port][0]), timeout=DEADLINE) as sock:
        sock.sendall(PREFACE + bytes(3) + b"\x04" + bytes(5))
        client = H2Client(sock)  # type: ignore[arg-type]
        assert b"This port speaks TLS" in client.until(GoAwayFrame).additional_data
        assert client.ended()
    assert served.audited(event="handshake", error="HTTP/2 without TLS")["reason"] == "plaintext_http"


def test_an_insecure_channel_of_grpc(served: Gateway) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}", [("grpc.enable_retries", 0)]) as channel:
        call = channel.unary_unary("/qdrant.Qdrant/HealthCheck")
        with pytest.raises(grpc.RpcError) as error:
            call(b"", timeout=DEADLINE)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "This port speaks TLS" in str(error.value.details())


@pytest.mark.parametrize("said", [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"])
def test_the_proxy_protocol_of_a_balancer_is_named(served: Gateway, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE) as sock:
        sock.sendall(said)
        assert sock.recv(4096) == b""
    record = served.audited(event="handshake", reason="proxy_protocol")
    assert record["error"].startswith("a header of the PROXY protocol is not expected")


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b"EHLO localhost\r\n", b"\x00\x01\x02\x03\x04\x05"])
def test_other_protocols_are_closed(served: Gateway, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE) as sock:
        sock.sendall(said)
        assert not sock.recv(4096).startswith(b"HTTP")
    assert served.audited(event="handshake", reason="not_tls")["result"] == "denied"


# On the port of REST


def test_a_grpc_call_over_http_1(site: Site, served: Gateway) -> None:
    """As of Connect's clients over a transport that offers http/1.1 too."""
    call = ["-X", "POST", "-H", "content-type: application/grpc+proto", "--data-binary", "x"]
    for port in ("REST", "REST and gRPC"):
        status, text = said_to(served, site, port, *call, path="/qdrant.Qdrant/HealthCheck")
        assert (status, "ALPN h2" in text) == (415, True)
        assert served.audited(reason="grpc_over_http_1")["status"] == 415
    web = ["-X", "POST", "-H", "content-type: application/grpc-web-text", "--data-binary", "x"]
    status, text = said_to(served, site, "REST", *web, path="/qdrant.Qdrant/HealthCheck")
    assert (status, "gRPC-Web is not served" in text) == (415, True), "another ALPN would not help"


def test_a_grpc_channel_agrees_on_no_protocol(site: Site, served: Gateway) -> None:
    credentials = grpc.ssl_channel_credentials(**certificates(site))
    with grpc.secure_channel(f"localhost:{served.port}", credentials) as channel:
        call = channel.unary_unary("/qdrant.Qdrant/HealthCheck")
        with pytest.raises(grpc.RpcError) as error:
            call(b"", timeout=DEADLINE)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "ALPN" in str(error.value.details())


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 505, "speak HTTP/1.1"),
        (b"GET / HTTP/1.0\r\nhost: localhost\r\n\r\n", 505, "speak HTTP/1.1"),
        (PREFACE, 505, "gRPC needs a port that serves it"),
        (b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 400, "Upgrade"),
        (b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 400, "Upgrade"),
    ],
)
def test_other_versions(site: Site, served: Gateway, said: bytes, status: int, words: str) -> None:
    for port in ("REST", "REST and gRPC"):
        with served.connect(site.client(), port=served.ports[port][0]) as sock:
            sock.sendall(said)
            response = read_response(sock)
        assert (response.status, words in response.json["status"]["error"]) == (status, True)
