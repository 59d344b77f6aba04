"""A call's head is understood or refused, and is stated anew without anything that says who its sender is."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import pieces

from tlsproxy.errors import BadRequest
from tlsproxy.wire.grpc import Message, NotGrpc, message, parse_call, restate_call, trailers, trailers_only
from tlsproxy.wire.http1 import is_identity
from tlsproxy.wire.http2 import StreamError

GOOD = (
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":path", b"/qdrant.Points/Search"),
    (b":authority", b"localhost:6334"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
)
NAMES = (
    "api-key api_key api.key authorization forwarded x-forwarded-for x_forwarded_for x-forwarded x-real-ip "
    "x-client-cert x-client-cert-chain x-ssl-client-cn x-tlsproxy-role x.tlsproxy_role proxy-authorization"
)
IDENTITY = NAMES.split()


def replaced(name: bytes, value: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((each, value if each == name else old) for each, old in GOOD)


def test_a_good_one() -> None:
    head = parse_call((*GOOD, (b"x-request-id", b"7")))
    assert (head.path, head.authority, head.value(b"x-request-id")) == ("/qdrant.Points/Search", b"localhost:6334", "7")
    assert head.without(b"te").value(b"te") is None
    assert parse_call(replaced(b"content-type", b"application/grpc+proto")).path == head.path
    host = tuple((b"host", value) if name == b":authority" else (name, value) for name, value in GOOD)
    assert parse_call((*host[:3], *host[4:], host[3])).authority == b"localhost:6334"


@given(st.binary(max_size=12))
def test_no_value_with_what_ends_a_line(value: bytes) -> None:
    """NUL, CR and LF (RFC 9113 §8.2.1), and other control characters, white space around."""
    bad = any((byte < 0x20 and byte != 9) or byte == 0x7F for byte in value) or value != value.strip(b" \t")
    if bad:
        with pytest.raises(StreamError):
            parse_call((*GOOD, (b"x", value)))
    else:
        assert parse_call((*GOOD, (b"x", value))).fields[-1] == (b"x", value)


@pytest.mark.parametrize(
    "name", [b"api-key", b"authorization", b"content-type", b"te", b"grpc-timeout", b"grpc-encoding"]
)
def test_what_may_come_once(name: bytes) -> None:
    value = {b"te": b"trailers", b"content-type": b"application/grpc", b"grpc-timeout": b"1S"}.get(name, b"a")
    fields = tuple(field for field in GOOD if field[0] != name)
    parse_call((*fields, (name, value)))
    with pytest.raises(BadRequest):
        parse_call((*fields, (name, value), (name, value)))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (replaced(b":method", b"GET"), NotGrpc),
        (replaced(b"content-type", b"application/json"), NotGrpc),
        (replaced(b"content-type", b"application/grpcx"), NotGrpc),
        (GOOD[:-1], NotGrpc),
        ((*GOOD, (b"grpc-timeout", b"1x")), BadRequest),
        ((*GOOD, (b"grpc-timeout", b"123456789S")), BadRequest),
        ((*GOOD, *[(b"x", b"y")] * 100), BadRequest),
    ],
)
def test_what_is_no_call(fields: tuple[tuple[bytes, bytes], ...], error: type[BadRequest]) -> None:
    with pytest.raises(error):
        parse_call(fields)


@pytest.mark.parametrize("name", IDENTITY)
def test_nothing_that_says_who_somebody_is_goes_on(name: str) -> None:
    head = parse_call((*GOOD, (name.encode(), b"me"), (b"x-kept", b"1")))
    sent = restate_call(head, upstream_host=b"qdrant:6334", upstream_key=None)
    assert (b"x-kept", b"1") in sent
    assert b"me" not in {value for _, value in sent}


@given(st.lists(st.tuples(st.from_regex(rb"[a-z0-9._\-]{1,20}", fullmatch=True), st.just(b"v")), max_size=6))
def test_a_head_restated(more: list[tuple[bytes, bytes]]) -> None:
    try:
        head = parse_call((*GOOD, *more))
    except (StreamError, BadRequest):
        return
    sent = restate_call(head, upstream_host=b"qdrant:6334", upstream_key=b"theirs")
    assert sent[:4] == ((b":method", b"POST"), (b":scheme", b"http"), GOOD[2], (b":authority", b"qdrant:6334"))
    assert [value for name, value in sent if name == b"api-key"] == [b"theirs"]
    assert sent[-1] == (b"x-forwarded-host", b"localhost:6334")
    assert not [name for name, value in sent if is_identity(name) and value == b"v"]
    assert len([name for name, _ in sent if name == b"content-type"]) == 1


@given(st.text(max_size=50))
def test_a_status_message_is_percent_encoded(text: str) -> None:
    (_, status), (_, encoded) = trailers(7, text)
    assert status == b"7"
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert unquote_to_bytes(encoded).strip(b" ") == text.encode("utf-8", "replace").strip(b" ")
    assert trailers_only(7, text)[0] == (b":status", b"200")


@given(st.binary(max_size=100), st.booleans(), st.data())
def test_a_message_in_pieces(content: bytes, compressed: bool, data: st.DataObject) -> None:  # noqa: FBT001 - as above
    framed = bytes((compressed,)) + message(content)[1:]
    reader, got = Message(), b""
    for piece in data.draw(pieces(framed)):
        assert not reader.whole or not piece
        got += reader.feed(piece)
    assert (got, reader.whole, reader.compressed, reader.length) == (content, True, compressed, len(content))
    reader.end()
    with pytest.raises(BadRequest):
        reader.feed(b"more")


def test_a_message_that_lies() -> None:
    with pytest.raises(BadRequest):
        Message().feed(b"\x02\x00\x00\x00\x00")
    short = Message()
    short.feed(message(b"abc")[:-1])
    with pytest.raises(BadRequest):
        short.end()
    with pytest.raises(BadRequest):
        Message().feed(message(b"abc") + message(b"def"))
