"""A call's fields in one pass are what two passes, each for its own kind of field, make of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.wire.field_block import Fields, literals
from tlsproxy.wire.grpc import deadline_apart, parse_call
from tlsproxy.wire.grpc_metadata import split_fields
from tlsproxy.wire.http2 import StreamError
from tlsproxy.wire.tracing import MAX_LINES, NO_TRACING, Tracing, tracing_from_fields

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PSEUDO = [(b":scheme", b"https"), (b":method", b"POST"), (b":path", b"/a/b")]
FIELDS = [
    *PSEUDO,
    (b":authority", b"a"),
    (b"te", b"trailers"),
    (b"x-a", b""),
    (b"grpc-timeout", b"5S"),
    (b"grpc-timeout", b"12345678n"),
    (b"grpc-timeout", b"123456789n"),
    (b"grpc-timeout", b""),
    (b"x-request-id", b"a"),
    (b"x-request-id", b"\n"),
    (b"x-tracing-id", b" b"),
    (b"traceparent", TRACE),
    (b"tracestate", b"a=1"),
    (b"tracestate", b""),
]


def parts(rest: Fields, tracing: Tracing, deadline: bytes) -> tuple[Fields, tuple[str, str, Fields], bytes]:
    return rest, (tracing.tracing_id, tracing.trace_id, tracing.fields), deadline


def once(fields: Fields) -> tuple[Fields, tuple[str, str, Fields], bytes]:
    return parts(*split_fields(fields))


def twice(fields: Fields) -> tuple[Fields, tuple[str, str, Fields], bytes]:
    rest, tracing = tracing_from_fields(fields)
    rest, deadline = deadline_apart(rest)
    return parts(rest, tracing, deadline)


@pytest.mark.fuzz
@given(st.lists(st.sampled_from(FIELDS), max_size=9), st.booleans())
def test_one_pass_is_two(more: list[tuple[bytes, bytes]], whole: bool) -> None:  # noqa: FBT001 - what is drawn
    """Where they differ it is no call that either could be made of."""
    fields = (*PSEUDO, *more) if whole else tuple(more)
    if once(fields) != twice(fields):
        for rest, *_ in (once(fields), twice(fields)):
            with pytest.raises(StreamError):
                parse_call(rest)


def test_what_real_clients_send_is_parted() -> None:
    fields = (*PSEUDO, (b":authority", b"a"), (b"grpc-timeout", b"1S"), (b"x-request-id", b"i"), (b"te", b"trailers"))
    rest = (*PSEUDO, (b":authority", b"a"), (b"te", b"trailers"))
    assert once(fields) == (rest, ("i", "", ()), literals(((b"grpc-timeout", b"1S"),)))


@pytest.mark.parametrize("lines", [MAX_LINES, MAX_LINES + 1])
def test_as_many_lines(lines: int) -> None:
    fields = (*PSEUDO, (b"grpc-timeout", b"1S"), *[(b"tracestate", b"")] * lines)
    assert once(fields) == twice(fields)


def test_a_call_that_has_none_is_itself() -> None:
    fields = tuple(PSEUDO)
    assert split_fields(fields) == (fields, NO_TRACING, b"")
    assert split_fields(fields)[0] is fields
