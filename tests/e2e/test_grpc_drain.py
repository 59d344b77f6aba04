"""SIGTERM with gRPC calls going on: they finish, new ones go elsewhere, and the process ends in time."""

from __future__ import annotations

import asyncio
import signal
import time

import grpc
import pytest
from hyperframe.frame import DataFrame, GoAwayFrame
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import channel
from support.grpc_upstream import GrpcCall, GrpcUpstream, never
from support.h2_raw_client import SEARCH, h2, message
from support.site import Site
from support.upstream import ScriptedUpstream

MAX_STREAM = (1 << 31) - 1
REFUSED_STREAM = 7


def test_calls_that_go_on_are_finished(site: Site, grpc_gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    let = asyncio.Event()

    async def when_let(call: GrpcCall) -> None:
        await call.receive()
        await let.wait()
        await call.send(b"after all")

    grpc_upstream.answer = when_let
    with h2(grpc_gateway, site) as client, h2(grpc_gateway, site) as idle, h2(grpc_gateway, site) as uploading:
        stream = client.call()
        upload = uploading.open()
        uploading.send(DataFrame(upload, message(b"0123456789")[:7]))
        idle.lives()
        grpc_upstream.wait(2)
        grpc_gateway.process.send_signal(signal.SIGTERM)

        assert client.until(GoAwayFrame).last_stream_id == MAX_STREAM  # no more calls are wanted
        client.lives()
        refused = client.call()  # it was on its way: the client is told that it was not taken, and may make it again
        for ping in [one for one in client.received if one.type == 6 and one.opaque_data == b"tlsproxy"]:
            client.send(type(ping)(0, ping.opaque_data, flags=["ACK"]))
        assert client.until(GoAwayFrame).last_stream_id in {stream, refused}
        late = client.call()
        assert client.reset(late) == REFUSED_STREAM
        assert idle.ended()

        uploading.send(DataFrame(upload, message(b"0123456789")[7:], flags=["END_STREAM"]))
        grpc_upstream.loop.call_soon_threadsafe(let.set)
        assert client.status(stream) == 0
        assert client.status(refused) == 0
        assert uploading.status(upload) == 0
        assert client.ended()
        assert uploading.ended()
        assert grpc_gateway.process.wait(DEADLINE) == 0


def test_a_client_library_goes_on_elsewhere(
    site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    """With a second gateway on the same port, as after a restart, no call fails."""
    first = Gateway(site.write_config(upstream.url, grpc=grpc_upstream.url))
    with first, channel(first, site) as their:
        method = their.unary_unary(SEARCH)
        for _ in range(20):
            assert method(b"", timeout=10) == b""
        port = first.grpc_port
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(DEADLINE) == 0
        with Gateway(site.write_config(upstream.url, grpc=grpc_upstream.url, service={"grpc_port": port})):
            assert method(b"", timeout=10, wait_for_ready=True) == b""


def test_calls_that_do_not_end_are_cut_in_time(site: Site, upstream: ScriptedUpstream) -> None:
    with GrpcUpstream(never) as grpc_upstream:
        config = site.write_config(upstream.url, grpc=grpc_upstream.url, limits={"drain_timeout": 0.5})
        with Gateway(config) as gateway, channel(gateway, site) as their:
            hanging = their.unary_unary(SEARCH).future(b"", timeout=30)
            grpc_upstream.wait()
            began = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(DEADLINE) == 0
            assert time.monotonic() - began < 5
            with pytest.raises(grpc.RpcError) as caught:
                hanging.result()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
