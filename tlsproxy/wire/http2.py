"""HTTP/2 frames (RFC 9113 §4, §6): splitting a byte stream, encoding, and checks of headers and payloads.

Frames are handled whole and are small: neither side is ever offered a larger SETTINGS_MAX_FRAME_SIZE than the default.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Final

from tlsproxy.errors import TlsproxyError

KIND: Final = 3
FLAGS: Final = 4
"""Offsets of a frame's type and flags."""
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER: Final = 9
MAX_FRAME: Final = 16_384
"""Bytes of a payload."""
TABLE: Final = 4096
"""Bytes of HPACK's dynamic table: the default, and the maximum for both sides."""
MAX_STREAM: Final = 0x7FFF_FFFF
MAX_WINDOW: Final = 0x7FFF_FFFF
MOST_FRAMES: Final = 1024
"""Frames of one read, at some two microseconds each: the smallest have 9 bytes."""
FIRST_WINDOW: Final = 65_535
"""Initial flow-control window of a connection and of each stream, in bytes (§6.9.2)."""


# Length in two parts, the high one 0 for every frame allowed here; type and flags as one number; stream.
_HEAD: Final = struct.Struct(">BHHI")
_pack: Final = _HEAD.pack


class Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


# Plain integers: they are compared for every frame, and a member of an IntEnum costs four times as much.
DATA: Final = 0
HEADERS: Final = 1
PING: Final = 6
CONTINUATION: Final = 9

END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
PRIORITISED: Final = 32
PRIORITY: Final = 5
"""Bytes of a stream's priority."""

# Type and flags of a frame, as one number: below the first it is DATA.
ANY_DATA: Final = 1 << 8
_WHOLE: Final = HEADERS << 8 | END_HEADERS
WHOLE_FIELDS: Final = _WHOLE | END_STREAM
"""HEADERS that are a field block, all of it and nothing else: with or without this END_STREAM."""


class Code(IntEnum):
    """RFC 9113 §7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12


class Setting(IntEnum):
    """RFC 9113 §6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Http2Error(TlsproxyError):
    """Error of an HTTP/2 connection (RFC 9113 §5.4.1). ``reason`` is for the audit log."""

    def __init__(self, code: Code, text: str, reason: str = "http2_error") -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason


