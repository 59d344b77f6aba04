"""Each wait of a gRPC connection has its end, and says which it was."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hyperframe.frame import DataFrame, HeadersFrame
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream, never, replying
from support.h2_raw_client import PREFACE, H2Client, fields, h2, raw
from support.site import Site
from support.upstream import ScriptedUpstream

SHORT = 0.5
NO_ERROR, PROTOCOL = 0, 1
DEADLINE_EXCEEDED = 4
TIMES = ("handshake_timeout", "head_timeout", "body_timeout", "write_timeout", "idle_timeout")


@pytest.fixture(scope="module")
def grpc_upstream() -> Iterator[GrpcUpstream]:
    with GrpcUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> Iterator[Gateway]:
    limits = dict.fromkeys(TIMES, SHORT)
    upstream = {"response_timeout": 1.5}
    with Gateway(
        site.write_config(shared_upstream.url, grpc=grpc_upstream.url, limits=limits, upstream=upstream)
    ) as running:
        yield running


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE, PREFACE + raw(4, 0, 0, b"", length=6)], ids=len)
def test_a_connection_that_does_not_begin(site: Site, gateway: Gateway, sent: bytes) -> None:
    context = site.client()
    context.set_alpn_protocols(["h2"])
    with gateway.connect(context, port=gateway.grpc_port) as sock:
        began, client = time.monotonic(), H2Client(sock)
        if sent:
            client.send(sent)
        assert client.goaway() == PROTOCOL
        assert client.ended()
        assert SHORT - 0.1 < time.monotonic() - began < SHORT + 3


def test_an_idle_connection_is_told_to_end(site: Site, gateway: Gateway) -> None:
    with h2(gateway, site) as client:
        assert client.status(client.call()) == 0
        began = time.monotonic()
        assert client.goaway() == NO_ERROR
        assert client.ended()
        assert SHORT - 0.2 < time.monotonic() - began < SHORT + 3


def test_a_connection_that_is_used_now_and_then_stays(site: Site, gateway: Gateway) -> None:
    with h2(gateway, site) as client:
        end = time.monotonic() + 3 * SHORT
        while time.monotonic() < end:
            assert client.status(client.call()) == 0


def test_a_field_block_that_is_not_finished(site: Site, gateway: Gateway) -> None:
    with h2(gateway, site) as client:
        client.send(HeadersFrame(1, client.block(fields())[:5]))
        assert client.goaway() == NO_ERROR
        assert client.ended()


def test_a_message_that_is_not_finished(site: Site, gateway: Gateway) -> None:
    """The call ends; the connection, and what else goes on there, does not."""
    with h2(gateway, site) as client:
        stream = client.open()
        client.send(DataFrame(stream, b"\x00\x00\x00\x00\x09begun"))
        assert client.status(stream) == DEADLINE_EXCEEDED
        assert client.status(client.call()) == 0
    record = gateway.audited(reason="client_timeout")
    assert (record["result"], record["grpc_status"]) == ("ok", DEADLINE_EXCEEDED)


def test_an_upstream_that_does_not_answer(site: Site, gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    grpc_upstream.answer = never
    try:
        with h2(gateway, site) as client:
            stream = client.call()
            assert client.status(stream) == DEADLINE_EXCEEDED
            grpc_upstream.answer = replying(b"")
            assert client.status(client.call()) == 0
    finally:
        grpc_upstream.answer = replying(b"")
    assert gateway.audited(reason="upstream_timeout")["grpc_status"] == DEADLINE_EXCEEDED
    assert grpc_upstream.calls[-2].ended.wait(20)
    assert grpc_upstream.calls[-2].cancelled


def test_a_client_that_takes_no_answers(site: Site, gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    """Windows that are open and a socket that is not read."""
    grpc_upstream.answer = replying(*[bytes(1 << 20)] * 64)
    try:
        with h2(gateway, site, INITIAL_WINDOW_SIZE=(1 << 31) - 1) as client:
            client.grant(0, (1 << 31) - 1 - 65_535)
            client.call()
            assert gateway.audited(reason="client_stalled")["bytes_out"] > 0
    finally:
        grpc_upstream.answer = replying(b"")
