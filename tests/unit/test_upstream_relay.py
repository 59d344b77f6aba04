from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from tlsproxy.config.model import Config
from tlsproxy.errors import Overloaded, RequestError
from tlsproxy.proxy.core.balancer import Balancer
from tlsproxy.proxy.core.runtime_limits import LAST_ANSWER, RuntimeLimits
from tlsproxy.proxy.limits.fair_shares import Shares
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.upstream.connection import UpstreamConnection
from tlsproxy.proxy.upstream.pool import Pool
from tlsproxy.qdrant.timeouts import SNAPSHOT
from tlsproxy.snapshot.nodes import Node, Upstream
from tlsproxy.wire.http1_response import ResponseHead

pytestmark = pytest.mark.plain  # stand-ins for compiled classes

RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Exchange:
    """``stalls``: its client takes no more as soon as there is a body. ``window``: seconds that its upstream has."""

    account = ("identity", "somebody")
    waits_for_client = False

    def __init__(self, *, stalls: bool = False, sent: bool = True, asked: float = 0.0) -> None:
        self.stalls, self.sent, self.asked = stalls, sent, asked
        self.window = 0.0
        self.upstream: UpstreamConnection | None = None
        self.body = b""
        self.ended: asyncio.Future[RequestError | None] = asyncio.get_running_loop().create_future()

    def upstream_ready(self, upstream: UpstreamConnection) -> None:
        self.upstream = upstream
        upstream.begin(self, b"GET / HTTP/1.1\r\n\r\n", to_head=False, whole=True, asked=self.asked)
        self.window, _ = upstream.stream._lowest()

    def give_way(self, error: RequestError) -> None:
        raise AssertionError(error)

    def request_sent(self) -> bool:
        return self.sent

    def response_head(self, head: ResponseHead) -> None:
        assert head.status == 200

    def response_body(self, data: bytes) -> None:
        assert self.upstream is not None
        self.body += data
        if self.stalls:
            self.upstream.pause()

    def response_done(self) -> None:
        self.ended.set_result(None)

    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None:
        self.ended.set_result(error)
        self.how = (stale, answered)


def gateway(server: socket.socket, **settings: float) -> Any:
    upstream = {"response_timeout": 5.0, "connect_timeout": 5.0, "idle_timeout": 5.0, "max_connections": 1} | settings
    loop = asyncio.get_running_loop()
    rest = Upstream("http://upstream", b"upstream", ((socket.AF_INET, server.getsockname()),))
    node = Node("upstream", rest, None, drained=False, max_connections=None)
    balancer = Balancer()
    balancer.adopt((node,), 0.0, affinity=False)
    return SimpleNamespace(
        loop=loop,
        balancer=balancer,
        deadlines=Deadlines(loop),
        places=Shares(upstream["max_connections"], 1, Overloaded),
        metrics=SimpleNamespace(upstream_connect=lambda _outcome: None, negotiated=lambda _side, _agreed: None),
        bounds=RuntimeLimits(Config.model_validate({"tls": {"cert": "/c", "key": "/k"}, "upstream": upstream})),
    )


async def run(pool: Pool, exchange: Exchange) -> Exchange:
    if (upstream := pool.acquire(exchange)) is not None:
        exchange.upstream_ready(upstream)
    await asyncio.wait_for(exchange.ended, 5)
    return exchange


async def serve(server: socket.socket, connections: list[asyncio.StreamWriter]) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while await reader.read(1000):
            writer.write(RESPONSE)
        writer.close()

    return await asyncio.start_server(answer, sock=server)


def relayed(*exchanges: dict[str, Any]) -> tuple[list[Exchange], int]:
    """The exchanges, one after the other through one pool; how many connections it took."""

    async def main() -> tuple[list[Exchange], int]:
        sock = socket.create_server(("127.0.0.1", 0))
        connections: list[asyncio.StreamWriter] = []
        async with await serve(sock, connections) as server:
            shared = gateway(sock)
            pool = Pool(shared)
            done = [await run(pool, Exchange(**each)) for each in exchanges]
            pool.close()
            shared.deadlines.close()
            for each in connections:
                await each.wait_closed()
            server.close()
        return done, len(connections)

    return asyncio.run(main())


def test_a_connection_carries_one_response_after_the_other() -> None:
    done, connections = relayed({}, {}, {})
    assert [each.body for each in done] == [b"hello"] * 3
    assert connections == 1


def test_a_response_whose_end_found_its_client_stalled_leaves_a_connection_that_is_read() -> None:
    done, connections = relayed({"stalls": True}, {})
    assert [each.body for each in done] == [b"hello"] * 2
    assert connections == 1


def test_a_response_before_the_request_was_whole_leaves_none() -> None:
    done, connections = relayed({"sent": False}, {})
    assert [each.body for each in done] == [b"hello"] * 2
    assert connections == 2


def test_the_time_of_a_request_ends_with_it() -> None:
    done, connections = relayed({"asked": SNAPSHOT}, {}, {"asked": 100.0})
    assert [each.window for each in done] == [3600.0, 5.0, 100.0 + LAST_ANSWER]
    assert connections == 1
