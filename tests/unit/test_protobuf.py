"""Protocol buffers on the wire: what is read, what is written, and what no two readers may differ about."""

from __future__ import annotations

import tracemalloc

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st
from support.qdrant_messages import pieces
from support.rows import rows

from tlsproxy.wire.protobuf import (
    I32,
    I64,
    LEN,
    MAX_DEPTH,
    VARINT,
    ProtobufError,
    Scanner,
    Shape,
    delimited,
    fields,
    integer,
    known_fields,
    shaped,
    varint,
)

NODE = Shape(
    names={1: "name"},
    nested={2: "node", 3: "leaf"},
    skipped=frozenset({4, 5, 6, 200}),
    repeated=frozenset({2, 5}),
)
SHAPES = {"node": NODE, "leaf": Shape(names={1: "leaf"}, skipped=frozenset({2}))}


def scanned(*parts: bytes) -> list[tuple[str, str]]:
    scanner = Scanner(SHAPES, "node", longest=5, names=4, fields=200)
    for part in parts:
        scanner.feed(part)
    scanner.close()
    return list(scanner.found)


def test_names_at_every_level() -> None:
    leaf = delimited(1, b"deep")
    message = delimited(1, b"top") + delimited(2, delimited(1, b"in") + delimited(3, leaf)) + delimited(2, b"")
    assert scanned(message) == [("name", "top"), ("name", "in"), ("leaf", "deep"), ("name", "")]
    assert scanned(b"") == [("name", "")]
    assert scanned(delimited(3, b"")) == [("leaf", ""), ("name", "")]


@rows(
    "skipped",
    [
        b"",
        b"\x20\x01",
        b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # the largest number
        b"\x20\x81\x80\x00",  # one, in three bytes
        b"\xa0\x80\x80\x80\x00\x01",  # field 4, its tag in five bytes
        b"\x21" + bytes(8),
        b"\x25" + bytes(4),
        b"\x22\x00",
        b"\x22\x03abc",
        b"\x22\x83\x00abc",
        b"\xc2\x0c\x03abc",  # field 200
        b"\x2a\x01a\x28\x01\x2d" + bytes(4),  # repeated, packed or not
        delimited(6, delimited(1, b"not looked at") + b"\xff"),
    ],
)
def test_what_is_not_asked_for_is_skipped(skipped: bytes) -> None:
    for message in (skipped + delimited(1, b"a"), delimited(1, b"a") + skipped):
        assert scanned(message) == [("name", "a")]
        assert scanned(*(bytes([byte]) for byte in message)) == [("name", "a")]
        assert b"".join(one.raw for one in fields(message)) == message
    assert scanned(delimited(2, skipped)) == [("name", "")]


@rows(
    ("message", "text"),
    [
        (b"\x00", "a field has a number that there is not"),
        (b"\x02\x00", "a field has a number that there is not"),
        (b"\xa2\x80\x80\x80\x10\x00", "a field has a number that there is not"),  # 2**29 and 4
        (b"\xa2\x80\x80\x80\x80\x00\x00", "a number is too long"),
        (b"\x22\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", "a number is too long"),
        (b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "a number is too long"),
        (b"\x23\x24", "field 4 has a type that is not accepted"),
        (b"\x24", "field 4 has a type that is not accepted"),
        (b"\x26\x00", "field 4 has a type that is not accepted"),
        (b"\x27\x00", "field 4 has a type that is not accepted"),
        (b"\x22\x05abc", "the message ends within a field"),
        (b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "the message ends within a field"),
        (b"\x22", "the message ends within a field"),
        (b"\xa2", "the message ends within a field"),
        (b"\x21" + bytes(7), "the message ends within a field"),
    ],
)
def test_no_message_at_all(message: bytes, text: str) -> None:
    with pytest.raises(ProtobufError, match=rf"^{text}$"):
        scanned(message)
    with pytest.raises(ProtobufError, match=rf"^{text}$"):
        scanned(*(bytes([byte]) for byte in message))
    with pytest.raises(ProtobufError, match=rf"^{text}$"):
        list(fields(message))


