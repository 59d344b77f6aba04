"""A hundred calls on each of many connections at a time (10,000 in the long form): each has its end, and nothing stays.

They end as calls do: answered, cancelled by their client, past their deadline. Afterwards the gateway holds no
connection of theirs, on either side, and no more memory after the last round than after the first.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from hyperframe.frame import RstStreamFrame
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcCall, GrpcUpstream
from support.h2_raw_client import SEARCH, H2Client, fields, h2
from support.raw_connection import memory, sockets
from support.site import Site

CONNECTIONS = 100 if os.environ.get("TLSPROXY_SOAK") else 4
STREAMS = 100
CANCEL, CANCELLED, DEADLINE_EXCEEDED = 8, 1, 4


def comes_back_to(expected: int, now: Callable[[], int]) -> bool:
    """The gateway hears of a closed connection a moment after its client closed it."""
    end = time.monotonic() + DEADLINE
    while now() > expected and time.monotonic() < end:
        time.sleep(0.05)
    return now() <= expected


class Round:
    """All calls of all connections, begun, and held by the upstream."""

    def __init__(
        self, stack: ExitStack, gateway: Gateway, site: Site, upstream: GrpcUpstream, *more: tuple[str, str]
    ) -> None:
        self.clients: list[H2Client] = []
        self.streams: list[list[int]] = []
        for _ in range(CONNECTIONS):
            client = stack.enter_context(h2(gateway, site))
            self.clients.append(client)
            self.streams.append([client.call(of=fields(SEARCH, *more)) for _ in range(STREAMS)])
            upstream.wait(len(self.clients) * STREAMS)  # gRPC's library turns calls away that wait to be begun

    def each(self, does: Callable[[H2Client, list[int]], None]) -> None:
        for client, streams in zip(self.clients, self.streams, strict=True):
            does(client, streams)


def answered(client: H2Client, streams: list[int]) -> None:
    assert client.statuses(streams) == dict.fromkeys(streams, 0)


def cancelled(client: H2Client, streams: list[int]) -> None:
    client.send(*(RstStreamFrame(stream, CANCEL) for stream in streams))


def overdue(client: H2Client, streams: list[int]) -> None:
    """The upstream ends them, with trailers or with a reset."""


@pytest.mark.soak
@pytest.mark.timeout(600 if CONNECTIONS > 10 else 60)
def test_answered_cancelled_and_past_their_deadline(
    site: Site, grpc_gateway: Gateway, grpc_upstream: GrpcUpstream
) -> None:
    gateway, upstream, gate = grpc_gateway, grpc_upstream, asyncio.Event()

    async def held(call: GrpcCall) -> None:
        while await call.receive() is not None:
            pass
        await gate.wait()
        await call.send(b"answer")

    upstream.answer = held
    total = CONNECTIONS * STREAMS
    assert gateway.ask_admin("/readyz")[0] == 200  # by connections that are kept
    before, used = sockets(gateway), 0
    for does, more in (
        (answered, ()),
        (cancelled, ()),
        (overdue, (("grpc-timeout", f"{max(2, CONNECTIONS // 3)}S"),)),
        (cancelled, ()),
    ):
        with ExitStack() as stack:
            running = Round(stack, gateway, site, upstream, *more)
            if does is answered:
                upstream.loop.call_soon_threadsafe(gate.set)
            running.each(does)
            assert all(call.ended.wait(2 * DEADLINE) for call in upstream.calls)
            assert {call.cancelled for call in upstream.calls} == {does is not answered}
            assert len(upstream.calls) == total
            running.clients[0].lives()
        gate.clear()
        upstream.calls.clear()
        assert comes_back_to(before, lambda: sockets(gateway))
        used = used or memory(gateway, "VmRSS")
    assert memory(gateway, "VmRSS") < used + (16 << 20)
    assert re.search(r"^tlsproxy_connections 0(\.0)?$", gateway.ask_admin("/metrics")[1], re.MULTILINE)
    lines = [line for line in gateway.stop() if line.get("api") == SEARCH]
    assert len(lines) == 4 * total
    assert {line.get("grpc_status") for line in lines} <= {0, CANCELLED, DEADLINE_EXCEEDED, None}
