"""A call whose client takes nothing holds up no other call of the same connection."""

from __future__ import annotations

from hyperframe.frame import DataFrame
from support.gateway import Gateway
from support.grpc_upstream import GrpcCall, GrpcUpstream
from support.h2_raw_client import fields, h2, message
from support.site import Site

LARGE = 50_000


async def by_method(call: GrpcCall) -> None:
    while await call.receive() is not None:
        pass
    if call.method.endswith("Scroll"):
        await call.send(bytes(LARGE))
        await call.send(bytes(LARGE))
    else:
        await call.send(b"small")


def test_answers(site: Site, grpc_gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    grpc_upstream.answer = by_method
    with h2(grpc_gateway, site, INITIAL_WINDOW_SIZE=30_000) as client:
        stalled = client.call(b"", fields("/qdrant.Points/Scroll"))
        for _ in range(20):
            assert client.status(client.call()) == 0
        came = sum(len(one.data) for one in client.received if one.stream_id == stalled and isinstance(one, DataFrame))
        assert came == 30_000
        client.grant(stalled, 1_000_000)
        client.grant(0, 1_000_000)
        assert client.status(stalled) == 0
        came = sum(len(one.data) for one in client.received if one.stream_id == stalled and isinstance(one, DataFrame))
        assert came == 2 * (LARGE + 5)


def test_requests(site: Site, grpc_gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    """Uploads that stand still in the middle of their message."""
    with h2(grpc_gateway, site) as client:
        standing = [client.open() for _ in range(20)]
        for stream in standing:
            client.send(DataFrame(stream, message(b"0123456789")[:8]))
        for _ in range(20):
            assert client.status(client.call(b"whole")) == 0
        for stream in standing:
            client.send(DataFrame(stream, message(b"0123456789")[8:], flags=["END_STREAM"]))
        ended: set[int] = set()
        while len(ended) < len(standing):
            ended |= {
                one.stream_id for one in client.received if one.stream_id in standing and "END_STREAM" in one.flags
            }
            if len(ended) < len(standing):
                next(client.frames())
    assert sum(call.messages == [b"0123456789"] for call in grpc_upstream.calls) == len(standing)
