"""The upstream's head: where its body ends is beyond doubt, or the response never reaches a client."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.wire.http1 import CHUNKED
from tlsproxy.wire.http1_response import UNTIL_CLOSE, parse_response, parse_unmemoized, parse_unusual


def parse(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK", to_head: bool = False):  # noqa: ANN201 - a helper
    return parse_response(status + b"\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n", to_head=to_head)


@rows(
    ("lines", "status", "to_head", "length"),
    [
        ((b"content-length: 12",), b"HTTP/1.1 200 OK", False, 12),
        ((b"content-length: 0",), b"HTTP/1.1 200 OK", False, 0),
        ((b"Transfer-Encoding: Chunked",), b"HTTP/1.1 200 OK", False, CHUNKED),
        ((), b"HTTP/1.1 200 OK", False, UNTIL_CLOSE),
        ((), b"HTTP/1.1 204 No Content", False, 0),
        ((b"content-length: 12",), b"HTTP/1.1 304 Not Modified", False, 0),
        ((b"content-length: 12",), b"HTTP/1.1 200 OK", True, 0),
        ((b"transfer-encoding: chunked",), b"HTTP/1.1 200 OK", True, 0),
        ((), b"HTTP/1.1 100 Continue", False, 0),
        ((), b"HTTP/1.1 200", False, UNTIL_CLOSE),
    ],
)
def test_the_length_of_the_body(lines: tuple[bytes, ...], status: bytes, *, to_head: bool, length: int) -> None:
    assert parse(*lines, status=status, to_head=to_head).length == length


@rows(
    "lines",
    [
        (b"content-length: 1", b"content-length: 1"),
        (b"content-length: 1", b"transfer-encoding: chunked"),
        (b"content-length: +1",),
        (b"content-length: 1, 1",),
        (b"transfer-encoding: gzip, chunked",),
        (b"transfer-encoding: chunked", b"transfer-encoding: chunked"),
        (b"x: a\nb: c",),
        (b"x: a\x00",),
        (b"x : a",),
        (b" x: a",),
        (b"x: a\r\n folded",),
    ],
)
def test_a_head_that_can_be_framed_in_two_ways_is_refused(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match=r"head|content-length|coding|transfer"):
        parse(*lines)


@pytest.mark.parametrize(
    "status", [b"HTTP/2.0 200 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1  200 OK", b"200 OK", b"HTTP/1.1 600 x"]
)
def test_a_status_line_that_is_none_is_refused(status: bytes) -> None:
    with pytest.raises(ValueError, match="malformed"):
        parse(status=status)


def test_hop_by_hop_fields_end_here() -> None:
    head = parse(b"Connection: close", b"Keep-Alive: timeout=5", b"X: y", b"Content-Length: 3", b"Upgrade: h2c")
    assert not head.keep
    assert head.restated(close=False) == b"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length: 3\r\n\r\n"
    assert head.restated(close=True).endswith(b"connection: close\r\n\r\n")


def test_http_1_0_is_not_kept() -> None:
    assert not parse(b"content-length: 1", status=b"HTTP/1.0 200 OK").keep
    assert parse(b"content-length: 1").keep


_LINES = (
    b"""
Content-Length: 12|content-length:7 |CONTENT-LENGTH: 0|content-length: +1|content-lengthy: 1|Connection:
content-length: 0000000000000001|X-Connection: 1|te: x|tea: x|transfer-encoding: chunked|x-request-id: a|X-Request-Id:b
connection: close|x: y|x:|: y|x: \x00|x
""".strip()
    .replace(b"\n", b"|")
    .split(b"|")
)
_lines = st.lists(st.sampled_from(_LINES), max_size=5)


@pytest.mark.fuzz
@given(
    st.sampled_from(
        [b"HTTP/1.1 200 OK", b"HTTP/1.1 204 x", b"HTTP/1.1 304", b"HTTP/1.0 200 OK", b"HTTP/1.1 100 C", b"HTTP/1.1 99"]
    ),
    _lines,
    st.binary(max_size=4),
    st.booleans(),
)
def test_the_usual_head_is_read_like_any(status: bytes, lines: list[bytes], more: bytes, to_head: bool) -> None:  # noqa: FBT001
    head = b"\r\n".join([status, *lines, b"", b""]) + more
    try:
        expected = parse_unusual(head, to_head=to_head)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            parse_response(head, to_head=to_head)
        return
    told = parse_response(head, to_head=to_head)
    assert told == parse_unmemoized(head, to_head) == parse_response(head, to_head=to_head)  # the last is remembered
    assert (told.status, told.line, told.length, told.keep) == (
        expected.status, expected.line, expected.length, expected.keep
    )  # fmt: skip
    # The order of fields with different names means nothing (RFC 9110 section 5.3).
    assert sorted(told.fields.split(b"\r\n")) == sorted(expected.fields.split(b"\r\n"))


@pytest.mark.fuzz
@given(st.binary(max_size=120))
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    try:
        head = parse_response(b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n", to_head=False)
    except ValueError:
        return
    again = parse_response(head.restated(close=False), to_head=False)
    assert (again.status, again.length) == (head.status, head.length)


@pytest.mark.parametrize(
    ("status", "content_type", "expected"),
    [
        (502, b"text/html", True),
        (503, b"text/plain", True),
        (504, b"", True),
        (503, b"Application/JSON; charset=utf-8", False),
        (500, b"text/html", False),
        (429, b"", False),
        (200, b"text/html", False),
    ],
)
def test_an_answer_of_a_proxy_between(status: int, content_type: bytes, *, expected: bool) -> None:
    field = b"Content-Type: %b\r\n" % content_type if content_type else b"x-content-type: application/json\r\n"
    head = b"HTTP/1.1 %d X\r\n%bcontent-length: 0\r\n\r\n" % (status, field)
    assert parse_response(head, to_head=False).of_a_proxy is expected
