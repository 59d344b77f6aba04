"""A JSON parser that accepts only texts in which every reader sees the same value.

A body that is decided on and forwarded unchanged is parsed twice: here, and by serde in Qdrant. Texts that parsers are
known to read differently (RFC 8259 §4, §6, §8.1) are refused: a duplicate key, an integer beyond 64 bits, a lone
surrogate, a byte order mark, an encoding other than UTF-8, ``NaN``, a number that is no double; and nesting deeper than
serde's limit, so that no code that walks the value need count.

orjson refuses most of these itself, but keeps the last of two duplicate keys. They are detected by counting: the value
of `{"a":1,"a":2}` has one pair, its text has two colons outside of strings. That takes a quarter of the time of `json`
with a pairs hook.

Parsing takes memory, up to fifty times the text's size (`[[[[…`). An upper bound, from the length and the characters
that begin or separate values, is asked for before.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from tlsproxy.errors import BadRequest
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps

MAX_DEPTH: Final = 127
"""Nested arrays and objects; serde_json refuses the 128th."""
MAX_CONTAINERS: Final = 500_000
"""Arrays and objects."""
MAX_STRINGS: Final = 1_000_000
"""Keys included. They are cut out of the text one by one: so many take up to a second."""
MAX_VALUES: Final = 4_000_000
"""More than 32 MiB of vectors contain."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_SOME_STRINGS = re.compile(rb'[^"]*(?:%b[^"]*){0,5000}' % _STRING.pattern)
_TINY: Final = 4096
"""A text of so many bytes is parsed without asking for memory: some 200 KB."""
_SHORT: Final = 1 << 16
"""A text of so many bytes is parsed in one step; the longest step of a longer one is orjson's."""
_WINDOW: Final = 1 << 17
"""Bytes of a longer text that one step counts, or searches for strings."""
_PIECE: Final = 1 << 14
"""Bytes of a longer text that one step walks, bracket by bracket."""
_ALL_BUT_MARKS = bytes(set(range(256)) - set(b'[{",'))
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ZERO_FOR_DIGIT = bytes.maketrans(b"123456789", b"0" * 9)
_SUSPICIOUS = b"0" * 19  # 2**63 has 19 digits
_LONG_INTEGER = re.compile(rb"(?<![0-9.eE+\-])-?[0-9]{19,}(?![0-9.eE])")
_INTEGERS = range(-(1 << 63), 1 << 64)
_LONGEST_INTEGER: Final = 20
_BACKSLASH: Final = ord("\\")
_BETWEEN_NUMBERS = re.compile(rb"[^0-9.eE+\-]")


Marks = tuple[int, int, int, int]
"""The numbers of `[`, `{`, `"` and `,` in a text."""


def reading_json(text: Content, memory: int = 0) -> Steps[Any]:
    """Raises :class:`BadRequest` with Qdrant's texts. ``memory``: bytes that the caller has in use already."""
    marks = yield from counting(text)
    lists, objects, quotes, commas = marks
    if lists + objects > MAX_CONTAINERS or quotes > 2 * MAX_STRINGS or commas > MAX_VALUES:
        raise _refused("too many values")
    if len(text) > _TINY:
        yield memory + memory_of(text, marks)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _refused(str(error)) from None
    if len(text) > _SHORT:
        yield None
    yield from _checking(text, value)
    return value


def _checking(text: Content, value: Any) -> Steps[None]:
    """Raises :class:`BadRequest` where another parser could see another value in the text."""
    pairs = yield from _checking_numbers((yield from _without_strings(text)))
    if pairs:
        again = orjson.dumps(value)
        if len(text) > _SHORT:
            yield None
        remaining = yield from _without_strings(again)
        if remaining.count(b":") != pairs:
            raise _refused("duplicate field")
    if len(text) > _SHORT:
        yield None


def counting(text: Content) -> Steps[Marks]:
    lists = objects = commas = total = 0
    for begin in range(0, len(text), _WINDOW):
        end = begin + _WINDOW
        marks = text[begin:end].translate(None, _ALL_BUT_MARKS)  # counts in all of the text take twice as long
        lists += marks.count(b"[")
        objects += marks.count(b"{")
        commas += marks.count(b",")
        total += len(marks)
        if end < len(text):
            yield None
    return lists, objects, total - lists - objects - commas, commas


def memory_of(text: Content, marks: Marks) -> int:
    """Most bytes of memory that parsing takes, beside the text itself.

    Measured with orjson 3.11 on CPython 3.11: a copy of the text and 16 bytes for each value while it parses; then the
    strings' content and 72 bytes for each, 80 for an array, 200 for an object and 40 for each of its keys, 32 for a
    number. Serialising the value takes no more than the parser did. A string with one character beyond ASCII may take
    four bytes for each of its characters, and has a copy in UTF-8.
    """
    lists, objects, quotes, commas = marks
    plain = text.isascii() and (b"\\" not in text or b"\\u" not in text)  # one byte is found faster
    copies = 1 if not (quotes or commas) else 2 if plain else 7
    return copies * len(text) + 100 * lists + 220 * objects + 64 * quotes + 48 * commas


def _checking_numbers(bare: Content) -> Steps[int]:
    """Checks the depth and the integers of a text without its strings; returns its number of pairs."""
    begin = depth = pairs = 0
    while begin < len(bare):
        between = _BETWEEN_NUMBERS.search(bare, begin + _PIECE)
        end = between.end() if between is not None else len(bare)
        piece = bare[begin:end]
        depth = _depth(piece, depth)
        if not _integers_fit(piece):
            raise _refused("number out of range")
        pairs += piece.count(b":")
        begin = end
        if begin < len(bare):
            yield None
    return pairs


def _without_strings(text: Content) -> Steps[Content]:
    """The text without its strings. It must be valid JSON: the patterns are quadratic in an unterminated string."""
    if len(text) <= _SHORT:
        return _STRING.sub(b"", text)
    bare, at = bytearray(), 0
    while at < len(text):
        yield None
        some = _SOME_STRINGS.match(text, at, at + _WINDOW)
        if some is not None and some.end() > at:
            bare += _STRING.sub(b"", some.group())
            at = some.end()
        else:  # a string that is longer than the window
            at = _end_of_string(text, at + 1)
    return bare


def _end_of_string(text: Content, at: int) -> int:
    """The position behind the first quote from ``at`` on that no backslash escapes."""
    while True:
        quote = first = text.index(b'"', at)
        while first > at and text[first - 1] == _BACKSLASH:
            first -= 1
        at = quote + 1
        if (quote - first) % 2 == 0:
            return at


def _depth(piece: Content, depth: int) -> int:
    """The depth behind the piece. Raises BadRequest where it is too deep."""
    for bracket in piece.translate(None, _ALL_BUT_BRACKETS):
        if bracket in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _refused("recursion limit exceeded")
        else:
            depth -= 1
    return depth


def _integers_fit(bare: Content) -> bool:
    """Whether all integers fit into 64 bits: serde and orjson make doubles of larger ones, other parsers do not."""
    if _SUSPICIOUS not in bare.translate(_ZERO_FOR_DIGIT):
        return True
    found = (match.group() for match in _LONG_INTEGER.finditer(bare))
    return all(len(digits.lstrip(b"-")) <= _LONGEST_INTEGER and int(digits) in _INTEGERS for digits in found)


def _refused(text: str) -> BadRequest:
    return BadRequest(f"Format error in JSON body: {text}")
