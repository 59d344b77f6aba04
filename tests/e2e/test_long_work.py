"""Work that takes longer than `upstream.response_timeout`: as long as its client waits, within the operator's limit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream, never
from support.h2_raw_client import fields, h2
from support.raw_connection import RawClient, connected
from support.site import Site
from support.upstream import OK, Connection, Received, ScriptedUpstream

RESPONSE, MOST = 0.4, 1.2
DEADLINE_EXCEEDED = 4

ITSELF = "/collections/docs?timeout=3600"
SNAPSHOTS = (
    ("POST", "/snapshots"),
    ("POST", "/collections/docs/snapshots?wait=true"),
    ("PUT", "/collections/docs/snapshots/recover"),
    ("POST", "/collections/docs/snapshots/upload?priority=snapshot"),
    ("GET", "/collections/docs/snapshots/a.snapshot"),
    ("PUT", "/collections/docs/shards/0/snapshots/recover"),
    ("POST", "/collections/docs/shards/0/snapshot/partial/create"),
)
NO_TIMEOUT = ("", "?timeout=-1", "?timeout=1e99", "?timeout=0", "?timeout=9&timeout=9", "?timeout=x", "?timeout=")


class HeldUpstream:
    """Answers no request before it is released, and then all."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.release = threading.Event()
        upstream.answer = self

    def __call__(self, connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        self.release.wait(20)
        connection.sock.sendall(OK)


@pytest.fixture(scope="module")
def grpc_upstream() -> Iterator[GrpcUpstream]:
    with GrpcUpstream(never) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> Iterator[Gateway]:
    limits = {"max_response_timeout": MOST, "snapshot_timeout": 60.0}
    upstream = {"response_timeout": RESPONSE}
    config = site.write_config(shared_upstream.url, grpc=grpc_upstream.url, limits=limits, upstream=upstream)
    with Gateway(config) as running:
        yield running


def test_a_request_has_the_time_of_its_client_and_a_snapshot_its_own(
    site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    held = HeldUpstream(shared_upstream)
    with ExitStack() as stack:

        def sent(method: str, target: str) -> RawClient:
            client = stack.enter_context(connected(gateway, site.client()))
            client.send(f"{method} {target} HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n".encode())
            return client

        snapshots = [sent(method, target) for method, target in SNAPSHOTS]
        itself = [sent("GET", ITSELF), sent("GET", "/collections/docs?timeout=99999999999999999999")]
        usual = [sent("GET", f"/collections/docs{query}") for query in NO_TIMEOUT]
        assert [late.response().status for late in usual] == [504] * len(NO_TIMEOUT)
        assert [late.response().status for late in itself] == [504] * 2
        lasted = [gateway.audited(reason="upstream_timeout")["duration_ms"] / 1000 for _ in (*usual, *itself)]
        assert all(seconds >= RESPONSE for seconds in lasted)
        assert sum(seconds >= MOST for seconds in lasted) >= len(itself), "the operator's limit"
        held.release.set()
        assert [snapshot.response().status for snapshot in snapshots] == [200] * len(SNAPSHOTS)


def test_a_request_is_waited_for_as_long_as_its_client_says(
    site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream
) -> None:
    held = HeldUpstream(shared_upstream)
    with connected(gateway, site.client()) as patient, connected(gateway, site.client()) as other:
        patient.send(f"GET {ITSELF} HTTP/1.1\r\nhost: h\r\n\r\n".encode())
        other.send(b"GET /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n")
        assert other.response().status == 504
        held.release.set()
        assert patient.response().status == 200


def test_a_call_ends_with_its_clients_deadline(site: Site, gateway: Gateway) -> None:
    with h2(gateway, site) as client:
        stream = client.call(of=fields("/qdrant.Points/Search", ("grpc-timeout", "100m")))
        assert client.status(stream) == DEADLINE_EXCEEDED
    assert gateway.audited(grpc_status=DEADLINE_EXCEEDED)["reason"] in {"allowed", "deadline_exceeded"}  # who was first
