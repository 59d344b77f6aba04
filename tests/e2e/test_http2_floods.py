"""What costs a client nothing and us something is cut within its budget, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from support.gateway import Gateway
from support.grpc_channels import channel
from support.grpc_upstream import GrpcCall, GrpcUpstream, never, replying
from support.h2_raw_client import SEARCH, H2Client, fields, h2, raw
from support.raw_connection import memory
from support.site import Site
from support.upstream import ScriptedUpstream

CALM = 11
UNKNOWN = fields("/nobody.Knows/This")
MANY = 6_000
"""More than any budget holds, or gets back while they are sent."""


@pytest.fixture(scope="module")
def flooded(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[tuple[Gateway, GrpcUpstream]]:
    with (
        GrpcUpstream() as upstream,
        Gateway(
            site.write_config(shared_upstream.url, grpc=upstream.url, limits={"streams_per_second": 500})
        ) as gateway,
    ):
        yield gateway, upstream


@pytest.fixture(scope="module")
def other(site: Site, flooded: tuple[Gateway, GrpcUpstream]) -> Iterator[Callable[[], None]]:
    """Somebody else's call, which succeeds."""
    with channel(flooded[0], site, "search") as their:
        method = their.unary_unary(SEARCH)

        def call() -> None:
            assert method(b"", timeout=20) == b""

        yield call


def _resets(client: H2Client) -> None:
    """CVE-2023-44487: calls that are taken back at once."""
    client.send(*(part for _ in range(1_200) for part in (client.headers(), RstStreamFrame(client._stream, 8))))


def _made_resets(client: H2Client) -> None:
    """CVE-2025-8671: calls that we are made to reset."""
    client.send(*(part for _ in range(1_200) for part in (client.headers(), raw(8, 0, client._stream, bytes(4)))))


def _malformed(client: H2Client) -> None:
    client.send(*(client.headers([*fields(), ("connection", "close")], None, "END_STREAM") for _ in range(1_200)))


def _streams(client: H2Client) -> None:
    """More calls than a second may have, all of them refused in words."""
    client.send(*(client.headers(UNKNOWN, None, "END_STREAM") for _ in range(3_000)))


def _late(client: H2Client) -> None:
    """DATA for a call that was refused."""
    stream = client.open(UNKNOWN)
    client.send(*[DataFrame(stream, b"x")] * MANY)


def _empty_data(client: H2Client) -> None:
    stream = client.open()
    client.send(*[DataFrame(stream, b"")] * MANY)


def _settings(client: H2Client) -> None:
    client.send(*[SettingsFrame(0)] * MANY)


def _large_settings(client: H2Client) -> None:
    client.send(raw(4, 0, 0, b"\x00\x03\x00\x00\x00\x05" * 100))


def _pings(client: H2Client) -> None:
    client.send(*[raw(6, 0, 0, bytes(8))] * MANY)


def _acknowledgements(client: H2Client) -> None:
    client.send(*[raw(4, 1, 0)] * MANY)


def _priorities(client: H2Client) -> None:
    client.send(*[raw(2, 0, 1, bytes(5))] * MANY)


def _unknown(client: H2Client) -> None:
    client.send(*[raw(0xBE, 0, 0, b"grease")] * MANY)


def _updates(client: H2Client) -> None:
    stream = client.open()
    client.send(*[raw(8, 0, stream, b"\x00\x00\x00\x01")] * MANY * 4)


def _fragments(client: H2Client) -> None:
    """CVE-2024-27316 and kin: a field block that has no end, in pieces of one byte."""
    block = client.block()
    client.send(HeadersFrame(1, block[:1]), *(ContinuationFrame(1, b"\x00") for _ in range(MANY)))


def _empty_fragments(client: H2Client) -> None:
    client.send(HeadersFrame(1, b""), *[ContinuationFrame(1, b"")] * MANY)


def _bomb(client: H2Client) -> None:
    """A field of 4 KB in the table, named a thousand times by one byte each."""
    client.send(client.headers([*fields(), *[("x-bomb", "~" * 3_900)] * 1000], None, "END_STREAM"))


