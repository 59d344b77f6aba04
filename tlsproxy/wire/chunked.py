"""The chunked transfer coding (RFC 9112 §7.1), forwarded as it comes and followed byte by byte.

Chunk extensions are refused: no client of Qdrant sends them, and parsers disagree about them. Trailer fields that
frame, route or identify (RFC 9110 §6.5.1) are removed: an `api-key` in the trailers must not reach the upstream.
"""

from __future__ import annotations

import re
from typing import Final

from tlsproxy.wire.http1 import is_identity

MAX_TRAILERS: Final = 8192
CHUNKS: Final = 512
"""Most chunks that one call follows, at half a microsecond each: a chunk may be a single byte of content."""

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_SIZE_LINE_MAX: Final = 10
_SIZE_LINE_BEGUN = re.compile(rb"[0-9A-Fa-f]{1,8}\r?")
_CLOSING: Final = b"\r\n0\r\n\r\n"
"""The end of a body behind the content of its last chunk, without trailers."""
LAST_CHUNK: Final = b"0\r\n\r\n"
_NAME: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]*"
_TRAILERS = re.compile(rb"(?:%b:%b\r\n)*\r\n" % (_NAME, _VALUE))
_TRAILERS_BEGUN = re.compile(rb"(?:%b:%b\r\n)*(?:\r|%b(?::%b\r?)?)?" % (_NAME, _VALUE, _NAME, _VALUE))
_TRAILER = re.compile(rb"([^:\r\n]+):([^\r\n]*)\r\n")
_NEVER_TRAILERS = re.compile(
    rb"host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|expect|content-.*|set-cookie|cookie|www-.*|"
    rb"proxy-.*|cache-control|range|if-.*|vary|date|location|retry-after|age|expires|max-forwards|pragma"
)


class ChunkedError(ValueError):
    """A violation of the chunked coding; its connection cannot be used any more."""


class ChunkedBody:
    """Follows one body. ``done`` turns true at its end; ``size`` counts the bytes of its content.

    A violation is reported at the byte that makes it one: a size line that begins `1z` at the `z`, without waiting for
    the end of the line. ``content``: a buffer that collects the content without its framing, if it is needed.
    """

    __slots__ = ("_collected", "_partial", "_remaining", "_trailers", "done", "size")

    def __init__(self, content: bytearray | None = None) -> None:
        self._collected = content
        self.done = False
        self.size = 0
        self._remaining = 0  # bytes of the current chunk, its CRLF included
        self._partial = b""  # an incomplete size line or trailer section
        self._trailers = False

    def forget(self) -> None:
        """Stops collecting the content."""
        self._collected = None

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        """Consumes the body's bytes from ``start`` on: (the bytes to forward, the position in ``data`` behind them).

        That is the end of ``data``, unless the body ends before it, or :data:`CHUNKS` were followed. Raises
        :class:`ChunkedError`.
        """
        end = len(data)
        if end - start <= self._remaining - 2:  # the common case: the middle of a chunk
            content = data[start:]
            self._remaining -= end - start
            self.size += end - start
            if self._collected is not None:
                self._collected += content
            return content, end
        if data.endswith(_CLOSING) and self._is_last(data, start):
            return data[start:], end
        position = self._follow(data, start)
        if not self._trailers:
            return data[start:position], position
        return self._trailer_section(data, start, position)

    def _follow(self, data: bytes, position: int) -> int:
        """Follows chunks up to the trailers, the end of ``data``, or :data:`CHUNKS`; returns the position."""
        end, match, collected = len(data), _SIZE_LINE.match, self._collected
        for _ in range(CHUNKS):
            if position >= end or self._trailers:
                break
            if self._remaining:
                position = self._content(data, position)
                continue
            line = match(data, position) if not self._partial else None
            if line is not None:  # perhaps with its whole chunk
                begin = line.end()
                stop = begin + int(line[1], 16)
                if stop > begin and data[stop : stop + 2] == b"\r\n":
                    if collected is not None:
                        collected += data[begin:stop]
                    self.size += stop - begin
                    position = stop + 2
                    continue
            position = self._size_line(data, position)
        return position

    def _is_last(self, data: bytes, start: int) -> bool:
        """Consumes a chunk and the end of the body by one match, a third of the time: most responses are just that."""
        if self._remaining or self._partial or self._trailers:
            return False
        match = _SIZE_LINE.match(data, start)
        if match is None:
            return False
        begin, size = match.end(), int(match[1], 16)
        if not size or begin + size + len(_CLOSING) != len(data):
            return False
        self.size += size
        if self._collected is not None:
            self._collected += data[begin : begin + size]
        self._trailers = self.done = True
        return True

    def _content(self, data: bytes, position: int) -> int:
        step = min(self._remaining, len(data) - position)
        content = max(0, min(step, self._remaining - 2))
        self.size += content
        if self._collected is not None:
            self._collected += data[position : position + content]
        ending = data[position + content : position + step]
        self._remaining -= content
        if ending and not b"\r\n"[2 - self._remaining :].startswith(ending):
            raise ChunkedError("a chunk does not end where its size says")
        self._remaining -= len(ending)
        return position + step

    def _size_line(self, data: bytes, position: int) -> int:
        newline = data.find(b"\n", position, position + _SIZE_LINE_MAX)
        stop = min(len(data), position + _SIZE_LINE_MAX) if newline < 0 else newline + 1
        line = self._partial + data[position:stop]
        if newline < 0:
            if _SIZE_LINE_BEGUN.fullmatch(line) is None:
                raise ChunkedError("a malformed chunk size")
            self._partial = line
            return stop
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise ChunkedError("a malformed chunk size")
        self._partial = b""
        size = int(match.group(1), 16)
        self._remaining = size + 2 if size else 0
        self._trailers = not size
        return stop

    def _trailer_section(self, data: bytes, start: int, position: int) -> tuple[bytes, int]:
        """Buffers the trailers until they are complete, since they are filtered by name."""
        before, section = len(self._partial), self._partial + data[position : position + MAX_TRAILERS]
        whole = _TRAILERS.match(section, 0, MAX_TRAILERS)
        if whole is None:
            if _TRAILERS_BEGUN.fullmatch(section, 0, MAX_TRAILERS) is None:
                raise ChunkedError("malformed trailers")
            if len(section) >= MAX_TRAILERS:
                raise ChunkedError("trailers are too large")
            self._partial = section
            return data[start:position], len(data)
        stop = whole.end()
        self.done = True
        fields = [
            b"%b:%b\r\n" % (name, value)
            for name, value in _TRAILER.findall(section, 0, stop)
            if not is_identity(name.lower()) and _NEVER_TRAILERS.fullmatch(name.lower()) is None
        ]
        return data[start:position] + b"".join(fields) + b"\r\n", position + stop - before


def chunk(data: bytes) -> bytes:
    """The data as one chunk; nothing without any, as an empty chunk is the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def in_chunks(content: bytes) -> bytes:
    """A whole body in the chunked coding."""
    return chunk(content) + LAST_CHUNK
