"""Qdrant's `usage`, cut out of a JSON answer that comes in pieces.

It is a small member of the object that is the whole answer, and all others but `result` are small, too. So it stands
near the beginning, after whole members only, or near the end, where whole members only and the last brace follow: these
could not begin in something nested, which would need another brace, or in a string, which would need another quote.
What is in between, perhaps many megabytes, is not looked at and not kept.
"""

from __future__ import annotations

import re
from typing import Final

REACH: Final = 16_384
"""Bytes from the beginning and from the end in which it is looked for."""

_NAME: Final = b'"usage"'
_BLANK: Final = b" \t\r\n"
_SPACE: Final = rb"[ \t\r\n]*+"
_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'


def _nested(depth: int) -> bytes:
    """A whole array or object, at most so deep."""
    inner = rb'[^\[\]{}"]++|' + _STRING
    if depth > 1:
        inner += b"|" + _nested(depth - 1)
    return rb"[\[{](?:%b)*+[\]}]" % inner


_VALUE: Final = _SPACE.join((b":", rb'(?:%b|%b|[^\[\]{}", \t\r\n]++)' % (_STRING, _nested(5)), b""))
_OPENED: Final = re.compile(rb"%b\{%b" % (_SPACE, _SPACE))
_USAGE: Final = re.compile(_SPACE.join((_NAME, _VALUE)), re.DOTALL)
_MEMBER: Final = re.compile(_SPACE.join((_STRING, _VALUE)) + b"," + _SPACE, re.DOTALL)
_THE_END: Final = re.compile(rb"(?:,%b%b%b%b)*+\}%b\Z" % (_SPACE, _STRING, _SPACE, _VALUE, _SPACE), re.DOTALL)


class UsageFilter:
    """One answer: :meth:`feed` gives what may go on of all that has come, :meth:`close` the rest."""

    __slots__ = ("_began", "_held")

    def __init__(self) -> None:
        self._began = False
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data = self._held + data
        if len(data) < 2 * REACH:
            self._held = data
            return b""
        if not self._began:
            self._began = True
            data = _without_early(data)
        self._held = data[-REACH:]
        return data[:-REACH]

    def close(self) -> bytes:
        data, self._held = _without_late(self._held), b""
        return data if self._began else _without_early(data)


def _without_early(data: bytes) -> bytes:
    """Cuts `usage` out near the beginning, where only whole members precede it."""
    opened = _OPENED.match(data)
    if opened is None or data.find(_NAME, 0, REACH) < 0:
        return data
    position: int | None = opened.end()
    while position is not None and position < REACH:
        found = _USAGE.match(data, position)
        if found is not None:
            return _without(data, position, found.end())
        another = _MEMBER.match(data, position)
        position = None if another is None else another.end()
    return data


def _without_late(data: bytes) -> bytes:
    """Cuts `usage` out near the end, where only whole members follow it."""
    position = data.rfind(_NAME)
    while position > 0:
        found = _USAGE.match(data, position) if data[:position].rstrip(_BLANK)[-1:] in (b",", b"{") else None
        if found is not None and _THE_END.match(data, found.end()) is not None:
            return _without(data, position, found.end())
        position = data.rfind(_NAME, 0, position)
    return data


def _without(data: bytes, start: int, end: int) -> bytes:
    """And without one of the commas around it."""
    before, after = data[:start].rstrip(_BLANK), data[end:]
    if before.endswith(b","):
        return before[:-1] + after
    return before + after.removeprefix(b",")
