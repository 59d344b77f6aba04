"""Field blocks: the reader that remembers against one that does not, and what is written against hpack."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder, HPACKError
from hpack.hpack import encode_integer
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.wire import field_block
from tlsproxy.wire.field_block import MEMO, MEMO_BLOCK, FieldReader, Fields, literals, write
from tlsproxy.wire.http2 import TABLE, Code, Http2Error

LIMIT = 32_768
REFUSED = "refused"

names = st.sampled_from(
    [b":path", b":method", b"te", b"x-a", b"x-b", b"x-" + b"c" * 40, b"content-type", b"user-agent"]
)
values = st.sampled_from([b"", b"/a", b"trailers", b"POST", b"v" * 60, b"v" * 2000]) | st.binary(max_size=12)
lists = st.lists(st.tuples(names, values), max_size=6)
sizes = st.sampled_from([0, 31, 64, 100, 1000, TABLE - 1, TABLE])


def as_they_are(fields: Fields) -> Fields:
    return fields


class Slow:
    """hpack's decoder as it is: every block is decoded."""

    def __init__(self, limit: int = LIMIT, table: int = TABLE) -> None:
        self.decoder = Decoder(max_header_list_size=limit)
        self.decoder.max_allowed_table_size = table

    def read(self, block: bytes) -> Fields | str:
        try:
            return tuple((bytes(name), bytes(value)) for name, value in self.decoder.decode(block, raw=True))
        except (HPACKError, IndexError, ValueError):
            return REFUSED


def table_size(size: int) -> bytes:
    """A dynamic table size update."""
    first, *others = encode_integer(size, 5)
    return bytes((0x20 | first, *others))


def read(reader: FieldReader[Fields], block: bytes) -> Fields | str:
    try:
        return reader.read(block)
    except Http2Error:
        return REFUSED


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Blocks of one client: made by an encoder with a table, by hand, and any of those before once more, byte by byte.

    The encoder's table may change its size at any time; nobody tells it of the blocks that it did not make.
    """
    encoder, blocks = Encoder(), []
    few = st.lists(st.sampled_from(draw(st.lists(st.tuples(names, values), min_size=1, max_size=4))), max_size=3)
    for _ in range(draw(st.integers(1, 20))):
        how = draw(st.integers(0, 19))
        if how == 0:
            encoder.header_table_size = draw(sizes)
        if how <= 9 or not blocks:
            fields = [(*field, draw(st.integers(0, 9)) == 0) for field in draw(few)]
            blocks.append(encoder.encode(fields, huffman=draw(st.booleans())))
        elif how <= 18:
            blocks.append(draw(st.sampled_from(blocks)))
        else:
            blocks.append(draw(st.binary(max_size=8)))
    return blocks


@pytest.mark.fuzz
@given(conversations())
def test_what_was_read_before_means_what_it_means_now(blocks: list[bytes]) -> None:
    reader, slow = FieldReader(LIMIT, as_they_are), Slow()
    for block in blocks:
        expected = slow.read(block)
        assert read(reader, block) == expected
        if expected == REFUSED:
            break  # the connection is over


def test_a_block_that_changes_no_table_is_decoded_once() -> None:
    reader, block = FieldReader(LIMIT, as_they_are), literals(((b":path", b"/a"), (b"x", b"1")))
    assert reader.read(block) is reader.read(bytes(bytearray(block)))


def test_the_same_bytes_after_a_change_of_the_table() -> None:
    """The client's own repetition of an index, of which the meaning has moved."""
    reader, encoder = FieldReader(LIMIT, as_they_are), Encoder()
    reader.read(encoder.encode([(b"x-a", b"1")]))
    again = encoder.encode([(b"x-a", b"1")])
    assert reader.read(again) == reader.read(again) == ((b"x-a", b"1"),)
    reader.read(encoder.encode([(b"x-b", b"2")]))
    assert reader.read(again) == ((b"x-b", b"2"),)
    reader.read(b"\x20")
    with pytest.raises(Http2Error):
        reader.read(again)


