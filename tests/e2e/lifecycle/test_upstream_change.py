"""The upstream that a publication names has each request from then on; the former one ends what it has begun."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.gated_answers import GatedAnswer
from support.gateway import Gateway
from support.polling import until
from support.raw_connection import GET, UPSERT, connected
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream

BODY = b"content-length: 13\r\n\r\n" + b'{"points":[]}'


def status(gateway: Gateway) -> dict[str, Any]:
    return dict(json.loads(gateway.ask_admin("/status")[1]))


@contextmanager
def deaf() -> Iterator[str]:
    """An address that answers no SYN: its backlog is full. Its URL."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("workers", [1, 2])
def test_new_requests_go_to_the_new_one_at_once(own_site: Site, upstream: ScriptedUpstream, workers: int) -> None:
    """A request that runs ends where it began; idle connections to the former one end by themselves."""
    upstream.answer = held = GatedAnswer()
    clients = 6
    config = own_site.write_config(upstream.url, upstream={"rest": upstream.url, "api_key": "old"}, workers=workers)
    with Gateway(config) as gateway, ScriptedUpstream() as new, ExitStack() as stack:
        opened = [stack.enter_context(connected(gateway, own_site.client())) for _ in range(clients)]
        for client in opened:
            client.send(GET)
        held.wait(clients)
        held.release.set()
        assert [client.response().status for client in opened] == [200] * clients
        held.release.clear()
        opened[0].send(GET)
        held.wait(1)
        own_site.edit_config(config, upstream={"rest": new.url, "api_key": "new"})
        gateway.reloaded()
        assert status(gateway)["upstream"]["idle"] == 0
        for client in opened[1:]:
            client.send(GET)
            assert client.response().status == 200
        assert len(new.requests) == clients - 1
        assert {request.fields["api-key"] for request in new.requests} == {"new"}
        assert {request.fields["host"] for request in new.requests} == {new.url.removeprefix("http://")}
        assert status(gateway)["former_upstream"] == {"rest": 1, "grpc": 0, "tcp": 0}

        held.release.set()
        assert opened[0].response().status == 200
        assert status(gateway)["former_upstream"]["rest"] == 0
        opened[0].send(GET)
        assert opened[0].response().status == 200
        assert len(upstream.requests) == clients + 1
        assert len(new.requests) == clients


def test_a_request_that_waits_for_a_place_goes_to_the_new_one(own_site: Site, upstream: ScriptedUpstream) -> None:
    upstream.answer = held = GatedAnswer()
    config = own_site.write_config(
        upstream.url, upstream={"rest": upstream.url, "max_connections": 1, "api_key": "old"}
    )
    with (
        Gateway(config) as gateway,
        ScriptedUpstream() as new,
        connected(gateway, own_site.client()) as first,
        connected(gateway, own_site.client()) as second,
    ):
        first.send(GET)
        held.wait(1)
        second.send(UPSERT, BODY)
        until(lambda: "tlsproxy_upstream_waiting 1.0" in gateway.ask_admin("/metrics")[1])
        own_site.edit_config(config, upstream={"rest": new.url, "api_key": "new"})
        gateway.reloaded()
        held.release.set()
        assert [first.response().status, second.response().status] == [200, 200]
        (sent,) = new.requests
        assert (sent.body, sent.fields["api-key"]) == (b'{"points":[]}', "new")
        assert sent.fields["host"] == new.url.removeprefix("http://")
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("body", [b"", b"content-length: 100000\r\n\r\n" + b" " * 100_000])
def test_a_request_whose_upstream_is_being_dialled_goes_to_the_new_one(own_site: Site, body: bytes) -> None:
    with deaf() as old, ScriptedUpstream() as new:
        config = own_site.write_config(old, upstream={"rest": old, "connect_timeout": 600, "api_key": "old"})
        with Gateway(config) as gateway, connected(gateway, own_site.client()) as client:
            client.send(*((UPSERT, body) if body else (GET,)))
            until(lambda: status(gateway)["upstream"]["busy"] == 1)
            own_site.edit_config(config, upstream={"rest": new.url, "api_key": "new"})
            gateway.reloaded()
            assert client.response().status == 200
    (sent,) = new.requests
    assert sent.fields["api-key"] == "new"
    assert len(sent.body) == (100_000 if body else 0)


def test_what_was_asked_of_the_former_one_decides_nothing(own_site: Site, upstream: ScriptedUpstream) -> None:
    """A tenant's query waits for facts that the former upstream is slow to tell: they are asked of the new one."""
    upstream.answer = held = GatedAnswer()
    asked: list[str] = []

    def answer(connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        asked.append(request.line.removesuffix(" HTTP/1.1"))
        told: dict[str, Any] = {"title": "qdrant", "version": "1.20.0"}
        if len(asked) > 1:
            told = {"result": {"config": {"params": {"sparse_vectors": {"words": {"modifier": "idf"}}}}}, "time": 0.0}
        body = json.dumps(told).encode()
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    config = own_site.write_config(
        upstream.url,
        roles={"tenant": {"access": [{"collection": "*", "access": "rw"}], "filter": {"tenant": "acme"}}},
        identities=[{"name": "tenants", "match": {"ou": "platform"}, "role": "tenant"}],
    )
    query = json.dumps({"query": {"indices": [1], "values": [1.0]}, "using": "words"}).encode()
    with (
        ScriptedUpstream(answer) as new,
        Gateway(config) as gateway,
        connected(gateway, own_site.client()) as client,
    ):
        client.send(b"POST /collections/docs/points/query HTTP/1.1\r\nhost: h\r\n")
        client.send(b"content-length: %d\r\n\r\n%b" % (len(query), query))
        held.wait(1)
        own_site.edit_config(config, upstream={"rest": new.url})
        gateway.reloaded()
        assert client.response().status == 200, "it waits for the former one no longer"
        held.release.set()
        assert asked == ["GET /", "GET /collections/docs", "POST /collections/docs/points/query"]
        assert [one.line for one in upstream.requests] == ["GET / HTTP/1.1"]
