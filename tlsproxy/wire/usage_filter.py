"""Removes Qdrant's `usage` from a JSON response that arrives in pieces.

It is a small member of the outermost object, as all members but `result` are. So it is near the beginning, behind
complete members only, or near the end, followed by complete members and the last brace: `…],"usage":{…},"time":0.1}`.
Such an end cannot begin within a nested object, which would need member brace, nor within a string, which would need
member quote. The part between, perhaps many megabytes, is neither searched nor buffered.
"""

from __future__ import annotations

import re
from typing import Final

REACH: Final = 16_384
"""Bytes at the beginning and at the end that are searched."""

_NAME: Final = b'"usage"'
_BLANK: Final = b" \t\r\n"
_SPACE: Final = rb"[ \t\r\n]*+"
_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'


def _nested(depth: int) -> bytes:
    """A pattern of a whole array or object that nests at most so deep."""
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
    """Filters one response: :meth:`feed` returns the bytes that may be forwarded so far, :meth:`close` the rest."""

    __slots__ = ("_begun", "_tail")

    def __init__(self) -> None:
        self._begun = False
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        data = self._tail + data
        if len(data) < 2 * REACH:
            self._tail = data
            return b""
        if not self._begun:
            self._begun = True
            data = _without_early(data)
        self._tail = data[-REACH:]
        return data[:-REACH]

    def close(self) -> bytes:
        data, self._tail = _without_late(self._tail), b""
        return data if self._begun else _without_early(data)


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
        member = _MEMBER.match(data, position)
        position = None if member is None else member.end()
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
    """The data without a member and one of the commas around it."""
    before, after = data[:start].rstrip(_BLANK), data[end:]
    if before.endswith(b","):
        return before[:-1] + after
    return before + after.removeprefix(b",")