def test_an_entry_that_takes_an_equal_ones_place() -> None:
    """As many entries as before and an equal newest one: only that it is another one tells of the change."""
    reader, room_for_two = FieldReader(LIMIT, as_they_are), b"\x3f\x45"
    one, other = (b"\x40\x01x\x0f" + letter * 15 for letter in (b"a", b"b"))
    reader.read(room_for_two + other)
    reader.read(one)
    assert reader.read(b"\xbf") == ((b"x", b"b" * 15),)
    reader.read(one)
    assert reader.read(b"\xbf") == ((b"x", b"a" * 15),)


def test_literals_that_the_table_cannot_hold_leave_it_unchanged() -> None:
    """An encoder without a table may still ask for each field to be added (RFC 7541 §4.4): an empty table stays empty.

    As soon as there is room, the same bytes add an entry, and are decoded each time.
    """
    reader, block = FieldReader(LIMIT, as_they_are), b"\x20\x40\x01x\x01y"
    other = literals(((b"x", b"z"),))
    reader.read(block)
    first, unrelated = reader.read(block), reader.read(other)
    assert reader.read(bytes(bytearray(block))) is first
    assert reader.read(bytes(bytearray(other))) is unrelated
    added, newest = b"\x40\x01x\x01y", b"\xbe"
    assert reader.read(added) is reader.read(bytes(bytearray(added)))
    assert reader.read(table_size(TABLE)) == ()
    reader.read(added)
    assert reader.read(newest) == ((b"x", b"y"),)
    reader.read(b"\x40\x01x" + bytes(encode_integer(TABLE, 7)) + b"v" * TABLE)
    with pytest.raises(Http2Error):  # larger than the table: it has emptied it
        reader.read(newest)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_bytes_are_fields_or_a_compression_error(first: bytes, second: bytes) -> None:
    reader, slow = FieldReader(LIMIT, as_they_are), Slow()
    for block in (first, second, first):
        expected = slow.read(block)
        assert read(reader, block) == expected
        if expected == REFUSED:
            break


@pytest.mark.parametrize(
    "block",
    [b"\x80", b"\xff\xff\x7f", b"\x3f\xff\xff\x03", b"\x04\x84\xff\xff\xff\xff", b"\x04\x7fx", b"\x00", b"\x83\x20"],
)
def test_what_is_no_block(block: bytes) -> None:
    with pytest.raises(Http2Error) as error:
        FieldReader(LIMIT, as_they_are).read(block)
    assert error.value.code == Code.COMPRESSION_ERROR


# Limits


def size(fields: Fields) -> int:
    return sum(len(name) + len(value) + 32 for name, value in fields)


@pytest.mark.fuzz
@given(lists, st.integers(0, 600))
def test_the_largest_list_of_fields(fields: list[tuple[bytes, bytes]], limit: int) -> None:
    """RFC 9113 §6.5.2: each counts with 32 bytes more."""
    reader, block = FieldReader(limit, as_they_are), Encoder().encode(fields)
    if size(tuple(fields)) <= limit:
        assert reader.read(block) == tuple(fields)
    else:
        with pytest.raises(Http2Error) as error:
            reader.read(block)
        assert error.value.code == Code.ENHANCE_YOUR_CALM
        assert error.value.reason == "flood_fields"


def test_a_bomb_of_indexes() -> None:
    """CVE-2016-6581: each byte of it would be an entry of 4 KB."""
    reader = FieldReader(LIMIT, as_they_are)
    reader.read(Encoder().encode([(b"x", b"v" * 4000)], huffman=False))
    with pytest.raises(Http2Error) as error:
        reader.read(b"\xbe" * LIMIT)
    assert error.value.code == Code.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("block", [b"\x7f" + b"\xff" * LIMIT, b"\x7f" + b"\x80" * LIMIT, b"\x3f" + b"\xff" * LIMIT])
def test_an_integer_without_end(block: bytes) -> None:
    with pytest.raises(Http2Error) as error:
        FieldReader(LIMIT, as_they_are).read(block)
    assert error.value.code == Code.COMPRESSION_ERROR


