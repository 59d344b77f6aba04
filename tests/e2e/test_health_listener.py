"""Load balancers and Prometheus ask a listener of their own, without a client certificate, and get nothing else."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.gateway import DEADLINE, Gateway
from support.operator_tools import tool
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.admin.health import MAX_CONNECTIONS, MAX_HEAD

PLAIN = {"listen": "127.0.0.1:0", "metrics": True}


@pytest.fixture(scope="module")
def plain(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(shared_upstream.url, health=PLAIN)) as running:
        yield running


def connected(served: Gateway) -> socket.socket:
    address = urlsplit(served.health)
    return socket.create_connection((address.hostname, address.port), DEADLINE)


def answer_to(sock: socket.socket, said: bytes, method: str = "GET") -> tuple[int, bytes]:
    sock.sendall(said)
    with http.client.HTTPResponse(sock, method=method) as response:
        response.begin()
        assert response.getheader("connection") == "close"
        return response.status, response.read()


def asked(served: Gateway, path: str, method: str = "GET", *, context: ssl.SSLContext | None = None) -> tuple[int, Any]:
    sock = connected(served)
    with sock if context is None else context.wrap_socket(sock, server_hostname="localhost") as talking:
        status, body = answer_to(talking, f"{method} {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode(), method)
    return status, json.loads(body) if body[:1] == b"{" else body.decode()


def test_alive_and_ready(plain: Gateway) -> None:
    assert asked(plain, "/livez") == (200, {"alive": True})
    status, ready = asked(plain, "/readyz")
    assert (status, ready["ready"]) == (200, True)
    assert set(ready["parts"].values()) == {"ok"}
    assert asked(plain, "/readyz?verbose")[0] == 200
    assert asked(plain, "/readyz", "HEAD") == (200, "")


def test_metrics(plain: Gateway) -> None:
    status, text = asked(plain, "/metrics")
    assert status == 200
    assert "tlsproxy_build_info{" in text


@pytest.mark.parametrize("path", ["/", "/status", "/reload", "/collections", "/readyz/", "/livez/../status", "//livez"])
def test_nothing_else(plain: Gateway, path: str) -> None:
    for method in ("GET", "POST"):
        status, told = asked(plain, path, method)
        assert (status, told) == (404, {"error": "Only /livez, /readyz and /metrics are served here"})


def test_other_methods(plain: Gateway) -> None:
    for method in ("POST", "DELETE", "OPTIONS"):
        assert asked(plain, "/readyz", method) == (405, {"error": "Only GET and HEAD are served here"})


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),  # as HAProxy's `option httpchk` asks
        (b"GET /livez HTTP/1.1\n\n", 400),
        (b"GET livez HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nx: " + b"x" * MAX_HEAD, 431),
        (b"GET /livez HTTP/1.1\r\nx: " + b"x" * MAX_HEAD + b"\r\n\r\n", 431),
        (b"GET /livez HTTP/1.1\r\ncontent-length: 20000\r\n\r\n" + b"x" * 20000, 200),
        (b"POST /livez HTTP/1.1\r\ncontent-length: 20000\r\n\r\n" + b"x" * 20000, 405),
    ],
)
def test_requests_in_other_forms(plain: Gateway, said: bytes, status: int) -> None:
    with connected(plain) as sock:
        assert answer_to(sock, said)[0] == status


def test_a_request_that_comes_in_pieces(plain: Gateway) -> None:
    with connected(plain) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"GET /liv")
        sock.sendall(b"ez HTTP/1.1\r\n")
        assert answer_to(sock, b"\r\n")[0] == 200


def test_held_connections_shut_out_no_probe(plain: Gateway) -> None:
    held = [connected(plain) for _ in range(MAX_CONNECTIONS + 3)]
    try:
        assert asked(plain, "/livez")[0] == 200
        for sock in held[:4]:
            assert sock.recv(1) == b"", "the oldest give way"
        held[-1].sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        assert held[-1].recv(4096).startswith(b"HTTP/1.1 200 ")
    finally:
        for sock in held:
            sock.close()


def test_tls_on_the_plain_port_is_closed(site: Site, plain: Gateway) -> None:
    with connected(plain) as sock, pytest.raises((ssl.SSLError, ConnectionError)):
        site.client().wrap_socket(sock, server_hostname="localhost")


# TLS, workers and reloads


def test_over_tls_without_a_client_certificate(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, health={"listen": "127.0.0.1:0", "tls": True}, workers=2)
    with Gateway(config) as gateway:
        assert gateway.health.startswith("https://")
        context = own_site.client(None)
        assert asked(gateway, "/readyz", context=context)[0] == 200
        assert asked(gateway, "/metrics", context=context) == (
            404,
            {"error": "health.metrics is false: no metrics are served here"},
        )
        with connected(gateway) as sock:  # without TLS
            assert answer_to(sock, b"GET /livez HTTP/1.1\r\nhost: h\r\n\r\n")[0] == 400

        own_site.issue("server", common_name="localhost", dns=["localhost"], ips=["127.0.0.1"], server=True)
        own_site.edit_config(config, health={"metrics": True})
        gateway.hang_up()
        gateway.reloaded()
        with context.wrap_socket(connected(gateway), server_hostname="localhost") as sock:
            shown = sock.getpeercert()
        assert shown is not None
        assert int(str(shown["serialNumber"]), 16) == own_site.serial("server"), "the new one"
        assert "tlsproxy_worker_generation" in asked(gateway, "/metrics", context=context)[1]

        with gateway.connect(own_site.client()) as busy:
            busy.sendall(b"GET /collections HTTP/1.1\r\n")  # a head under way keeps the gateway from its end
            gateway.process.send_signal(signal.SIGTERM)
            while (answer := asked(gateway, "/readyz", context=context))[0] == 200:
                pass
            assert answer == (503, answer[1] | {"ready": False})
            assert answer[1]["parts"]["listeners"] == "not_ready", "a name and no reason"
            busy.sendall(b"host: h\r\n\r\n")
            assert busy.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_curl_as_it_comes(plain: Gateway) -> None:
    done = subprocess.run(
        [tool("curl"), "-sS", "--noproxy", "*", f"{plain.health}/readyz"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    assert json.loads(done.stdout)["ready"] is True
