"""The chunked coding: whole = byte by byte = split anywhere, and nothing of it is read past its end."""

from __future__ import annotations

import itertools
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.wire.chunked import MAX_TRAILERS, ChunkedBody, ChunkedError

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
TAIL = b"GET /next HTTP/1.1\r\n"


def encode(parts: list[bytes], trailers: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers + b"\r\n"


def feed_all(pieces: list[bytes]) -> tuple[bytes, bytes, ChunkedBody]:
    """(forwarded, left over, the body)."""
    body, forwarded, rest = ChunkedBody(), b"", b""
    for index, piece in enumerate(pieces):
        out, taken = body.feed(piece)
        forwarded += out
        if body.done:
            rest = piece[taken:] + b"".join(pieces[index + 1 :])
            break
        assert taken == len(piece)
    return forwarded, rest, body


@pytest.mark.fuzz
@given(chunks, st.lists(st.integers(0, 400), max_size=8))
def test_whole_equals_byte_by_byte_equals_split_anywhere(parts: list[bytes], cuts: list[int]) -> None:
    data = encode(parts, b"x-checksum: 1\r\n") + TAIL
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    splits = [
        [data],
        [data[index : index + 1] for index in range(len(data))],
        [data[start:end] for start, end in itertools.pairwise(bounds)],
    ]
    for pieces in splits:
        forwarded, rest, body = feed_all(pieces)
        assert body.done
        assert forwarded == encode(parts, b"x-checksum: 1\r\n")
        assert rest == TAIL
        assert body.size == sum(map(len, parts))


@pytest.mark.fuzz
@given(chunks, st.integers(0, 400), st.sampled_from([b"", TAIL, b"\r\n0\r\n\r\n"]))
def test_without_trailers_too_in_one_piece_or_with_the_last_chunk_in_one(
    parts: list[bytes], cut: int, tail: bytes
) -> None:
    """The usual answer has a way of its own."""
    data = encode(parts) + tail
    last = len(data) - len(encode(parts[-1:]) + tail)
    kept = bytearray()
    body = ChunkedBody(kept)
    for piece in (data[:last], data[last:]):
        if piece:
            body.feed(piece)
    assert (body.done, bytes(kept)) == (True, b"".join(parts))
    for pieces in ([data], [data[:last], data[last:]], [data[:cut], data[cut:]]):
        forwarded, rest, body = feed_all(pieces)
        assert body.done
        assert (forwarded, rest, body.size) == (encode(parts), tail, sum(map(len, parts)))


@pytest.mark.fuzz
@given(
    st.lists(st.sampled_from([b"0\r\n", b"1\r\n", b"a", b"\r\n", b"00\r\n", b"2\r\n\r\n", b"x:y\r\n"]), max_size=9),
    st.integers(0, 40),
)
def test_what_looks_like_an_end_is_one_in_one_piece_only_if_it_is_byte_by_byte(words: list[bytes], cut: int) -> None:
    data = b"".join(words)

    def outcome(pieces: list[bytes]) -> tuple[bytes, bytes, bool, int] | str:
        try:
            forwarded, rest, body = feed_all(pieces)
        except ChunkedError:
            return "refused"
        return (forwarded if body.done else b"", rest, body.done, body.size)

    slow = outcome([data[index : index + 1] for index in range(len(data))])
    assert outcome([data]) == slow
    assert outcome([data[:cut], data[cut:]]) == slow


@pytest.mark.fuzz
@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_end_the_same_however_they_are_split(data: bytes, cut: int) -> None:
    def outcome(pieces: list[bytes]) -> tuple[bytes, bytes, bool] | str:
        try:
            forwarded, rest, body = feed_all(pieces)
        except ChunkedError:
            return "refused"
        return (forwarded if body.done else b"", rest, body.done)

    whole = outcome([data])
    assert outcome([data[:cut], data[cut:]]) == whole
    assert outcome([data[index : index + 1] for index in range(len(data))]) == whole


@rows(
    "data",
    [
        b"5;ext=1\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello\r\r\n",
        b"\r\n",
        b"ffffffffffffffff\r\n",
        b"g\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\nx : 1\r\n\r\n",
        b"0\r\nx: a\nb: c\r\n\r\n",
        b"0\r\nx: " + b"a" * MAX_TRAILERS + b"\r\n\r\n",
        b"0\r\nx: " + b"a" * (MAX_TRAILERS + 10),
    ],
)
def test_what_is_not_the_coding_is_refused(data: bytes) -> None:
    with pytest.raises(ChunkedError):
        feed_all([data])
    with pytest.raises(ChunkedError):
        feed_all([data[index : index + 1] for index in range(len(data))])


WORDS = [b"0", b"1", b"a", b"\r", b"\n", b"\r\n", b"0\r\n", b"x:y", b":", b" ", b";", b"\0", b"1\r\na\r\n"]


HEX, TOKEN = b"0123456789abcdefABCDEF", b"!#$%&'*+-.^_`|~" + string.ascii_letters.encode() + string.digits.encode()


def follows(state: str, byte: int) -> str:
    """RFC 9112 §7.1 a byte at a time, with nothing kept but the state: "" where no body goes on so."""
    char = bytes((byte,))
    if state.startswith("size:"):
        digits = state[5:]
        if char in HEX and len(digits) < 8:
            return state + char.decode()
        return f"lf:{digits}" if char == b"\r" and digits else ""
    if state.startswith("lf:"):
        size = int(state[3:], 16)
        return "" if char != b"\n" else f"content:{size}" if size else "line"
    if state.startswith("content:"):
        left = int(state[8:])
        if left:
            return f"content:{left - 1}"
        return "content lf" if char == b"\r" else ""
    moves = {
        "content lf": {b"\n": "size:"},
        "line": {b"\r": "last lf"} | {bytes((one,)): "name" for one in TOKEN},
        "name": {b":": "value"} | {bytes((one,)): "name" for one in TOKEN},
        "value": {b"\r": "value lf"} | {bytes((one,)): "value" for one in (9, *range(0x20, 0x7F), *range(0x80, 0x100))},
        "value lf": {b"\n": "line"},
        "last lf": {b"\n": "done"},
    }
    return moves[state].get(char, "")


@pytest.mark.fuzz
@given(st.lists(st.sampled_from(WORDS) | st.binary(min_size=1, max_size=2), max_size=12).map(b"".join))
def test_what_cannot_become_a_body_is_refused_with_the_byte_that_makes_it_so(data: bytes) -> None:
    body, state = ChunkedBody(), "size:"
    for byte in data:
        state = follows(state, byte)
        if not state:
            with pytest.raises(ChunkedError):
                body.feed(bytes((byte,)))
            return
        body.feed(bytes((byte,)))
        assert body.done == (state == "done")
        if body.done:
            return


@rows(
    "data",
    [
        b"0\n",
        b"0\r\n\n",
        b"0\r\n\r\r",
        b"0\r\n\rx",
        b"0\r\nx: y\n",
        b"0\r\nx: y\r\n\n",
        b"0\r\nx: y\rz",
        b"0\r\nx\n",
        b"0\r\nx\r",
        b"0\r\n ",
        b"0\r\n:",
        b"0\r\nx: \0",
        b"0\r0",
        b"0\r\r",
        b"\r",
        b"\n",
        b"g",
        b"1;",
        b"000000000",
        b"1\r\na\n",
        b"1\r\na\rx",
        b"1\r\na\r\n\r",
        b"1\r\na\r\n0\r\n\n",
    ],
)
def test_the_last_byte_of_these_is_the_one(data: bytes) -> None:
    body = ChunkedBody()
    if data[:-1]:
        body.feed(data[:-1])
    with pytest.raises(ChunkedError):
        body.feed(data[-1:])
    with pytest.raises(ChunkedError):
        ChunkedBody().feed(data)


@pytest.mark.parametrize(
    "name", [b"Host", b"Authorization", b"API_KEY", b"Content-Length", b"Transfer-Encoding", b"x-forwarded-for"]
)
def test_a_trailer_cannot_say_what_a_header_may_not(name: bytes) -> None:
    data = encode([b"a"], b"x-ok: 1\r\n" + name + b": 2\r\n")
    assert feed_all([data])[0] == encode([b"a"], b"x-ok: 1\r\n")


def test_large_chunks_pass_untouched() -> None:
    block = b"z" * 100_000
    body = ChunkedBody()
    assert body.feed(b"249f0\r\n")[0] == b"249f0\r\n"
    assert body.feed(block) == (block, len(block))
    assert body.feed(block[:50_000] + b"\r\n0\r\n\r\n")[1] == 50_007
    assert body.done
    assert body.size == 150_000