def test_size_updates_without_end() -> None:
    """A block of nothing else costs what its bytes do."""
    assert FieldReader(LIMIT, as_they_are).read(b"\x20\x3f\xe1\x1f" * (LIMIT // 4)) == ()


def test_the_largest_table() -> None:
    assert FieldReader(LIMIT, as_they_are).read(table_size(TABLE)) == ()
    with pytest.raises(Http2Error) as error:
        FieldReader(LIMIT, as_they_are).read(table_size(TABLE + 1))
    assert error.value.code == Code.COMPRESSION_ERROR


def test_without_a_table() -> None:
    """An upstream that was told that there is none, and uses one."""
    with pytest.raises(Http2Error):
        FieldReader(LIMIT, as_they_are, table=False).read(Encoder().encode([(b"x", b"y")]))
    encoder = Encoder()
    encoder.header_table_size = 0
    assert FieldReader(LIMIT, as_they_are, table=False).read(encoder.encode([(b"x", b"y")])) == ((b"x", b"y"),)


def test_without_a_table_and_without_a_word_of_it() -> None:
    """What gRPC's C library answers to a call that is late: a block made by hand, before any that shrinks the table."""
    reader, by_hand = (
        FieldReader(LIMIT, as_they_are, table=False),
        literals(((b":status", b"200"), (b"grpc-status", b"4"))),
    )
    assert reader.read(by_hand)[1] == (b"grpc-status", b"4")
    with pytest.raises(Http2Error):
        reader.read(Encoder().encode([(b"x", b"y")]))


def test_memory_of_what_was_read_is_bounded() -> None:
    reader = FieldReader(LIMIT, as_they_are)
    for number in range(2 * MEMO):
        reader.read(write(((b"x", b"%d" % number),)))
    assert len(reader._memo) == MEMO
    long = write(((b"x", b"v" * MEMO_BLOCK),))
    other = FieldReader(LIMIT, as_they_are)
    assert other.read(long) == other.read(long)
    assert other._memo == {}


# Written


any_fields = st.lists(
    st.tuples(
        st.sampled_from([*field_block._NAMES, b":method", b":scheme", b"n" * 200]) | st.binary(max_size=20),
        st.sampled_from([b"POST", b"http", b"200", *(b"v" * size for size in (126, 127, 128, 254, 255, 20_000))])
        | st.binary(max_size=30),
    ),
    max_size=8,
).map(tuple)


@pytest.mark.fuzz
@given(any_fields, st.booleans())
def test_hpack_reads_what_we_write(fields: Fields, first: bool) -> None:  # noqa: FBT001
    """Its table stays what it was, but for a block that begins by saying that there is none."""
    decoder = Decoder(max_header_list_size=1 << 20)
    decoder.decode(Encoder().encode([(b"x-known", b"1")]))
    before = list(decoder.header_table.dynamic_entries)
    assert tuple(map(tuple, decoder.decode((write if first else literals)(fields), raw=True))) == fields
    assert list(decoder.header_table.dynamic_entries) == ([] if first else before)
    assert decoder.header_table.maxsize == (0 if first else TABLE)


@pytest.mark.fuzz
@given(st.lists(st.tuples(st.booleans(), lists), max_size=8))
def test_blocks_of_ours_among_anothers_disturb_neither(said: list[tuple[bool, list[tuple[bytes, bytes]]]]) -> None:
    decoder, encoder = Decoder(), Encoder()
    for ours, fields in said:
        block = literals(tuple(fields)) if ours else encoder.encode(fields)
        assert list(map(tuple, decoder.decode(block, raw=True))) == fields


@given(any_fields)
def test_who_has_no_table_reads_it_too(fields: Fields) -> None:
    decoder = Decoder(max_header_list_size=1 << 20)
    decoder.max_allowed_table_size = 0
    decoder.header_table_size = 0
    for block in (literals(fields), write(fields)):
        assert tuple(map(tuple, decoder.decode(block, raw=True))) == fields


def test_parts_may_be_joined() -> None:
    """What is the same for all calls of a connection is written once, and stands behind each call's own."""
    one, two = ((b":path", b"/a"),), ((b"x-forwarded-for", b"127.0.0.1"),)
    assert write(one) + literals(two) == write(one + two)


@pytest.mark.parametrize("name", field_block._NAMES)
def test_what_is_written_often_is_short(name: bytes) -> None:
    assert len(literals(((name, b""),))) <= 3, "an index and an empty value"


@pytest.mark.parametrize("field", field_block._INDEXED)
def test_what_is_always_the_same_is_a_byte(field: tuple[bytes, bytes]) -> None:
    assert len(literals((field,))) == 1