FLOODS = {
    "flood_resets": _resets,
    "flood_refused": _made_resets,
    "flood_streams": _streams,
    "flood_late_frames": _late,
    "flood_empty_frames": _empty_data,
    "flood_settings": _settings,
    "flood_control": _pings,
    "flood_window_updates": _updates,
    "flood_fields": _fragments,
}
MORE = [
    ("flood_refused", _malformed),
    ("flood_settings", _large_settings),
    ("flood_control", _acknowledgements),
    ("flood_control", _priorities),
    ("flood_control", _unknown),
    ("flood_fields", _empty_fragments),
    ("flood_fields", _bomb),
]


@pytest.mark.parametrize(("reason", "flood"), [*FLOODS.items(), *MORE], ids=lambda each: getattr(each, "__name__", ""))
def test_a_flood_is_cut(
    site: Site,
    flooded: tuple[Gateway, GrpcUpstream],
    other: Callable[[], None],
    reason: str,
    flood: Callable[[H2Client], None],
) -> None:
    gateway, _ = flooded
    with h2(gateway, site) as client:
        flood(client)
        other()
        code = client.goaway()
    assert code == CALM
    record = gateway.audited(event="connection", reason=reason)
    assert record["result"] == "denied"
    other()
    assert f'tlsproxy_connections_total{{outcome="{reason}"}}' in gateway.ask_admin("/metrics")[1]


def test_a_client_that_never_reads(
    site: Site, flooded: tuple[Gateway, GrpcUpstream], other: Callable[[], None]
) -> None:
    """Its answers wait with the upstream, not with us: our memory stays where it was."""
    gateway, upstream = flooded
    gate = asyncio.Event()

    async def held(call: GrpcCall) -> None:
        """Who takes no answers may soon ask nothing more: the first comes when all have been asked for."""
        while await call.receive() is not None:
            pass
        await gate.wait()
        for _ in range(4):
            await call.send(bytes(1 << 20))

    upstream.answer = held
    upstream.calls.clear()
    before = memory(gateway, "VmRSS")
    try:
        with h2(gateway, site, INITIAL_WINDOW_SIZE=(1 << 31) - 1) as client:
            client.grant(0, (1 << 31) - 1 - 65_535)
            for _ in range(64):
                client.call()
            upstream.wait(64)
            upstream.answer = replying(b"")
            upstream.loop.call_soon_threadsafe(gate.set)
            for _ in range(20):
                other()
            assert memory(gateway, "VmRSS") < before + (32 << 20)
    finally:
        upstream.answer = replying(b"")
        upstream.loop.call_soon_threadsafe(gate.set)


def test_a_budget_is_not_met_by_a_busy_client(site: Site, flooded: tuple[Gateway, GrpcUpstream]) -> None:
    """Calls that are cancelled now and then, pings, windows of a byte: what real clients do."""
    gateway, upstream = flooded
    upstream.answer = replying(bytes(100_000))
    try:
        with h2(gateway, site) as client:
            for turn in range(20):
                stream = client.call()
                client.send(PingFrame(0, b"estimate"))
                if turn % 4 == 0:
                    client.send(RstStreamFrame(stream, 8))
                    continue
                for frame in client.frames():
                    if isinstance(frame, DataFrame) and frame.data:
                        client.grant(0, len(frame.data))
                        client.grant(frame.stream_id, len(frame.data))
                    if isinstance(frame, HeadersFrame) and frame.stream_id == stream and "END_STREAM" in frame.flags:
                        break
            client.lives()
    finally:
        upstream.answer = replying(b"")


def test_calls_that_hang_are_bounded(site: Site, flooded: tuple[Gateway, GrpcUpstream]) -> None:
    gateway, upstream = flooded
    upstream.answer = never
    try:
        with h2(gateway, site) as client:
            streams = [client.call() for _ in range(200)]
            assert client.reset(streams[128]) == 7
    finally:
        upstream.answer = replying(b"")
