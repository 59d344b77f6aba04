"""States of a gRPC connection and of a call's stream: every way leads to the end, and none leads back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from support.h2_harness import Ends, in_memory, prefixed
from support.relay_generation import SEARCH, asked, relay_generation
from support.site import Site

from tlsproxy.proxy import grpc
from tlsproxy.proxy.grpc.states import (
    CONNECTION_MOVES,
    END,
    ENDED,
    STREAM_CLOSED,
    STREAM_MOVES,
    STREAM_OPEN,
    ConnectionEvent,
    ConnectionState,
)
from tlsproxy.wire import http2
from tlsproxy.wire.http2 import Code, Frames, Kind

pytestmark = pytest.mark.plain  # compiled code calls directly what the harness takes the place of


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    yield from in_memory()


@pytest.mark.parametrize("state", ConnectionState)
def test_a_connection_never_comes_back_to_a_state(state: ConnectionState) -> None:
    seen, after = set(), {state}
    while after:
        seen |= after
        after = {CONNECTION_MOVES.get((one, event)) for one in after for event in ConnectionEvent} - {None}  # type: ignore[assignment]
        assert state not in after
    assert ENDED in seen
    assert (CONNECTION_MOVES.get((state, END)) is ENDED) is (state is not ENDED)


def test_a_stream_is_closed_once_both_ends_have_ended_it_in_any_order() -> None:
    assert STREAM_OPEN.client_ends.upstream_ends is STREAM_OPEN.upstream_ends.client_ends is STREAM_CLOSED
    for state in STREAM_MOVES:
        assert (state.client_ends.client_done, state.client_ends.upstream_done) == (True, state.upstream_done)
        assert (state.upstream_ends.client_done, state.upstream_ends.upstream_done) == (state.client_done, True)


def test_the_diagram_names_every_state_and_event() -> None:
    names = [one.name for one in (*ConnectionState, *ConnectionEvent, *STREAM_MOVES)]
    assert [name for name in names if name not in str(grpc.__doc__)] == []


def test_the_last_stream_of_a_goaway_is_never_raised(site: Site) -> None:
    """RFC 9113 §6.8: also where the gateway ends after its upstream wanted no more calls."""
    ends = Ends(relay_generation(site))
    ends.connect()
    ends.flush()
    stream = ends.client.open(asked(SEARCH, "plain"))
    ends.client.say(stream, prefixed(b"q"))
    ends.flush()
    assert ends.up is not None
    ends.up.handler.data_received(http2.goaway(stream, Code.NO_ERROR))
    ends.session.drain()
    ends.session.drained()
    frames, last = Frames(), []
    frames.begin(bytes(ends.down.written))
    while frames.advance():
        if frames.what >> 8 == Kind.GOAWAY:
            last.append(int.from_bytes(frames.data[frames.start + http2.HEADER :][:4], "big"))
    assert last
    assert all(later <= earlier for earlier, later in pairwise(last))
