"""The upstream of the tests keeps what came and says what it is told to."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from support.grpc_upstream import GrpcUpstream, echoing, failing, never, replying

WAIT = 10.0


@pytest.fixture
def channel(grpc_upstream: GrpcUpstream) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(grpc_upstream.url.removeprefix("http://")) as opened:
        yield opened


def test_it_keeps_calls_and_answers(grpc_upstream: GrpcUpstream, channel: grpc.Channel) -> None:
    grpc_upstream.answer = replying(b"ab")
    search = channel.unary_unary("/qdrant.Points/Search")
    assert search(b"xyz", metadata=[("api-key", "k"), ("x-bin", b"\0")], timeout=WAIT) == b"ab"
    (call,) = grpc_upstream.calls
    assert (call.method, call.messages, call.cancelled) == ("/qdrant.Points/Search", [b"xyz"], False)
    assert (call.metadata["api-key"], call.metadata["x-bin"]) == ("k", b"\0")
    assert 0 < (call.time_remaining or 0) < WAIT + 1, "gRPC rounds a deadline up"

    grpc_upstream.answer = echoing
    assert list(channel.stream_stream("/a/b")(iter([b"1", b"2"]), timeout=WAIT)) == [b"1", b"2"]


def test_it_fails_as_told(grpc_upstream: GrpcUpstream, channel: grpc.Channel) -> None:
    grpc_upstream.answer = failing(grpc.StatusCode.NOT_FOUND, "none", [("retry-after", "3")])
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/a/b")(b"", timeout=WAIT)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.NOT_FOUND, "none")
    assert dict(refused.value.trailing_metadata())["retry-after"] == "3"


def test_it_tells_a_call_that_was_given_up(grpc_upstream: GrpcUpstream, channel: grpc.Channel) -> None:
    grpc_upstream.answer = never
    waiting = channel.unary_unary("/a/b").future(b"x")
    (call,) = grpc_upstream.wait()
    assert not call.ended.is_set()
    waiting.cancel()
    assert call.ended.wait(WAIT)
    assert call.cancelled
