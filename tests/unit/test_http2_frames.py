"""Frames are cut the same however they come, and hyperframe reads what we write."""

from __future__ import annotations

import pytest
from hyperframe.frame import Frame
from hypothesis import given
from hypothesis import strategies as st
from support.messages import pieces

from tlsproxy.wire import http2
from tlsproxy.wire.http2 import Code, Frames, Http2Error, Kind

FRAMES = st.lists(
    st.builds(
        http2.frame,
        st.integers(0, 255),
        st.integers(0, 255),
        st.integers(0, http2.MAX_STREAM),
        st.binary(max_size=300) | st.binary(min_size=http2.MAX_FRAME, max_size=http2.MAX_FRAME),
    ),
    max_size=8,
)


def cut(frames: Frames, data: bytes) -> list[bytes]:
    return [frames.data[start:end] for *_, start, end in frames.cut(data)]


@given(FRAMES, st.data())
def test_whole_is_piece_by_piece(sent: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(sent)
    assert cut(Frames(), whole) == sent
    one = Frames()
    assert [frame for piece in data.draw(pieces(whole)) for frame in cut(one, piece)] == sent
    assert not one.waiting


@given(FRAMES.filter(bool), st.data())
def test_what_is_kept_comes_again(sent: list[bytes], data: st.DataObject) -> None:
    """Whoever stops in the middle goes on there, whatever has come since."""
    stop = data.draw(st.integers(0, len(sent) - 1))
    frames, got = Frames(), []
    for number, (*_, start, end) in enumerate(frames.cut(b"".join(sent))):
        if number == stop:
            frames.keep(start)
            break
        got.append(frames.data[start:end])
    assert frames.waiting
    assert [*got, *cut(frames, b""), *cut(frames, sent[0])] == [*sent, sent[0]]


@pytest.mark.parametrize("length", [http2.MAX_FRAME + 1, 0xFFFFFF])
def test_a_large_frame_is_refused_by_its_header(length: int) -> None:
    with pytest.raises(Http2Error) as caught:
        cut(Frames(), length.to_bytes(3, "big") + bytes(6))
    assert caught.value.code is Code.FRAME_SIZE_ERROR


def read(data: bytes) -> Frame:
    frame, length = Frame.parse_frame_header(memoryview(data[:9]))
    assert len(data) == 9 + length
    frame.parse_body(memoryview(data[9:]))
    return frame


def test_what_we_write_is_read() -> None:
    assert read(http2.reset(7, Code.CANCEL)).error_code == 8
    assert read(http2.window_update(0, 5)).window_increment == 5
    assert http2.window_update(3, 0) == b""
    away = read(http2.goaway(9, Code.ENHANCE_YOUR_CALM, "why"))
    assert (away.last_stream_id, away.error_code, away.additional_data) == (9, 11, b"why")
    assert read(http2.settings({3: 100, 4: 70_000})).settings == {3: 100, 4: 70_000}
    assert read(http2.data(1, b"x", end=True)).flags == {"END_STREAM"}
    assert "ACK" in read(http2.SETTINGS_ACK).flags


@given(st.binary(max_size=3 * http2.MAX_FRAME + 5), st.booleans())
def test_a_block_in_as_many_frames_as_it_needs(block: bytes, end: bool) -> None:  # noqa: FBT001 - Hypothesis draws it
    sent = [read(each) for each in cut(Frames(), http2.headers(5, block, end=end))]
    assert b"".join(each.data for each in sent) == block
    assert [type(each).__name__ for each in sent[1:]] == ["ContinuationFrame"] * (len(sent) - 1)
    assert ["END_HEADERS" in each.flags for each in sent] == [False] * (len(sent) - 1) + [True]
    assert ("END_STREAM" in sent[0].flags) == end


@pytest.mark.parametrize(
    ("flags", "payload", "content"),
    [
        (0, b"abc", b"abc"),
        (http2.PADDED, b"\x02abcPP", b"abc"),
        (http2.PADDED, b"\x00", b""),
        (http2.PADDED, b"\x02PP", b""),
        (http2.PRIORITISED, b"12345abc", b"abc"),
        (http2.PADDED | http2.PRIORITISED, b"\x0112345abcP", b"abc"),
    ],
)
def test_padding(flags: int, payload: bytes, content: bytes) -> None:
    assert http2.unpadded(flags, payload) == content


@pytest.mark.parametrize(
    ("flags", "payload"),
    [(http2.PADDED, b""), (http2.PADDED, b"\x03ab"), (http2.PRIORITISED, b"1234"), (http2.PADDED | 32, b"\x0112345")],
)
def test_padding_that_lies(flags: int, payload: bytes) -> None:
    with pytest.raises(Http2Error) as caught:
        http2.unpadded(flags, payload)
    assert caught.value.code is Code.PROTOCOL_ERROR


@given(st.dictionaries(st.integers(7, 65_535), st.integers(0, (1 << 32) - 1), max_size=20))
def test_settings(values: dict[int, int]) -> None:
    assert http2.parse_settings(http2.settings(values)[9:]) == values
    assert http2.kept(values | {3: 1}, (3, 4)) == {3: 1}


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (bytes(5), Code.FRAME_SIZE_ERROR),
        (b"\x00\x02\x00\x00\x00\x02", Code.PROTOCOL_ERROR),
        (b"\x00\x04\x80\x00\x00\x00", Code.FLOW_CONTROL_ERROR),
        (b"\x00\x05\x00\x00\x3f\xff", Code.PROTOCOL_ERROR),
        (b"\x00\x05\x01\x00\x00\x00", Code.PROTOCOL_ERROR),
        (b"\x00\x03\x00\x00\x00\x01" * 33, Code.ENHANCE_YOUR_CALM),
    ],
)
def test_settings_that_are_none(payload: bytes, code: Code) -> None:
    with pytest.raises(Http2Error) as caught:
        http2.parse_settings(payload)
    assert caught.value.code is code


@pytest.mark.parametrize("kind", Kind)
def test_what_a_header_says_of_its_frame(kind: Kind) -> None:
    """Each type where it belongs passes, and is refused elsewhere: on the connection, or on a stream."""
    size = {Kind.PRIORITY: 5, Kind.RST_STREAM: 4, Kind.PING: 8, Kind.WINDOW_UPDATE: 4, Kind.GOAWAY: 8}.get(kind, 0)
    on_connection = kind in {Kind.SETTINGS, Kind.PING, Kind.GOAWAY}
    http2.check(kind, 0, 0 if on_connection else 1, size)
    if kind not in {Kind.WINDOW_UPDATE, Kind.PUSH_PROMISE}:
        with pytest.raises(Http2Error):
            http2.check(kind, 0, 1 if on_connection else 0, size)
    if size:
        with pytest.raises(Http2Error) as caught:
            http2.check(kind, 0, 0 if on_connection else 1, size - 1)
        assert caught.value.code is Code.FRAME_SIZE_ERROR
