"""One id for each request: in the audit line, upstream, in the answer; no client chooses it. Trace Context passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from qdrant_client import grpc as pb
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import channel
from support.grpc_upstream import GrpcUpstream, failing, replying
from support.raw_request import Client, request
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream

ID = re.compile(r"[0-9a-f]{32}")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = PARENT.split("-")[1]
LIST = "/qdrant.Collections/List"
SCROLL = "/qdrant.Points/Scroll"
DOCS = pb.ScrollPoints(collection_name="docs").SerializeToString()
OTHER = pb.ScrollPoints(collection_name="other").SerializeToString()

REST: dict[str, tuple[str, str, bytes]] = {
    "allowed": ("admin", "GET /collections", b""),
    "refused": ("stranger", "GET /collections", b""),
    "refused by its body": ("ingest", "POST /collections/docs/points/query", b'{"lookup_from":{"collection":"x"}}'),
    "decided by its body": ("ingest", "POST /collections/docs/points/query", b'{"limit":1}'),
    "no such route": ("admin", "GET /nothing", b""),
    "answered here": ("admin", "GET /_tlsproxy/whoami", b""),
    "reduced": ("ingest", "GET /collections", b""),
    "unreadable": ("admin", "GET /collections%zz", b""),
}


@pytest.mark.parametrize("case", REST)
def test_every_answer_names_its_audit_line(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, case: str
) -> None:
    client_name, line, body = REST[case]
    method, _, target = line.partition(" ")
    before = len(shared_upstream.requests)
    mark = [("x-request-id", f"mark {case}")]
    with Client(shared_gateway, site.client(client_name)) as client:
        answer = client.ask(method, target, mark, body)
    ours = answer.fields["x-request-id"]
    assert ID.fullmatch(ours)
    record = shared_gateway.audited(tracing_id=f"mark {case}")
    assert (record["request_id"], record["status"]) == (ours, answer.status)
    assert [one.fields["x-request-id"] for one in shared_upstream.requests[before:]] in ([], [ours])
    assert b"mark" not in b"".join(one.head for one in shared_upstream.requests[before:])


def test_one_that_is_no_request_at_all_has_an_id_too(site: Site, shared_gateway: Gateway) -> None:
    with Client(shared_gateway, site.client()) as client:
        answer = client.send(b"NONSENSE\r\n\r\n")
    assert shared_gateway.audited(reason="bad_request")["request_id"] == answer.fields["x-request-id"]


def test_ids_are_each_request_s_own(site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream) -> None:
    """The same bytes on one connection are one plan, but never one id."""
    before = len(shared_upstream.requests)
    with Client(shared_gateway, site.client()) as client:
        told = [client.ask().fields["x-request-id"] for _ in range(600)]
    assert len(set(told)) == 600
    assert [one.fields["x-request-id"] for one in shared_upstream.requests[before:]] == told
    assert len({one[:8] for one in told}) > 590  # nobody can count the others by their own


def test_of_an_upstream_s_own_there_is_nothing_left(site: Site, upstream: ScriptedUpstream) -> None:
    def answer(connection: Connection, _: Received) -> None:
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\nX-Request-ID: theirs\r\ncontent-length: 0\r\n\r\n")

    upstream.answer = answer
    with Gateway(site.write_config(upstream.url)) as gateway, Client(gateway, site.client()) as client:
        got = client.ask()
        assert gateway.audited(status=200)["request_id"] == got.fields["x-request-id"]


@pytest.mark.parametrize("name", ["X_Request_Id", "x.request.id", "x-request-id-bin", "X-REQUEST-ID"])
def test_no_alias_of_it_passes(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream, name: str
) -> None:
    with Client(shared_gateway, site.client()) as client:
        client.ask(fields=[(name, "f0rged")])
    assert b"f0rged" not in shared_upstream.requests[-1].head


def test_trace_context_is_passed_on_as_it_is(
    site: Site, shared_gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    state = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    with Client(shared_gateway, site.client()) as client:
        client.ask(target="/collections/traced", fields=[("Traceparent", PARENT), ("tracestate", state)])
        seen = shared_upstream.requests[-1].fields
        assert (seen["traceparent"], seen["tracestate"]) == (PARENT, state)
        record = shared_gateway.audited(collection="traced")
        assert (record["trace_id"], record["tracing_id"]) == (TRACE, PARENT)

        client.ask(target="/collections/garbled", fields=[("traceparent", f"{PARENT}x"), ("tracestate", state)])
        seen = shared_upstream.requests[-1].fields
        assert not {"traceparent", "tracestate"} & seen.keys()
        record = shared_gateway.audited(collection="garbled")
        assert "trace_id" not in record
        assert record["tracing_id"] == f"{PARENT}x"


def test_an_id_does_not_reach_into_the_line(site: Site, shared_gateway: Gateway) -> None:
    """What a client says stands under `tracing_id`, whatever it looks like."""
    forged = '","request_id":"00000000000000000000000000000000","x":"'
    with Client(shared_gateway, site.client()) as client:
        answer = client.ask(fields=[("x-request-id", forged)])
    record = shared_gateway.audited(tracing_id=forged)
    assert record["request_id"] == answer.fields["x-request-id"]


def test_a_request_that_is_sent_again_keeps_its_id(site: Site, upstream: ScriptedUpstream) -> None:
    def once(connection: Connection, received: Received) -> None:
        if len(upstream.requests) == 2:
            connection.sock.close()
        else:
            usual(connection, received)

    usual, upstream.answer = upstream.answer, once
    with Gateway(site.write_config(upstream.url)) as gateway, Client(gateway, site.client()) as client:
        client.ask()
        answer = client.ask()
    assert [one.fields["x-request-id"] for one in upstream.requests[1:]] == [answer.fields["x-request-id"]] * 2


# gRPC


def metadata_of(opened: grpc.Channel, method: str, message: bytes, *metadata: tuple[str, str]) -> dict[str, Any]:
    """All that came before and after the answer, whatever it is."""
    call = opened.unary_unary(method).future(message, metadata=metadata, timeout=DEADLINE)
    call.exception(DEADLINE)
    told = [*call.initial_metadata(), *call.trailing_metadata()]
    assert [name for name, _ in told].count("x-request-id") == 1, told
    return dict(told)


GRPC: dict[str, tuple[str, str, bytes]] = {
    "allowed": ("admin", LIST, b""),
    "refused": ("stranger", LIST, b""),
    "decided by its message": ("ingest", SCROLL, DOCS),
    "refused by its message": ("ingest", SCROLL, OTHER),
    "no such method": ("admin", "/qdrant.Nothing/At", b""),
    "reduced": ("ingest", LIST, b""),
}


@pytest.mark.parametrize("answer", [replying(b""), failing(grpc.StatusCode.NOT_FOUND, "no")], ids=["ok", "failing"])
def test_every_call_s_answer_names_its_audit_line(
    site: Site, grpc_gateway: Gateway, grpc_upstream: GrpcUpstream, answer: Callable[..., Any]
) -> None:
    grpc_upstream.answer = answer
    for case, (client, method, message) in GRPC.items():
        mark = f"mark {case}"
        with channel(grpc_gateway, site, client) as opened:
            told = metadata_of(
                opened, method, message, ("x-request-id", mark), ("traceparent", PARENT), ("x-case", case)
            )
        record = grpc_gateway.audited(tracing_id=mark)
        assert ID.fullmatch(told["x-request-id"])
        assert (record["request_id"], record["trace_id"]) == (told["x-request-id"], TRACE)
        # One that was refused by its message, and taken back, may be seen late.
        for one in [seen for seen in grpc_upstream.calls if seen.metadata["x-case"] == case]:
            assert one.metadata["x-request-id"] == told["x-request-id"]
            assert one.metadata["traceparent"] == PARENT


def test_calls_on_one_connection_have_each_their_own(
    site: Site, grpc_gateway: Gateway, grpc_upstream: GrpcUpstream
) -> None:
    with channel(grpc_gateway, site) as opened:
        told = [metadata_of(opened, LIST, b"")["x-request-id"] for _ in range(20)]
    assert len(set(told)) == 20
    assert [one.metadata["x-request-id"] for one in grpc_upstream.calls] == told


def test_the_upstream_being_down_is_told_with_an_id(site: Site) -> None:
    config = site.write_config("http://127.0.0.1:1", grpc="http://127.0.0.1:1")
    with Gateway(config) as gateway:
        with Client(gateway, site.client()) as client:
            answer = client.send(request("GET", "/collections"))
        assert answer.status == 502
        assert gateway.audited(status=502)["request_id"] == answer.fields["x-request-id"]
        with channel(gateway, site) as opened:
            told = metadata_of(opened, LIST, b"")
        assert gateway.audited(grpc_status=14)["request_id"] == told["x-request-id"]
