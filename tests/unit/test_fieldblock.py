"""Field blocks are read as hpack reads them, memo or not; what we write needs no table and makes none."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.wire.fieldblock import FieldReader, write
from tlsproxy.wire.http2 import Code, Http2Error

NAMES = st.sampled_from([b":path", b":method", b"content-type", b"grpc-timeout", b"x-request-id", b"te"])
VALUES = st.sampled_from([b"POST", b"/a.B/C", b"1S", b"trailers", b""]) | st.binary(max_size=40)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)


@given(
    st.lists(st.tuples(FIELDS, st.booleans(), st.sampled_from([None, 0, 100, 4096]), st.integers(1, 3)), max_size=12)
)
def test_a_sequence_of_blocks_is_read_as_by_hpack(
    turns: list[tuple[list[tuple[bytes, bytes]], bool, int | None, int]],
) -> None:
    """With a table that grows, evicts and is resized, Huffman or not, and blocks that come again byte for byte."""
    encoder, reader, plain = hpack.Encoder(), FieldReader(1 << 16), hpack.Decoder()
    for fields, huffman, size, times in turns:
        if size is not None:
            encoder.header_table_size = size
        for _ in range(times):
            block = encoder.encode(fields, huffman=huffman)
            for _ in range(2 if _adds_nothing(block) else 1):
                expected = tuple((bytes(name), bytes(value)) for name, value in plain.decode(block, raw=True))
                assert reader.read(block) == expected == tuple(fields)


def _adds_nothing(block: bytes) -> bool:
    """Whether it may be repeated as it is: only indexes, which change no table."""
    return all(byte & 0x80 and byte != 0xFF for byte in block)


def test_a_block_that_came_before_is_not_read_again() -> None:
    encoder, reader = hpack.Encoder(), FieldReader(1 << 16)
    fields = [(b":method", b"POST"), (b"x", b"y")]
    encoder.encode(fields)
    reader.read(hpack.Encoder().encode(fields))
    block = encoder.encode(fields)
    first = reader.read(block)
    assert reader.read(block) is first
    reader.read(hpack.Encoder().encode([(b"x", b"z")]))  # the table has changed: what the block says has, too
    assert reader.read(block) == ((b":method", b"POST"), (b"x", b"z"))


@given(FIELDS, st.booleans())
def test_what_we_write(fields: list[tuple[bytes, bytes]], first: bool) -> None:  # noqa: FBT001 - Hypothesis draws it
    decoder = hpack.Decoder()
    decoder.header_table_size = 4096
    read = decoder.decode(write(tuple(fields), first=first), raw=True)
    assert [(bytes(name), bytes(value)) for name, value in read] == fields
    assert not decoder.header_table.dynamic_entries


def test_long_names_and_values() -> None:
    fields = ((b"n" * 5000, b"v" * 70_000), (b":status", b"404"))
    read = hpack.Decoder(max_header_list_size=1 << 20).decode(write(fields), raw=True)
    assert tuple((bytes(name), bytes(value)) for name, value in read) == fields


@pytest.mark.parametrize(
    "block", [b"\x80", b"\xff\xff\x7f", b"\x3f\xff\xff\x03", b"\x04\x84\xff\xff\xff\xff", b"\x04\x7fx", b"\x00"]
)
def test_what_is_no_block(block: bytes) -> None:
    with pytest.raises(Http2Error) as caught:
        FieldReader(1 << 16).read(block)
    assert caught.value.code is Code.COMPRESSION_ERROR


def test_a_bomb() -> None:
    """One field of 4 KB in the table, then one byte for each more of it."""
    block = hpack.Encoder().encode([(b"x", b"~" * 3_900)]) + b"\xbe" * 1_000
    with pytest.raises(Http2Error) as caught:
        FieldReader(32_768).read(block)
    assert caught.value.code is Code.ENHANCE_YOUR_CALM


def test_without_a_table() -> None:
    """An upstream that was told that there is none, and uses one."""
    with pytest.raises(Http2Error):
        FieldReader(1 << 16, table=0).read(hpack.Encoder().encode([(b"x", b"y")]))
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    assert FieldReader(1 << 16, table=0).read(encoder.encode([(b"x", b"y")])) == ((b"x", b"y"),)
