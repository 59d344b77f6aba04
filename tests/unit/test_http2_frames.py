"""HTTP/2 frames: whole = byte by byte = split anywhere; what each may be; what settings may say.

Frames are read once more by hyperframe, which is another's reading of the same RFC.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hyperframe.exceptions import InvalidDataError
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st
from support.rows import rows

from tlsproxy.wire import http2
from tlsproxy.wire.http2 import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HEADER,
    MAX_FRAME,
    MAX_WINDOW,
    PADDED,
    PRIORITISED,
    Code,
    Frames,
    Http2Error,
    Kind,
)

Cut = list[tuple[int, int, int, bytes]]

kinds = st.sampled_from(Kind) | st.integers(0, 255)
flags = st.integers(0, 255)
streams = st.sampled_from([0, 1, 2, 3, http2.MAX_STREAM])
payloads = st.binary(max_size=40)
frames = st.builds(http2.frame, kinds, flags, streams, payloads)


def cut(pieces: list[bytes], holds: set[int] | None = None) -> Cut:
    """Every frame that came out; those whose number is in ``holds`` were held back once."""
    reader, out, held = Frames(), [], holds or set()
    for piece in [*pieces, *[b""] * len(held)]:
        reader.begin(piece)
        while reader.advance():
            if len(out) in held:
                held.remove(len(out))
                reader.keep(reader.start)
                break
            raw = reader.data[reader.start : reader.end]
            out.append((reader.what >> 8, reader.what & 0xFF, reader.stream, raw))
    assert not reader.waiting
    return out


def read(reader: Frames, data: bytes) -> int:
    """The number of frames that came out."""
    reader.begin(data)
    number = 0
    while reader.advance():
        number += 1
    return number


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(one for one in cuts if one < len(data))})
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


cuts = st.lists(st.integers(0, 600), max_size=8)


@pytest.mark.fuzz
@given(st.lists(frames, max_size=10), cuts, st.sets(st.integers(0, 9), max_size=3))
def test_whole_equals_byte_by_byte_equals_split_anywhere(sent: list[bytes], cuts: list[int], holds: set[int]) -> None:
    data = b"".join(sent)
    whole = cut([data])
    assert [raw for *_, raw in whole] == sent
    assert cut([data[index : index + 1] for index in range(len(data))]) == whole
    assert cut(split(data, cuts)) == whole
    assert cut(split(data, cuts), {number for number in holds if number < len(sent)}) == whole


@pytest.mark.fuzz
@given(st.binary(max_size=80), cuts)
def test_any_bytes_are_the_same_frames_however_they_are_split(data: bytes, cuts: list[int]) -> None:
    def outcome(pieces: list[bytes]) -> tuple[list[tuple[int, ...]], str]:
        reader, out = Frames(), []
        try:
            for piece in pieces:
                reader.begin(piece)
                while reader.advance():
                    out.append((reader.what, reader.stream, reader.end - reader.start))
        except Http2Error as error:
            return out, str(error)
        return out, "more" if reader.waiting else ""

    assert outcome([data[index : index + 1] for index in range(len(data))]) == outcome([data])
    assert outcome(split(data, cuts)) == outcome([data])


@given(frames)
def test_hyperframe_reads_the_headers_that_we_write(data: bytes) -> None:
    """What it refuses for standing where it does, we refuse: a push always, and where it is met."""
    ((kind, flag, stream, _),) = cut([data])
    try:
        theirs, length = Frame.parse_frame_header(memoryview(data[:HEADER]))
    except InvalidDataError:
        if kind != Kind.PUSH_PROMISE:
            with pytest.raises(Http2Error):
                http2.check(kind, flag, stream, len(data) - HEADER)
    else:
        assert (theirs.type if kind in iter(Kind) else kind, theirs.stream_id, length) == (
            kind, stream, len(data) - HEADER
        )  # fmt: skip


def test_the_reserved_bit_of_a_stream_means_nothing() -> None:
    assert cut([b"\0\0\0\0\0\x80\0\0\x05"])[0][2] == 5
    assert http2.frame(Kind.DATA, 0, 0x8000_0005)[5:] == b"\0\0\0\x05"


@pytest.mark.parametrize("length", [MAX_FRAME, MAX_FRAME + 1, 0xFF_FFFF])
def test_the_largest_frame(length: int) -> None:
    """Told by its header: nobody waits for more than is allowed."""
    reader, head = Frames(), length.to_bytes(3, "big") + bytes(6)
    if length > MAX_FRAME:
        with pytest.raises(Http2Error) as error:
            read(reader, head)
        assert error.value.code == Code.FRAME_SIZE_ERROR
    else:
        assert read(reader, head) == 0
        assert read(reader, bytes(length)) == 1


def test_frames_byte_by_byte_cost_what_their_bytes_do() -> None:
    reader, data = Frames(), http2.frame(Kind.DATA, 0, 1, bytes(MAX_FRAME)) * 2
    began = time.process_time()
    for index in range(len(data)):
        read(reader, data[index : index + 1])
    assert not reader.waiting
    assert time.process_time() - began < 2


# What a frame may be by its header (§6)

SIZES = {
    Kind.PRIORITY: {5},
    Kind.RST_STREAM: {4},
    Kind.PING: {8},
    Kind.WINDOW_UPDATE: {4},
    Kind.GOAWAY: set(range(8, 20)),
}
"""As the RFC says them; a kind that is not here may have any."""
ON_CONNECTION = {Kind.SETTINGS, Kind.PING, Kind.GOAWAY}
ANYWHERE = {Kind.WINDOW_UPDATE, Kind.PUSH_PROMISE}
"""A push is refused by whoever gets one, whatever it stands on."""


@rows("kind", range(12))
@rows("stream", [0, 1])
def test_where_and_how_long_a_frame_may_be(kind: int, stream: int) -> None:
    known = kind in iter(Kind)
    misplaced = known and kind not in ANYWHERE and (Kind(kind) in ON_CONNECTION) != (stream == 0)
    for size in range(20):
        wrong = size not in SIZES.get(Kind(kind), range(20)) if known else False
        if not misplaced and not wrong:
            http2.check(kind, 0, stream, size)
            continue
        with pytest.raises(Http2Error) as error:
            http2.check(kind, 0, stream, size)
        assert error.value.code == (Code.PROTOCOL_ERROR if misplaced else Code.FRAME_SIZE_ERROR)


def test_an_acknowledgement_of_settings_says_nothing() -> None:
    http2.check(Kind.SETTINGS, ACK, 0, 0)
    with pytest.raises(Http2Error) as error:
        http2.check(Kind.SETTINGS, ACK, 0, 6)
    assert error.value.code == Code.FRAME_SIZE_ERROR


# Padding and priority (§6.1, §6.2)


@given(st.binary(max_size=30), st.integers(0, 255))
def test_data_and_fields_come_out_of_their_padding(content: bytes, padding: int) -> None:
    data = DataFrame(1, content, flags=["PADDED"], pad_length=padding).serialize()
    assert http2.unpadded(data[4], data[HEADER:]) == content
    head = HeadersFrame(1, content, flags=["PADDED", "PRIORITY"], pad_length=padding, depends_on=3, stream_weight=7)
    assert http2.fragment(head.serialize()[4], head.serialize()[HEADER:]) == content


@given(flags, st.binary(max_size=30))
def test_only_the_flags_that_a_frame_has_mean_something(flag: int, payload: bytes) -> None:
    """What one side takes for padding and the other for content would be hidden from the one that decides (§4.1)."""
    if not flag & PADDED:
        assert http2.unpadded(flag, payload) == payload
    for read, known in ((http2.unpadded, PADDED), (http2.fragment, PADDED | PRIORITISED)):
        try:
            expected = read(flag & known, payload)
        except Http2Error:
            with pytest.raises(Http2Error):
                read(flag, payload)
        else:
            assert read(flag, payload) == expected


@pytest.mark.parametrize("payload", [b"\x01", b"\x05abcd", b"\xff" + bytes(254)])
def test_padding_that_is_longer_than_its_frame(payload: bytes) -> None:
    for read in (http2.unpadded, http2.fragment):
        with pytest.raises(Http2Error) as error:
            read(PADDED, payload)
        assert error.value.code == Code.PROTOCOL_ERROR


@rows(
    ("flag", "size"),
    [(PADDED, 0), *((PRIORITISED, size) for size in range(5)), *((PADDED | PRIORITISED, size) for size in range(6))],
)
def test_a_frame_too_short_for_what_its_flags_say(flag: int, size: int) -> None:
    """§4.2: it cannot hold the field, whatever the field might say."""
    reads = [http2.fragment] if flag & PRIORITISED else [http2.fragment, http2.unpadded]
    for read, byte in itertools.product(reads, (b"\0", b"\xff")):
        with pytest.raises(Http2Error) as error:
            read(flag, byte * size)
        assert error.value.code == Code.FRAME_SIZE_ERROR


def test_padding_beyond_the_priority() -> None:
    assert http2.fragment(PADDED | PRIORITISED, b"\x02" + bytes(7)) == b""
    with pytest.raises(Http2Error) as error:
        http2.fragment(PADDED | PRIORITISED, b"\x03" + bytes(7))
    assert error.value.code == Code.PROTOCOL_ERROR


# What is written


@rows("size", [0, 1, MAX_FRAME, MAX_FRAME + 1, 2 * MAX_FRAME, 3 * MAX_FRAME + 7])
@rows("end", [True, False])
def test_a_field_block_takes_as_many_frames_as_it_needs(size: int, end: bool) -> None:  # noqa: FBT001 - a parameter
    block = bytes(range(256)) * (size // 256 + 1)
    written = cut([http2.headers(7, block[:size], END_STREAM if end else 0)])
    assert [kind for kind, *_ in written] == [Kind.HEADERS] + [Kind.CONTINUATION] * (max(0, size - 1) // MAX_FRAME)
    assert {stream for *_, stream, _ in written} == {7}
    assert b"".join(raw[HEADER:] for *_, raw in written) == block[:size]
    assert [bool(flag & END_STREAM) for _, flag, *_ in written] == [end] + [False] * (len(written) - 1)
    assert [bool(flag & END_HEADERS) for _, flag, *_ in written] == [False] * (len(written) - 1) + [True]
    assert all(isinstance(Frame.parse_frame_header(memoryview(raw[:9]))[0], HeadersFrame | ContinuationFrame)
               for *_, raw in written)  # fmt: skip


def test_hyperframe_reads_what_we_write() -> None:
    def read(data: bytes) -> Any:
        frame, length = Frame.parse_frame_header(memoryview(data[:HEADER]))
        assert len(data) == HEADER + length
        frame.parse_body(memoryview(data[HEADER:]))
        return frame

    assert read(http2.reset(7, Code.CANCEL)).error_code == 8
    assert read(http2.window_update(0, MAX_WINDOW)).window_increment == MAX_WINDOW
    assert http2.window_update(3, 0) == b"", "nobody may send that"
    away = read(http2.goaway(9, Code.ENHANCE_YOUR_CALM, "why"))
    assert (away.last_stream_id, away.error_code, away.additional_data) == (9, 11, b"why")
    assert read(http2.settings({3: 100, 4: 70_000})).settings == {3: 100, 4: 70_000}
    assert (read(http2.data(1, b"x", end=True)).flags, read(http2.data(1, b"x", end=True)).data) == (
        {"END_STREAM"},
        b"x",
    )
    assert "ACK" in read(http2.SETTINGS_ACK).flags


# Settings (§6.5)


@given(st.dictionaries(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF), max_size=32))
def test_settings_are_read_as_they_are_written_or_refused(values: dict[int, int]) -> None:
    payload = http2.settings(values)[HEADER:]
    legal = (
        values.get(2, 0) <= 1 and values.get(4, 0) <= MAX_WINDOW and MAX_FRAME <= values.get(5, MAX_FRAME) <= 0xFF_FFFF
    )
    if legal:
        assert http2.parse_settings(payload) == values
    else:
        with pytest.raises(Http2Error):
            http2.parse_settings(payload)


@given(st.lists(st.tuples(st.integers(6, 9), st.integers(0, 5)), max_size=8))
def test_the_last_of_each_setting_counts(pairs: list[tuple[int, int]]) -> None:
    """§6.5.3: they are processed in the order in which they appear. hyperframe has the same opinion."""
    payload = b"".join(name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in pairs)
    theirs = SettingsFrame(0)
    theirs.parse_body(memoryview(payload))
    assert http2.parse_settings(payload) == theirs.settings == dict(pairs)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (2, 2, Code.PROTOCOL_ERROR),
        (4, MAX_WINDOW + 1, Code.FLOW_CONTROL_ERROR),
        (5, MAX_FRAME - 1, Code.PROTOCOL_ERROR),
        (5, 1 << 24, Code.PROTOCOL_ERROR),
    ],
)
def test_settings_out_of_bounds(name: int, value: int, code: Code) -> None:
    with pytest.raises(Http2Error) as error:
        http2.parse_settings(http2.settings({name: value})[HEADER:])
    assert error.value.code == code


@pytest.mark.parametrize(("size", "code"), [(5, Code.FRAME_SIZE_ERROR), (33 * 6, Code.ENHANCE_YOUR_CALM)])
def test_settings_of_a_wrong_length(size: int, code: Code) -> None:
    with pytest.raises(Http2Error) as error:
        http2.parse_settings(bytes(size))
    assert error.value.code == code


@given(st.dictionaries(st.integers(1, 9), st.integers(0, 9)), st.sets(st.integers(1, 9)))
def test_what_the_other_side_is_told_of_settings(values: dict[int, int], names: set[int]) -> None:
    assert http2.kept(values, names) == {name: value for name, value in values.items() if name in names}