@rows(
    ("message", "text"),
    [
        (delimited(7, b""), "field 7 of node is not known here"),
        (b"\x38\x01", "field 7 of node is not known here"),
        (delimited(2, delimited(7, b"")), "field 7 of node is not known here"),
        (delimited(3, delimited(4, b"")), "field 4 of leaf is not known here"),
        (delimited(1, b"a") * 2, "field 1 of node is there twice"),
        (delimited(3, b"") * 2, "field 3 of node is there twice"),
        (delimited(4, b"") * 2, "field 4 of node is there twice"),
        (b"\x08\x01", "field 1 of node has another type"),
        (b"\x15" + bytes(4), "field 2 of node has another type"),
        (delimited(1, b"longer"), "field 1 of node has more than 5 bytes"),
        (b"\x0a\xff\xff\xff\xff\x0f", "field 1 of node has more than 5 bytes"),
        (delimited(1, b"\xc3"), "a name is not UTF-8"),
        (delimited(1, b"\xed\xa0\x80"), "a name is not UTF-8"),
        (b"".join(delimited(2, delimited(1, name)) for name in (b"a", b"b", b"c", b"d", b"e")), "too many names"),
        (b"\x12\x02\x22\x01a", "field 4 of node is longer than the message"),
        (b"\x12\x02\x0a\x01a", "field 1 of node is longer than the message"),
        (b"\x12\x01\x22\x00", "field 4 of node is longer than the message"),
        (b"\x12\x02\x1a\x01\x00", "field 3 of node is longer than the message"),
        (b"\x12\x01\x0a", "the message ends within a field"),
        (b"\x12\x05\x0a\x01a", "the message ends within a field"),
    ],
)
def test_what_the_shapes_refuse(message: bytes, text: str) -> None:
    with pytest.raises(ProtobufError, match=rf"^{text}$"):
        scanned(message)
    with pytest.raises(ProtobufError, match=rf"^{text}$"):
        scanned(*(bytes([byte]) for byte in message))


def test_a_message_ends_with_what_is_skipped_last_in_it() -> None:
    """Wherever the pieces are cut: the end of both comes in one piece with what follows."""
    message = delimited(2, delimited(3, delimited(2, b"skipped"))) + delimited(1, b"a")
    for cut in range(len(message) + 1):
        assert scanned(message[:cut], message[cut:]) == [("leaf", ""), ("name", ""), ("name", "a")]


def test_a_name_too_long_is_refused_before_it_comes() -> None:
    scanner = Scanner(SHAPES, "node", longest=5, names=4, fields=200)
    with pytest.raises(ProtobufError):
        scanner.feed(b"\x0a\x06")


def test_depth() -> None:
    def nested(depth: int) -> bytes:
        message = b""
        for _ in range(depth):
            message = delimited(2, message)
        return message

    assert scanned(nested(MAX_DEPTH)) == [("name", "")]
    with pytest.raises(ProtobufError, match="nested too deeply"):
        scanned(nested(MAX_DEPTH + 1))


TREES = {"node": {4: "tree"}, "tree": {1: "tree", 2: "leaves"}, "leaves": {3: "tree"}}


def _followed(*parts: bytes) -> list[tuple[str, str]]:
    scanner = Scanner(SHAPES, "node", longest=5, names=4, fields=10_000, nesting=TREES)
    for part in parts:
        scanner.feed(part)
    scanner.close()
    return list(scanner.found)


@given(st.lists(st.sampled_from([(1,), (2, 3)])), st.integers(90, 110), st.binary(max_size=3), st.data())
def test_depth_of_what_is_skipped(steps: list[tuple[int, ...]], depth: int, beside: bytes, data: st.DataObject) -> None:
    """Where it is known to nest; what else is in it does not matter, and nothing of it has to be known."""
    numbers = [4, *(number for step in steps for number in step), *[1] * depth][:depth]
    message = b""
    for number in reversed(numbers):
        message = delimited(number, delimited(9, beside) + message)
    message = delimited(1, b"a") + message
    if depth > MAX_DEPTH:
        for parts in ([message], data.draw(pieces(message)), [bytes([byte]) for byte in message]):
            with pytest.raises(ProtobufError, match="nested too deeply"):
                _followed(*parts)
    else:
        assert _followed(message) == _followed(*data.draw(pieces(message))) == [("name", "a")]


@pytest.mark.parametrize("content", [b"\x0a\x05", b"\x0b", b"\x08", b"\xff" * 20])
def test_what_is_followed_has_to_be_a_message_only_where_it_could_be_too_deep(content: bytes) -> None:
    assert _followed(delimited(4, content)) == [("name", "")]
    with pytest.raises(ProtobufError):
        _followed(delimited(4, delimited(9, bytes(300)) + content))


