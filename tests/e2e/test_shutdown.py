"""SIGTERM: what runs is finished, what idles ends, what is new is refused, and all within the configured time."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
import time

import pytest
from support.gated_answers import busy, gated
from support.gateway import DEADLINE, Gateway
from support.polling import until
from support.raw_connection import GET, UPSERT, Truncated, connected
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream


def draining(gateway: Gateway) -> None:
    gateway.process.send_signal(signal.SIGTERM)
    until(lambda: '"listeners": "draining"' in gateway.ask_admin("/readyz")[1])


def test_what_runs_is_finished(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    with gated(upstream) as let, connected(gateway, site.client()) as client, connected(gateway, site.client()) as idle:
        client.send(UPSERT, b"content-length: 5\r\n\r\nhello")
        idle.send(b"GET /unknown HTTP/1.1\r\nhost: h\r\n\r\n")
        assert idle.response().status == 404
        busy(upstream)
        draining(gateway)
        assert idle.ended(), "idle connections end at once"
        with pytest.raises(ConnectionRefusedError):
            gateway.connect(site.client())
        let.set()
        response = client.response()
        assert (response.status, response.fields["connection"]) == (200, "close")
        assert client.ended()
        assert gateway.process.wait(5) == 0, "it waits for no client to close"


def test_pipelined_requests_behind_it_are_not_begun(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    with gated(upstream) as let, connected(gateway, site.client()) as client:
        client.send(GET, GET)
        busy(upstream)
        draining(gateway)
        let.set()
        assert client.response().fields["connection"] == "close"
        assert client.ended()
    assert gateway.process.wait(DEADLINE) == 0
    assert len(upstream.requests) == 1


def test_a_body_under_way_is_taken(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    with connected(gateway, site.client()) as client:
        client.send(UPSERT, b"content-length: 100000\r\n\r\n", bytes(50_000))
        busy(upstream)
        draining(gateway)
        client.send(bytes(50_000))
        assert client.response().status == 200
        assert client.ended()
    assert gateway.process.wait(DEADLINE) == 0
    assert upstream.requests[0].body == bytes(100_000)


def test_so_is_a_small_one_of_which_the_upstream_has_not_heard(
    site: Site, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    with connected(gateway, site.client()) as client:
        client.send(UPSERT, b"content-length: 10\r\nexpect: 100-continue\r\n\r\n")
        assert client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
        draining(gateway)
        client.send(b"helloworld")
        assert client.response().status == 200
        assert client.ended()
    assert gateway.process.wait(DEADLINE) == 0
    assert upstream.requests[0].body == b"helloworld"


def test_a_head_under_way_is_taken(site: Site, gateway: Gateway) -> None:
    with connected(gateway, site.client()) as client:
        client.send(GET, GET[:20])
        assert client.response().status == 200
        draining(gateway)
        client.send(GET[20:])
        response = client.response()
        assert (response.status, response.fields["connection"]) == (200, "close")
        assert client.ended()
    assert gateway.process.wait(DEADLINE) == 0


def test_a_second_signal_ends_it_at_once(site: Site, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    with gated(upstream), connected(gateway, site.client()) as client:
        client.send(GET)
        busy(upstream)
        draining(gateway)
        gateway.process.send_signal(signal.SIGTERM)
        with pytest.raises(Truncated):
            client.response()
        assert gateway.process.wait(DEADLINE) == 0
        assert gateway.audited(method="list_collections")["reason"] == "client_gone"
        assert gateway.audited(event="stop")


def test_the_drain_timeout_cuts(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, limits={"drain_timeout": 0.5})) as gateway:
        with gated(upstream), connected(gateway, site.client()) as client:
            client.send(GET)
            busy(upstream)
            began = time.monotonic()
            draining(gateway)
            with pytest.raises(Truncated):
                client.response()
            assert gateway.process.wait(DEADLINE) == 0
        assert 0.4 < time.monotonic() - began < 5
        assert gateway.log.wait(lambda line: "1 connections are cut after 0.5 s" in line)


def test_a_handshake_that_ends_during_the_drain_is_no_failed_one(site: Site, gateway: Gateway) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = site.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE) as sock:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        draining(gateway)
        sock.sendall(outgoing.read())
        while data := sock.recv(65536):
            incoming.write(data)
        assert tls.read() == b"", "a clean end"
    assert [record["event"] for record in gateway.stop() if "event" in record] == ["start", "stop"]


def test_who_was_refused_is_not_waited_for(site: Site, gateway: Gateway) -> None:
    """Before the drain or in it, at the end of a request or in the middle: all are answered, and stay connected."""
    head, size = UPSERT + b"content-length: 9000000\r\n\r\n", 100_000
    with (
        connected(gateway, site.client("search")) as before,
        connected(gateway, site.client("search")) as sending,
        connected(gateway, site.client("stranger")) as whole,
    ):
        before.send(head, bytes(size))
        assert before.response().status == 403
        sending.send(head[:20])
        whole.send(GET[:20])
        draining(gateway)
        whole.send(GET[20:])
        sending.send(head[20:], bytes(size))
        sending.send(bytes(size))
        assert [sending.response().status, whole.response().status] == [403, 403]
        assert gateway.process.wait(5) == 0, "half of `limits.linger_timeout`"


GRACE = {"drain_grace": 20}


def test_a_client_that_could_not_know_is_answered_once_more(site: Site, upstream: ScriptedUpstream) -> None:
    """Idle, or in the middle of a response that had begun, or with its handshake just done."""
    with Gateway(site.write_config(upstream.url, limits=GRACE)) as gateway:
        context, let = site.client(), threading.Event()

        def slowly(connection: Connection, request: Received) -> None:
            request.body = connection.read_body(request)
            connection.sock.sendall(OK[:-5])
            let.wait(DEADLINE)
            connection.sock.sendall(OK[-5:])

        with (
            connected(gateway, context) as idle,
            connected(gateway, context) as fresh,
            connected(gateway, context) as busy,
        ):
            idle.send(GET)
            assert idle.response().status == 200
            upstream.answer = slowly
            busy.send(GET)
            begun = busy.head()
            assert "connection" not in begun.fields
            draining(gateway)
            let.set()
            assert b"".join(busy.body(begun)) == b'{"status":"ok"}'
            for client in (idle, fresh, busy):
                client.send(GET)
                response = client.response()
                assert (response.status, response.fields["connection"]) == (200, "close")
                assert client.ended()
        assert gateway.process.wait(DEADLINE) == 0


def test_who_says_nothing_is_not_waited_for(site: Site, upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(upstream.url, limits={"drain_grace": 0.3})) as gateway:
        with connected(gateway, site.client()) as client:
            client.send(GET)
            assert client.response().status == 200
            began = time.monotonic()
            draining(gateway)
            assert client.ended()
            assert 0.25 < time.monotonic() - began < 10
        assert gateway.process.wait(DEADLINE) == 0
