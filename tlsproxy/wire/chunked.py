"""The chunked transfer coding (RFC 9112 §7.1), relayed as it comes and followed byte by byte.

Chunk extensions are refused: nobody here sends them, and parsers disagree about them. Trailer fields are re-stated:
those that frame, route or identify (RFC 9110 §6.5.1) are dropped, so that none enters by the back door.
"""

from __future__ import annotations

import re
from typing import Final

from tlsproxy.wire.http1 import is_identity

MAX_TRAILERS: Final = 8192
CHUNKS: Final = 512
"""Chunks that are followed in one go, at half a microsecond each: a byte of content can be one."""

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_SIZE_LINE_MAX: Final = 10
_SIZE_LINE_BEGUN = re.compile(rb"[0-9A-Fa-f]{1,8}\r?")
_CLOSING: Final = b"\r\n0\r\n\r\n"
"""What follows the content of the last chunk, where there are no trailers."""
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
    """Not the chunked coding; the connection it came on cannot be used any more."""


class ChunkedBody:
    """Follows one body. ``done`` turns true at its end; ``size`` counts the bytes of the content itself.

    What is malformed is refused with the byte that makes it so: nobody waits for the rest of what cannot be one.

    ``content``, where it is given, gets these bytes, without what is around them.
    """

    __slots__ = ("_content_to", "_held", "_left", "_trailers", "done", "size")

    def __init__(self, content: bytearray | None = None) -> None:
        self._content_to = content
        self.done = False
        self.size = 0
        self._left = 0  # of the current chunk, its CRLF included
        self._held = b""  # the beginning of a size line, or of the trailer section
        self._trailers = False

    def forget(self) -> None:
        """Nobody needs its content any more."""
        self._content_to = None

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        """Takes what belongs to the body from ``start`` on: (the bytes to forward, where that ends in ``data``).

        That is the end of ``data``, unless the body is done, or :data:`CHUNKS` were followed. Raises
        :class:`ChunkedError`.
        """
        end = len(data)
        if end - start <= self._left - 2:  # the common case: the middle of a chunk
            content = data[start:]
            self._left -= end - start
            self.size += end - start
            if self._content_to is not None:
                self._content_to += content
            return content, end
        if data.endswith(_CLOSING) and self._is_last(data, start):
            return data[start:], end
        position = self._follow(data, start)
        if not self._trailers:
            return data[start:position], position
        return self._trailer_section(data, start, position)

    def _follow(self, data: bytes, position: int) -> int:
        """Up to the trailers, the end of ``data``, or so many chunks."""
        end, match, kept = len(data), _SIZE_LINE.match, self._content_to
        for _ in range(CHUNKS):
            if position >= end or self._trailers:
                break
            if self._left:
                position = self._content(data, position)
                continue
            line = match(data, position) if not self._held else None
            if line is not None:  # and all of its chunk?
                begin = line.end()
                stop = begin + int(line[1], 16)
                if stop > begin and data[stop : stop + 2] == b"\r\n":
                    if kept is not None:
                        kept += data[begin:stop]
                    self.size += stop - begin
                    position = stop + 2
                    continue
            position = self._size_line(data, position)
        return position

    def _is_last(self, data: bytes, start: int) -> bool:
        """Takes what is one chunk and the end, as most answers are in whole: a third of the time, by one match."""
        if self._left or self._held or self._trailers:
            return False
        match = _SIZE_LINE.match(data, start)
        if match is None:
            return False
        begin, size = match.end(), int(match[1], 16)
        if not size or begin + size + len(_CLOSING) != len(data):
            return False
        self.size += size
        if self._content_to is not None:
            self._content_to += data[begin : begin + size]
        self._trailers = self.done = True
        return True

    def _content(self, data: bytes, position: int) -> int:
        step = min(self._left, len(data) - position)
        content = max(0, min(step, self._left - 2))
        self.size += content
        if self._content_to is not None:
            self._content_to += data[position : position + content]
        ending = data[position + content : position + step]
        self._left -= content
        if ending and not b"\r\n"[2 - self._left :].startswith(ending):
            raise ChunkedError("a chunk does not end where its size says")
        self._left -= len(ending)
        return position + step

    def _size_line(self, data: bytes, position: int) -> int:
        newline = data.find(b"\n", position, position + _SIZE_LINE_MAX)
        stop = min(len(data), position + _SIZE_LINE_MAX) if newline < 0 else newline + 1
        line = self._held + data[position:stop]
        if newline < 0:
            if _SIZE_LINE_BEGUN.fullmatch(line) is None:
                raise ChunkedError("a malformed chunk size")
            self._held = line
            return stop
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise ChunkedError("a malformed chunk size")
        self._held = b""
        size = int(match.group(1), 16)
        self._left = size + 2 if size else 0
        self._trailers = not size
        return stop

    def _trailer_section(self, data: bytes, start: int, position: int) -> tuple[bytes, int]:
        """Held back until it is whole, since its fields are judged by name."""
        before, section = len(self._held), self._held + data[position : position + MAX_TRAILERS]
        whole = _TRAILERS.match(section, 0, MAX_TRAILERS)
        if whole is None:
            if _TRAILERS_BEGUN.fullmatch(section, 0, MAX_TRAILERS) is None:
                raise ChunkedError("malformed trailers")
            if len(section) >= MAX_TRAILERS:
                raise ChunkedError("trailers are too large")
            self._held = section
            return data[start:position], len(data)
        stop = whole.end()
        self.done = True
        kept = [
            b"%b:%b\r\n" % (name, value)
            for name, value in _TRAILER.findall(section, 0, stop)
            if not is_identity(name.lower()) and _NEVER_TRAILERS.fullmatch(name.lower()) is None
        ]
        return data[start:position] + b"".join(kept) + b"\r\n", position + stop - before


def in_chunks(content: bytes) -> bytes:
    """A whole body, framed."""
    return (b"%x\r\n%b\r\n" % (len(content), content) if content else b"") + b"0\r\n\r\n"