class StreamError(TlsproxyError):
    """Error of one stream (RFC 9113 §5.4.2): a RST_STREAM with this code."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Frames:
    """Splitter of a byte stream into frames: a cursor, as compiled code makes an object of each value of an iterator.

    ``data`` is what :meth:`begin` began with. ``what`` (type << 8 | flags), ``stream``, ``start`` (of the header) and
    ``end`` are those of the frame that :meth:`advance` found. ``rest`` is an incomplete frame or frames kept for later.
    ``reads`` counts reads that completed a frame. ``more``: ``rest`` may hold whole frames.
    """

    __slots__ = ("_left", "data", "end", "more", "reads", "rest", "start", "stream", "what")

    def __init__(self) -> None:
        self.data = self.rest = b""
        self.reads = self._left = 0
        self.what = self.stream = self.start = self.end = 0
        self.more = False

    @property
    def waiting(self) -> bool:
        """Whether there is the beginning of a frame, or one that was held back."""
        return bool(self.rest)

    @property
    def begun(self) -> tuple[int, int] | None:
        """(type, stream) of the frame that ``rest`` begins, as soon as its header is whole."""
        rest = self.rest
        return (rest[3], stream_of(rest)) if len(rest) >= HEADER else None

    def begin(self, data: bytes) -> None:
        """The frames of this data, behind the rest, follow. A caller that leaves them early calls :meth:`keep`."""
        self.data = self.rest + data if self.rest else data
        self.rest = b""
        self.more = False
        self.end, self._left = 0, MOST_FRAMES

    def advance(self) -> bool:
        """To the next whole frame, of at most :data:`MOST_FRAMES`; False at their end. Raises Http2Error."""
        data, start = self.data, self.end
        end = start + HEADER
        if end > len(data):
            return self._over(start)
        if not self._left:
            self.more = True
            return self._over(start)
        length = data[start + 1] << 8 | data[start + 2]
        if data[start] or length > MAX_FRAME:
            raise Http2Error(Code.FRAME_SIZE_ERROR, f"a frame of {data[start] << 16 | length} bytes")
        end += length
        if end > len(data):
            return self._over(start)
        self._left -= 1
        self.start, self.end = start, end
        self.what = data[start + KIND] << 8 | data[start + FLAGS]
        self.stream = (
            data[start + 5] << 24 | data[start + 6] << 16 | data[start + 7] << 8 | data[start + 8]
        ) & MAX_STREAM
        return True

    def _over(self, position: int) -> bool:
        if position:
            self.reads += 1
        self.rest = self.data[position:] if position else self.data
        return False

    def keep(self, position: int) -> None:
        self.rest = self.data[position:]

    def add(self, data: bytes) -> None:
        """Appends data for a later :meth:`cut`."""
        self.rest += data


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _pack(0, len(payload), kind << 8 | flags, stream & MAX_STREAM) + payload


def stream_of(frame: bytes) -> int:
    return int.from_bytes(frame[5:HEADER], "big") & MAX_STREAM


def reset(stream: int, code: Code) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def window_update(stream: int, size: int) -> bytes:
    """WINDOW_UPDATE; ``stream`` 0 is the connection. Empty for a size of 0, which is an error (§6.9)."""
    return frame(Kind.WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big")) if size else b""


def goaway(last: int, code: Code, text: str = "") -> bytes:
    return frame(Kind.GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode())


def headers(stream: int, block: bytes, flags: int) -> bytes:
    """HEADERS, and CONTINUATION as far as needed, with a field block. Only END_STREAM of ``flags`` is used."""
    flags &= END_STREAM
    size = len(block)
    if size <= MAX_FRAME:
        return _pack(0, size, _WHOLE | flags, stream) + block
    pieces = [block[i : i + MAX_FRAME] for i in range(0, len(block), MAX_FRAME)]
    middle = (frame(CONTINUATION, 0, stream, piece) for piece in pieces[1:-1])
    return frame(HEADERS, flags, stream, pieces[0]) + b"".join(
        (*middle, frame(CONTINUATION, END_HEADERS, stream, pieces[-1]))
    )


def data(stream: int, content: bytes, *, end: bool) -> bytes:
    """DATA with at most :data:`MAX_FRAME` bytes."""
    return frame(DATA, END_STREAM if end else 0, stream, content)


def unpadded(flags: int, payload: bytes) -> bytes:
    """Payload of DATA without its padding (§6.1). Raises Http2Error.

    Flags that DATA does not define are ignored (§4.1). Example: with PRIORITY's flag set, no priority is skipped, else
    gateway and upstream would read different bytes.
    """
    return _within(flags & PADDED, payload) if flags & PADDED else payload


def fragment(flags: int, payload: bytes) -> bytes:
    """Fragment of a field block in HEADERS, without padding and priority (§6.2). Raises Http2Error."""
    return _within(flags, payload) if flags & (PADDED | PRIORITISED) else payload


def _within(flags: int, payload: bytes) -> bytes:
    """Payload without padding and priority.

    Too short for its flags is FRAME_SIZE_ERROR (§4.2), padded beyond its end is PROTOCOL_ERROR (§6.1, §6.2).
    """
    begin = (1 if flags & PADDED else 0) + (PRIORITY if flags & PRIORITISED else 0)
    end = len(payload)
    if begin > end:
        raise Http2Error(Code.FRAME_SIZE_ERROR, f"a frame of {end} bytes without room for its padding or priority")
    if flags & PADDED:
        end -= payload[0]
        if begin > end:
            raise Http2Error(Code.PROTOCOL_ERROR, "padding that is longer than its frame")
    return payload[begin:end]


def settings(values: Mapping[int, int]) -> bytes:
    payload = b"".join(name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values.items())
    return frame(Kind.SETTINGS, 0, 0, payload)


SETTINGS_ACK: Final = frame(Kind.SETTINGS, ACK, 0)
_MOST_SETTINGS: Final = 32
"""Settings in one frame: six are defined."""


def parse_settings(payload: bytes) -> dict[int, int]:
    """Identifier → value, the last of each. Raises Http2Error."""
    if len(payload) % 6:
        raise Http2Error(Code.FRAME_SIZE_ERROR, "a SETTINGS frame of a broken length")
    if len(payload) > _MOST_SETTINGS * 6:
        raise Http2Error(Code.ENHANCE_YOUR_CALM, "a SETTINGS frame with too many settings", "flood_settings")
    values = {
        int.from_bytes(payload[i : i + 2], "big"): int.from_bytes(payload[i + 2 : i + 6], "big")
        for i in range(0, len(payload), 6)
    }
    if values.get(Setting.ENABLE_PUSH, 0) > 1:
        raise Http2Error(Code.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is 0 or 1")
    if values.get(Setting.INITIAL_WINDOW_SIZE, 0) > MAX_WINDOW:
        raise Http2Error(Code.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE is too large")
    if not MAX_FRAME <= values.get(Setting.MAX_FRAME_SIZE, MAX_FRAME) < 1 << 24:
        raise Http2Error(Code.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE is out of bounds")
    return values


def kept(values: Mapping[int, int], names: Iterable[int]) -> dict[int, int]:
    """Settings with these ``names``: those that a relay passes to its other side."""
    return {name: values[name] for name in names if name in values}


_SIZES: Final[dict[int, int]] = {Kind.PRIORITY: PRIORITY, Kind.RST_STREAM: 4, Kind.PING: 8, Kind.WINDOW_UPDATE: 4}
_ON_CONNECTION: Final = frozenset((Kind.SETTINGS, Kind.PING, Kind.GOAWAY))
_ON_STREAM: Final = frozenset((Kind.DATA, Kind.HEADERS, Kind.PRIORITY, Kind.RST_STREAM, Kind.CONTINUATION))
_GOAWAY: Final = 8


def check(kind: int, flags: int, stream: int, size: int) -> None:
    """Checks a frame by its header alone (§6). Raises Http2Error."""
    if stream == 0 and kind in _ON_STREAM:
        raise Http2Error(Code.PROTOCOL_ERROR, f"{Kind(kind).name} without a stream")
    if stream and kind in _ON_CONNECTION:
        raise Http2Error(Code.PROTOCOL_ERROR, f"{Kind(kind).name} on a stream")
    wrong = size != _SIZES.get(kind, size) if kind in _SIZES else kind == Kind.GOAWAY and size < _GOAWAY
    if wrong or (kind == Kind.SETTINGS and flags & ACK and size):
        raise Http2Error(Code.FRAME_SIZE_ERROR, f"{Kind(kind).name} of {size} bytes")