def test_a_message_of_very_many_fields() -> None:
    assert scanned(b"\x2a\x00" * 200) == [("name", "")]
    for message in (b"\x2a\x00" * 201, delimited(2, b"\x2a\x00" * 200)):
        with pytest.raises(ProtobufError, match="too many fields"):
            scanned(message)


def test_what_is_skipped_is_not_kept() -> None:
    scanner = Scanner(SHAPES, "node", longest=5, names=4, fields=200)
    scanner.feed(b"\x22" + varint(1 << 32))
    piece = bytes(1 << 20)
    tracemalloc.start()
    try:
        for _ in range(1 << 12):
            scanner.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
    scanner.feed(delimited(1, b"a"))
    scanner.close()
    assert list(scanner.found) == [("name", "a")]


def test_fields_of_a_whole_message() -> None:
    message = b"\x08\x96\x01" + delimited(2, b"abc") + b"\x1d" + bytes(4) + b"\x21" + bytes(8)
    found = list(fields(message))
    assert [(one.number, one.wire_type, one.value) for one in found] == [
        (1, VARINT, b""),
        (2, LEN, b"abc"),
        (3, I32, b""),
        (4, I64, b""),
    ]
    assert found[1].content() == b"abc"
    with pytest.raises(ProtobufError, match="field 1 has another type"):
        found[0].content()
    assert [one.number for one in shaped(NODE, "node", delimited(5, b"") * 2)] == [5, 5]
    with pytest.raises(ProtobufError, match="field 4 of node is there twice"):
        list(shaped(NODE, "node", delimited(4, b"") * 2))
    with pytest.raises(ProtobufError, match="field 7 of node is not known here"):
        list(shaped(NODE, "node", delimited(7, b"")))


@given(st.integers(0, 2**64 - 1))
def test_numbers_are_written_as_they_are_read(value: int) -> None:
    message = descriptor_pb2.UninterpretedOption(positive_int_value=value)
    assert integer(4, value) == message.SerializeToString()
    (one,) = fields(integer(4, value))
    assert one.integer() == value


@given(st.integers(1, 2**29 - 1), st.binary(max_size=300))
def test_what_is_written_is_read(number: int, value: bytes) -> None:
    (one,) = fields(delimited(number, value))
    assert (one.number, one.content()) == (number, value)
    assert one.tagged(7) == delimited(7, value)
    with pytest.raises(ProtobufError, match="has another type"):
        one.integer()


def test_a_long_tag_is_no_part_of_the_value() -> None:
    """Parsers take `08` and `88 80 00` for the same tag."""
    (one,) = fields(b"\x88\x80\x00\x96\x01")
    assert (one.number, one.integer(), one.tagged(2)) == (1, 150, b"\x10\x96\x01")


tokens = st.sampled_from(
    [b"\x0a\x01a", b"\x12\x03\x0a\x01a", b"\x1a\x00", b"\x22\x81\x01" + bytes(129), b"\x2a\x01a", b"\x1a\x04\x12\x02ab"]
)


@pytest.mark.fuzz
@given(st.data())
def test_pieces_make_no_difference(data: st.DataObject) -> None:
    message = b"".join(data.draw(st.lists(tokens | st.binary(max_size=4), max_size=6)))

    def outcome(*parts: bytes) -> list[tuple[str, str]] | str:
        try:
            return scanned(*parts)
        except ProtobufError as error:
            return str(error)

    whole = outcome(message)
    assert outcome(*(bytes([byte]) for byte in message)) == whole
    assert outcome(*data.draw(pieces(message))) == whole


few = st.lists(st.builds(delimited, st.integers(1, 4), st.binary(max_size=3)), max_size=4).map(b"".join)


@given(
    few | st.builds(lambda message, rest: message + rest, few, st.binary(max_size=9)), st.frozensets(st.integers(1, 20))
)
def test_known_fields_are_counted_where_they_are_all(message: bytes, known: frozenset[int]) -> None:
    try:
        numbers = [one.number for one in fields(message)]
    except ProtobufError:
        numbers = [0]
    try:
        counted = known_fields(message, known)
    except ProtobufError:
        counted = 0
    assert counted == (len(numbers) if known.issuperset(numbers) else 0)
