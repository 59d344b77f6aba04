"""What a client says of a request's place among others is taken out of its head, and nothing else changes by that."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.errors import RequestError
from tlsproxy.wire.grpc import parse_call
from tlsproxy.wire.http1 import parse_request, restate_request
from tlsproxy.wire.http2 import StreamError
from tlsproxy.wire.tracing import MAX_LINES, NO_TRACING, TRACING, tracing_from_fields, tracing_from_head

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def head(*fields: tuple[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"GET / HTTP/1.1\r\nhost: h\r\n{lines}\r\n".encode("latin-1")


def test_a_head_that_says_nothing_is_itself() -> None:
    plain = head(("accept", "*/*"), ("x-tracing", "1"), ("x-note", "traceparent: 1"))
    rest, tracing = tracing_from_head(plain)
    assert rest is plain
    assert tracing is NO_TRACING


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([("traceparent", "t")], "t"),
        ([("traceparent", "t"), ("x-tracing-id", "b")], "b"),
        ([("Traceparent", "t"), ("X-TRACING-ID", "b"), ("X-Request-Id", "a"), ("x-request-id", "z")], "a"),
        ([("x-tracing-id", "b"), ("x-request-id", "")], ""),
        ([("x-request-id", "\xa0\xff")], "\xa0\xff"),
    ],
)
def test_qdrant_s_tracing_id_is_the_first_that_is_there(fields: list[tuple[str, str]], said: str) -> None:
    rest, tracing = tracing_from_head(head(("accept", "*/*"), *fields))
    assert rest == head(("accept", "*/*"))
    assert tracing.tracing_id == said


@pytest.mark.parametrize(
    "parent",
    [
        PARENT,
        PARENT[:-2] + "ff",
        "cc" + PARENT[2:],
        "01" + PARENT[2:] + "-what.comes.later",
    ],
)
def test_a_well_formed_traceparent_is_passed_on_as_it_is(parent: str) -> None:
    _, tracing = tracing_from_head(head(("traceparent", parent), ("tracestate", "a=1,"), ("tracestate", "b@c=2,d= 3")))
    assert tracing.trace_id == TRACE
    assert tracing.fields == ((b"traceparent", parent.encode()), (b"tracestate", b"a=1,,b@c=2,d= 3"))


@rows(
    "parent",
    [
        "",
        "ff" + PARENT[2:],
        PARENT.upper(),
        PARENT + "-more",
        PARENT[:-1],
        PARENT.replace(TRACE, "0" * 32),
        PARENT.replace("b7ad6b7169203331", "0" * 16),
        "01" + PARENT[2:] + "more",
        PARENT.replace("-", "_"),
        PARENT + " ,",
    ],
)
def test_any_other_is_gone_and_its_state_with_it(parent: str) -> None:
    rest, tracing = tracing_from_head(head(("traceparent", parent), ("tracestate", "a=1")))
    assert rest == head()
    assert (tracing.trace_id, tracing.fields) == ("", ())
    assert tracing.tracing_id == parent


def test_two_traceparents_are_none() -> None:
    _, tracing = tracing_from_head(head(("traceparent", PARENT), ("traceparent", PARENT)))
    assert (tracing.trace_id, tracing.fields) == ("", ())


@rows(
    "state",
    [
        "",
        ",",
        "a",
        "a=",
        "A=1",
        "a=1,a=2",
        "a=1=2",
        "a=\x80",
        "a b=1",
        f"a={'x' * 257}",
        f"{'a' * 257}=1",
        ",".join(f"a{number}=1" for number in range(33)),
    ],
)
def test_a_malformed_tracestate_is_gone_alone(state: str) -> None:
    _, tracing = tracing_from_head(head(("traceparent", PARENT), ("tracestate", state)))
    assert tracing.fields == ((b"traceparent", PARENT.encode()),)


def test_more_than_there_can_be_go_no_further() -> None:
    many = head(*[("tracestate", f"a{number}=1") for number in range(MAX_LINES + 1)], ("traceparent", PARENT))
    assert tracing_from_head(many) == (many, NO_TRACING)
    assert b"trace" not in restate_request(parse_request(many), "/", upstream_host=b"u", upstream_key=None)


NAMES = st.sampled_from([*TRACING, b"X-Request-ID", b"x-harmless", b"host", b"content-length", b"x-request-id ", b" "])
VALUES = st.sampled_from([b"1", b"", b"a b", PARENT.encode(), b"\xff", b"\n", b"a\rb", b"\0", b"a\r\n b"]) | st.binary(
    max_size=4
)


def outcome(data: bytes) -> object:
    try:
        parsed = parse_request(data)
    except RequestError as error:
        return type(error)
    return [field for field in parsed.fields if field[0] not in TRACING], parsed.length


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.booleans())
def test_a_head_is_accepted_or_not_whether_it_is_taken_out_or_not(
    fields: list[tuple[bytes, bytes]],
    host: bool,  # noqa: FBT001 - drawn
) -> None:
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    whole = b"GET / HTTP/1.1\r\n" + (b"host: h\r\n" if host else b"") + lines + b"\r\n"
    whole = whole[: whole.index(b"\r\n\r\n") + 4]  # as the inbox cuts it
    rest, tracing = tracing_from_head(whole)
    assert outcome(rest) == outcome(whole)
    for name, value in tracing.fields:
        assert name in TRACING
        assert value.isascii() or name == b"x-tracing-id"
        assert not {b"\r", b"\n", b"\0"} & {bytes([byte]) for byte in value}


CALL = [(b":method", b"POST"), (b":scheme", b"https"), (b":path", b"/a.B/C"), (b":authority", b"h")]
OTHERS = st.tuples(NAMES.map(bytes.lower), VALUES)


@given(
    st.permutations([*CALL, (b"content-type", b"application/grpc")]),
    st.lists(st.tuples(st.integers(0, 5), OTHERS), max_size=4),
)
def test_a_call_is_accepted_or_not_whether_it_is_taken_out_or_not(
    fields: list[tuple[bytes, bytes]], others: list[tuple[int, tuple[bytes, bytes]]]
) -> None:
    fields = sorted(fields, key=lambda field: field[0][:1] != b":") if len(others) % 2 else fields
    for place, other in others:
        fields.insert(place, other)

    def accepted(given_: tuple[tuple[bytes, bytes], ...]) -> object:
        with contextlib.suppress(RequestError):
            try:
                parsed = parse_call(given_)
            except StreamError as error:
                return str(error)
            return [field for field in parsed.fields if field[0] not in TRACING], parsed.path
        return "refused"

    rest, tracing = tracing_from_fields(tuple(fields))
    assert accepted(rest) == accepted(tuple(fields))
    assert all(byte not in value for _, value in tracing.fields for byte in b"\r\n\0")


def test_a_call_that_says_nothing_is_itself() -> None:
    fields = tuple(CALL)
    assert tracing_from_fields(fields) == (fields, NO_TRACING)
    assert tracing_from_fields(fields)[0] is fields
    rest, tracing = tracing_from_fields(
        (*CALL, (b"x-request-id", b"a"), (b"traceparent", PARENT.encode()), (b"x-b", b"1"))
    )
    assert rest == (*CALL, (b"x-b", b"1"))
    assert (tracing.tracing_id, tracing.trace_id) == ("a", TRACE)
