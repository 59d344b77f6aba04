"""Our decoder of HPACK against the library's, which is slow and obvious: the same fields, tables and refusals."""

from __future__ import annotations

import pytest
from hpack import Decoder as Slow
from hpack import Encoder, HPACKError
from hpack.hpack import encode_integer
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.wire import hpack
from tlsproxy.wire.hpack import Decoder, HpackError, TooLarge

LIMIT = 16_384
TABLE = 4096


def literal(text: bytes, *, coded: bool, size: int | None = None) -> bytes:
    """A string; ``size``: a length that may lie."""
    first, *others = encode_integer(len(text) if size is None else size, 7)
    return bytes((first | 0x80 if coded else first, *others)) + text


def unhuffed(coded: bytes) -> bytes | None:
    try:
        return decode_huffman(coded)
    except HPACKError:
        return None


@pytest.mark.fuzz
@given(st.binary(max_size=24))
def test_any_bytes_as_a_huffman_coded_text(coded: bytes) -> None:
    block = b"\x00\x01x" + literal(coded, coded=True)
    expected = unhuffed(coded)
    if expected is None:
        with pytest.raises(HpackError):
            Decoder(LIMIT, TABLE).decode(block)
    else:
        assert Decoder(LIMIT, TABLE).decode(block) == ((b"x", expected),)


@pytest.mark.fuzz
@given(st.binary(max_size=64) | st.uuids().map(lambda number: str(number).encode()), st.integers(0, 40))
def test_any_text_coded_and_with_more_padding_than_it_may_have(text: bytes, more: int) -> None:
    coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
    assert Decoder(LIMIT, TABLE).decode(b"\x00\x01x" + literal(coded, coded=True)) == ((b"x", text),)
    if more:
        padded = coded + b"\xff" * more
        with pytest.raises(HpackError):
            Decoder(LIMIT, TABLE).decode(b"\x00\x01x" + literal(padded, coded=True))


def test_each_symbol() -> None:
    encoder = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
    for symbol in range(256):
        text = bytes((symbol,))
        block = b"\x00\x01x" + literal(encoder.encode(text), coded=True)
        assert Decoder(LIMIT, TABLE).decode(block) == ((b"x", text),)


@given(st.binary(max_size=40))
def test_a_step_found_before_is_the_step_found_now(coded: bytes) -> None:
    block = b"\x00\x01x" + literal(coded, coded=True)
    outcomes = []
    for known in (False, True):
        for steps in hpack._nodes.values():
            steps.by_byte[:] = steps.by_byte if known else [None] * 256
        try:
            outcomes.append(Decoder(LIMIT, TABLE).decode(block))
        except HpackError:
            outcomes.append(())
    assert outcomes[0] == outcomes[1]
    assert len(hpack._nodes) <= 256


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    """Written by hand: updates, indexes, literals of all three kinds; integers of more bytes than needed."""
    parts = []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.integers(0, 9))
        if kind == 0:
            parts.append(integer(draw, draw(st.sampled_from([0, 1, 64, 100, TABLE, TABLE + 1])), 5, 0x20))
        elif kind <= 3:
            parts.append(integer(draw, draw(st.integers(0, 70)), 7, 0x80))
        else:
            bits, first = draw(st.sampled_from([(6, 0x40), (4, 0x00), (4, 0x10)]))
            index = draw(st.integers(0, 66) | st.just(0))
            parts.append(integer(draw, index, bits, first))
            texts = st.binary(max_size=6) | st.just(b"v" * 60) | st.just(b"v" * 4100)
            for _text in range(1 if index else 2):
                text = draw(texts)
                lie = draw(st.integers(0, 19)) == 0
                parts.append(literal(text, coded=draw(st.booleans()), size=len(text) + 3 if lie else None))
    return b"".join(parts)


def integer(draw: st.DrawFn, value: int, bits: int, first: int) -> bytes:
    head, *others = encode_integer(value, bits)
    if others and draw(st.integers(0, 5)) == 0:
        others = [*others[:-1], others[-1] | 0x80, *[0x80] * draw(st.integers(0, 4)), 0]
    return bytes((first | head, *others))


@pytest.mark.fuzz
@given(st.lists(blocks(), max_size=6), st.sampled_from([60, 200, LIMIT]))
def test_blocks_by_hand(said: list[bytes], limit: int) -> None:
    ours, slow = Decoder(limit, TABLE), Slow(max_header_list_size=limit)
    for block in said:
        try:
            expected = tuple((bytes(name), bytes(value)) for name, value in slow.decode(block, raw=True))
        except (HPACKError, IndexError, ValueError):
            with pytest.raises(HpackError):
                ours.decode(block)
            break
        before, changes = list(ours.entries), ours.changes
        assert ours.decode(block) == expected
        assert list(ours.entries) == list(slow.header_table.dynamic_entries)
        if before != list(ours.entries):
            assert ours.changes > changes


def test_limit_of_a_block_is_told_apart() -> None:
    block = Encoder().encode([(b"x", b"v" * 100)])
    with pytest.raises(TooLarge):
        Decoder(132, TABLE).decode(block)
    assert Decoder(133, TABLE).decode(block) == ((b"x", b"v" * 100),)


def test_field_of_an_index_is_the_entry() -> None:
    """Two calls with the same fields are compared at once, compiled too."""
    decoder, encoder = Decoder(LIMIT, TABLE), Encoder()
    (first,) = decoder.decode(encoder.encode([(b"x", b"y")]))
    (second,) = decoder.decode(encoder.encode([(b"x", b"y")]))
    assert second is first
