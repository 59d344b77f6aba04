"""Each wait for a client has its end, the audit log says which, and the others do not notice."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.gateway import DEADLINE, Gateway
from support.raw_connection import GET, UPLOAD, UPSERT, RawClient, Truncated, connected
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream, plain

SHORT = 0.5
TIMES = ("handshake_timeout", "head_timeout", "body_timeout", "write_timeout", "idle_timeout", "linger_timeout")


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(upstream.url, limits=dict.fromkeys(TIMES, SHORT))) as running:
        yield running


@pytest.fixture
def client(site: Site, gateway: Gateway) -> Iterator[RawClient]:
    with connected(gateway, site.client()) as running:
        yield running


def within(began: float) -> bool:
    return SHORT - 0.1 < time.monotonic() - began < SHORT + 2


def test_a_handshake_that_does_not_go_on(gateway: Gateway) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00")
        assert sock.recv(1) == b""
    assert within(began)
    assert gateway.audited(event="handshake")["reason"] == "handshake_timeout"


def test_an_idle_connection(client: RawClient) -> None:
    began = time.monotonic()
    assert client.ended()
    assert within(began)


@pytest.fixture(autouse=True)
def _plain(upstream: ScriptedUpstream) -> None:
    upstream.answer = plain()


def test_a_head_that_does_not_go_on(gateway: Gateway, client: RawClient) -> None:
    client.send(GET)
    assert client.response().status == 200
    began = time.monotonic()
    client.send(GET[:-2])
    response = client.response()
    assert (response.status, response.fields["connection"]) == (408, "close")
    assert client.ended()
    assert within(began)
    assert gateway.audited(status=408)["reason"] == "client_timeout"


def test_a_head_that_comes_in_drops(client: RawClient) -> None:
    """The time counts from its first byte: another byte buys nothing."""
    client.sock.settimeout(0.1)
    began = time.monotonic()
    client.send(b"GET /collections HTTP/1.1\r\nhost: h\r\nx: ")
    while True:
        client.send(b"x")
        try:
            assert b" 408 " in client.receive()
            break
        except TimeoutError:
            continue
    assert within(began)


def test_a_body_that_does_not_go_on(gateway: Gateway, client: RawClient) -> None:
    began = time.monotonic()
    client.send(UPSERT, b"content-length: 10\r\n\r\nhello")
    response = client.response()
    assert (response.status, response.fields["connection"]) == (408, "close")
    assert within(began)
    assert gateway.audited(method="upsert_points")["reason"] == "client_timeout"


def test_a_body_that_stops_after_a_quick_start(client: RawClient) -> None:
    """What came before buys no time to stall."""
    client.send(UPLOAD, b"content-length: 20000000\r\n\r\n", bytes(10_000_000))
    began = time.monotonic()
    assert client.response().status == 408
    assert within(began)


def test_a_body_that_comes_in_drops(client: RawClient) -> None:
    client.sock.settimeout(0.1)
    began = time.monotonic()
    client.send(UPSERT, b"content-length: 10000\r\n\r\n")
    while True:
        client.send(b"x")
        try:
            assert b" 408 " in client.receive()
            break
        except TimeoutError:
            continue
    assert within(began)


def test_a_refused_body_that_does_not_come(site: Site, gateway: Gateway) -> None:
    began = time.monotonic()
    with connected(gateway, site.client("search")) as client:
        client.send(UPSERT, b"content-length: 10\r\n\r\nhello")
        assert client.response().status == 403
        assert client.ended()
    assert within(began)


def pace(seconds: float) -> None:
    """Slowness is what is tested here."""
    if seconds > 0:
        threading.Event().wait(seconds)


def large(connection: Connection, request: Received) -> None:
    connection.read_body(request)
    connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n" + bytes(50_000_000))


def test_a_client_that_takes_nothing_of_its_response(
    gateway: Gateway, upstream: ScriptedUpstream, client: RawClient
) -> None:
    upstream.answer = large
    began = time.monotonic()
    client.send(GET)
    assert gateway.audited(reason="client_stalled")["status"] == 200
    assert within(began)
    with pytest.raises(Truncated):
        client.response()


def test_a_client_that_takes_it_slowly_is_left_to(upstream: ScriptedUpstream, client: RawClient) -> None:
    """Slower as a whole than the timeout, and never as slow as that between two pieces."""
    upstream.answer = large
    client.send(GET)
    response, size, began = client.head(), 0, time.monotonic()
    for piece in client.body(response):
        size += len(piece)
        pace(min(2.0, size / 10_000_000) - (time.monotonic() - began))
    assert size == 50_000_000
    assert time.monotonic() - began > 3 * SHORT


def test_the_end_of_a_response_is_not_cut_short(upstream: ScriptedUpstream, client: RawClient) -> None:
    """The connection closes after it, which gives a slow reader no less time."""
    upstream.answer = large
    client.send(b"GET /collections HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
    response, size, began = client.head(), 0, time.monotonic()
    for piece in client.body(response):
        size += len(piece)
        pace((size - 42_000_000) / 4_000_000 - (time.monotonic() - began))
    assert size == 50_000_000
    assert client.ended()


def test_a_good_client_is_served_meanwhile(site: Site, gateway: Gateway) -> None:
    with ExitStack() as stack:
        for number in range(60):
            slow = stack.enter_context(connected(gateway, site.client()))
            slow.send((GET[:20], UPSERT + b"content-length: 9\r\n\r\nx", b"")[number % 3])
        good = stack.enter_context(connected(gateway, site.client()))
        worst = 0.0
        for _ in range(200):
            began = time.monotonic()
            good.send(GET)
            assert good.response().status == 200
            worst = max(worst, time.monotonic() - began)
    assert worst < SHORT
