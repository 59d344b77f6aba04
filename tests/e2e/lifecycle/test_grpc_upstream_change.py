"""A gRPC connection's next call goes where the upstream is now; the calls that run end where they began."""

from __future__ import annotations

import asyncio
import json
import queue
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, PriorityFrame, SettingsFrame
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import Answered, call, channel
from support.grpc_upstream import GrpcCall, GrpcUpstream, echoing, never, replying
from support.h2_raw_client import fields, h2, message
from support.polling import until
from support.site import Site
from support.sockets import deaf
from support.upstream import ScriptedUpstream

LIST = "/qdrant.Collections/List"
STREAM = "/qdrant.Points/Search"
OK = Answered(grpc.StatusCode.OK)
LARGE = 1 << 20


def former(gateway: Gateway) -> int:
    return int(json.loads(gateway.ask_admin("/status")[1])["former_upstream"]["grpc"])


async def hung(_: GrpcCall) -> None:
    """Reads nothing of what comes."""
    await asyncio.Event().wait()


class Stream:
    """A call that goes on: what is said, and what comes back."""

    def __init__(self, opened: grpc.Channel) -> None:
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call: Any = opened.stream_stream(STREAM)(iter(self._said.get, None))

    def say(self, message: bytes) -> bytes:
        self._said.put(message)
        return bytes(next(self._call))

    def end(self) -> grpc.StatusCode:
        self._said.put(None)
        code: grpc.StatusCode = self._call.code()
        return code

    def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = self._call.code()
        self._said.put(None)
        return code


@pytest.fixture
def new() -> Iterator[GrpcUpstream]:
    with GrpcUpstream(echoing) as running:
        yield running


def edit(site: Site, config: Path, gateway: Gateway, url: str, **sections: Any) -> None:
    site.edit_config(config, upstream={"grpc": url, "api_key": "new"}, **sections)
    gateway.reloaded()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_next_call_and_those_that_run(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, new: GrpcUpstream, workers: int
) -> None:
    """Over the same client connections, with and without calls that run, large messages both ways."""
    grpc_upstream.answer = echoing
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url, workers=workers)
    with Gateway(config) as gateway, ExitStack() as stack:
        busy, idle = (stack.enter_context(channel(gateway, own_site)) for _ in range(2))
        stream = Stream(busy)
        large = b"x" * LARGE
        assert stream.say(large) == large
        assert call(idle, STREAM, large).message == large
        edit(own_site, config, gateway, new.url)
        assert former(gateway) == 1
        for _ in range(2):
            assert call(busy, STREAM, large).message == call(idle, STREAM, large).message == large
            assert stream.say(large) == large
        assert {one.metadata["api-key"] for one in new.calls} == {"new"}
        assert (len(grpc_upstream.calls), len(new.calls)) == (2, 4)
        assert stream.end() is grpc.StatusCode.OK
        while former(gateway):
            pass
        for _ in range(3):
            assert call(busy, STREAM, large).message == large
        assert call(busy, LIST) == OK
    assert (len(grpc_upstream.calls), len(new.calls)) == (2, 8)


def test_the_very_connection_goes_on(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, new: GrpcUpstream
) -> None:
    """No GOAWAY, no reconnect: a client that is slow to leave would call the former one."""
    new.answer = replying(b"")
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url)
    with Gateway(config) as gateway, h2(gateway, own_site) as client:
        assert client.status(client.call()) == 0
        grpc_upstream.answer = never
        running = client.call()
        grpc_upstream.wait(2)
        edit(own_site, config, gateway, new.url)
        streams = [client.call() for _ in range(3)]
        assert client.statuses(streams) == dict.fromkeys(streams, 0)
        assert len(new.calls) == 3
        client.lives()
        grpc_upstream.stop()
        assert client.status(running) == grpc.StatusCode.UNAVAILABLE.value[0]
        assert client.status(client.call()) == 0
        client.lives()


def test_a_former_upstream_that_reads_no_more(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, new: GrpcUpstream
) -> None:
    """Uploads that it leaves in the middle take no room from calls at the present one."""
    grpc_upstream.answer = hung
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url)
    with Gateway(config) as gateway, channel(gateway, own_site) as opened:
        stuck = [opened.unary_unary(STREAM).future(bytes(8 * LARGE)) for _ in range(2)]
        grpc_upstream.wait(2)
        edit(own_site, config, gateway, new.url)
        for _ in range(2):
            assert call(opened, STREAM, bytes(4 * LARGE)).message == bytes(4 * LARGE)
        assert former(gateway) == 1
        for one in stuck:
            one.cancel()


def test_an_answer_that_is_on_its_way_while_two_upstreams_come_and_the_gateway_drains(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, new: GrpcUpstream
) -> None:
    """The first upstream sends, the second has a call that waits, the third has the latest."""
    messages = [bytes(LARGE)] * 32
    grpc_upstream.answer = replying(*messages)
    with GrpcUpstream(echoing) as third, ExitStack() as stack:
        config = own_site.write_config(upstream.url, grpc=grpc_upstream.url)
        gateway = stack.enter_context(Gateway(config))
        opened = stack.enter_context(channel(gateway, own_site))
        answers = opened.unary_stream(STREAM)(b"")
        got = [next(answers)]
        edit(own_site, config, gateway, new.url)
        second = Stream(opened)
        assert second.say(b"x") == b"x"
        edit(own_site, config, gateway, third.url)
        latest = Stream(opened)
        assert latest.say(bytes(LARGE)) == bytes(LARGE)
        assert former(gateway) == 2
        gateway.process.send_signal(signal.SIGTERM)
        for stream in (second, latest):
            assert stream.say(b"y" * LARGE) == b"y" * LARGE
            assert stream.end() is grpc.StatusCode.OK
        assert got + list(answers) == messages
        assert gateway.process.wait(DEADLINE) == 0
        assert (len(grpc_upstream.calls), len(new.calls), len(third.calls)) == (1, 1, 1)


def test_whatever_the_client_says_meanwhile(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, new: GrpcUpstream
) -> None:
    """SETTINGS, priorities, pings, a GOAWAY, and calls that are refused."""
    grpc_upstream.answer = echoing
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url)
    with Gateway(config) as gateway, h2(gateway, own_site, INITIAL_WINDOW_SIZE=100) as client:
        client.grant(0, 1 << 20)
        running = client.open()
        client.send(DataFrame(running, message(bytes(LARGE // 128))))
        client.until(DataFrame)
        edit(own_site, config, gateway, new.url)
        new.answer = replying(bytes(LARGE // 128))
        for size in (0, 1 << 20, 5, 1 << 16):
            client.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: size}))
            client.send(PriorityFrame(running, depends_on=0, stream_weight=3), PriorityFrame(99))
        client.send(GoAwayFrame(0, error_code=0))
        streams = [client.call(), client.call(of=fields("/qdrant.Points/Nothing")), client.call()]
        client.send(DataFrame(running, b"", flags=["END_STREAM"]))
        assert client.statuses([*streams, running]) == dict(zip([*streams, running], (0, 12, 0, 0), strict=True))
        acknowledged = [one for one in client.received if isinstance(one, SettingsFrame) and "ACK" in one.flags]
        assert len(acknowledged) == 5
        client.lives()


def test_calls_that_never_end_are_drained(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, new: GrpcUpstream
) -> None:
    grpc_upstream.answer = echoing
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url)
    with Gateway(config) as gateway, channel(gateway, own_site) as opened:
        stream = Stream(opened)
        assert stream.say(b"x") == b"x"
        edit(own_site, config, gateway, new.url)
        assert stream.say(b"y") == b"y"
        edit(own_site, config, gateway, new.url, limits={"drain_timeout": 0.1})
        assert stream.code() is grpc.StatusCode.UNAVAILABLE
        assert gateway.audited(grpc_status=14)["reason"] == "upstream_changed"
        assert call(opened, STREAM, b"z").message == b"z"
        assert former(gateway) == 0


def test_calls_that_never_end_are_kept(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, new: GrpcUpstream
) -> None:
    grpc_upstream.answer = echoing
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url, limits={"drain_timeout": 0.1})
    own_site.edit_config(config, upstream={"on_change": "keep"})
    with Gateway(config) as gateway, channel(gateway, own_site) as opened:
        stream = Stream(opened)
        assert stream.say(b"x") == b"x"
        edit(own_site, config, gateway, new.url)
        for _ in range(3):
            assert former(gateway) == 1
            assert call(opened, STREAM, b"z").message == b"z"
            assert stream.say(b"y") == b"y"
        assert stream.end() is grpc.StatusCode.OK


def test_a_call_whose_upstream_is_being_dialled_goes_to_the_new_one(
    own_site: Site, upstream: ScriptedUpstream, new: GrpcUpstream
) -> None:
    with ExitStack() as stack:
        config = own_site.write_config(upstream.url, grpc=f"http://{stack.enter_context(deaf())}")
        own_site.edit_config(config, upstream={"connect_timeout": 600, "api_key": "old"})
        gateway = stack.enter_context(Gateway(config))
        opened = stack.enter_context(channel(gateway, own_site))
        waiting = opened.unary_unary(STREAM).future(b"x" * 10_000, timeout=DEADLINE)
        until(lambda: json.loads(gateway.ask_admin("/status")[1])["upstream"]["busy"] == 1)
        edit(own_site, config, gateway, new.url)
        assert waiting.result() == b"x" * 10_000
        assert [one.metadata["api-key"] for one in new.calls] == ["new"]
