"""A JSON text → the one value that every reader sees in it, or a refusal.

A body that is decided on and then forwarded as it came is read twice: here, and by serde in Qdrant. What readers are
known to see differently (RFC 8259 §4, §6, §8.1) is refused: a key given twice, an integer that does not fit into 64
bits, a lone surrogate, a byte order mark, an encoding other than UTF-8, ``NaN``, a number that is no double; and a
nesting deeper than serde goes, so that whoever walks the value need not count.

It is read by orjson, which refuses most of that by itself and takes the last of two equal keys. Those are found without
reading the text again: a key that was given twice is missing in the value, so that the text and the value written anew
differ in their number of pairs. That takes a quarter of the time of `json` with a pairs hook.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from tlsproxy.errors import BadRequest
from tlsproxy.wire.steps import Steps

MAX_DEPTH: Final = 127
"""Nested arrays and objects; serde_json refuses the 128th."""
MAX_CONTAINERS: Final = 500_000
"""Arrays and objects, each of which takes some 60 to 230 bytes of memory however few of the text it is."""
MAX_STRINGS: Final = 1_000_000
"""Keys too. They are taken out of the text one by one: so many take up to a second."""
MAX_VALUES: Final = 4_000_000
"""More than 32 MiB of vectors have."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_SOME_STRINGS = re.compile(rb'[^"]*(?:%b[^"]*){0,5000}' % _STRING.pattern)
_SHORT: Final = 1 << 16
"""A text of so many bytes is read in one step; no step of a longer one takes more than orjson does."""
_WINDOW: Final = 1 << 17
"""Bytes of it that are counted, or searched for strings, in one step."""
_PIECE: Final = 1 << 14
"""Bytes of it that are looked at in one step, string by string and bracket by bracket."""
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ZERO_FOR_DIGIT = bytes.maketrans(b"123456789", b"0" * 9)
_SUSPICIOUS = b"0" * 19  # 2**63 has 19 digits
_LONG_INTEGER = re.compile(rb"(?<![0-9.eE+\-])-?[0-9]{19,}(?![0-9.eE])")
_INTEGERS = range(-(1 << 63), 1 << 64)
_LONGEST_INTEGER: Final = 20
_BETWEEN_NUMBERS = re.compile(rb"[^0-9.eE+\-]")


def reading_json(text: bytes) -> Steps[Any]:
    """Raises :class:`BadRequest`, in the words in which Qdrant refuses a body."""
    yield from _counting(text)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _refused(str(error)) from None
    if len(text) > _SHORT:
        yield
    bare = yield from _without_strings(text)
    pairs = yield from _looking_at(bare)
    if pairs:
        again = orjson.dumps(value)
        if len(text) > _SHORT:
            yield
        anew = yield from _without_strings(again)
        if anew.count(b":") != pairs:
            raise _refused("duplicate field")
    if len(text) > _SHORT:
        yield
    return value


def _counting(text: bytes) -> Steps[None]:
    containers = strings = values = 0
    for begin in range(0, len(text), _WINDOW):
        end = begin + _WINDOW
        containers += text.count(b"[", begin, end) + text.count(b"{", begin, end)
        strings += text.count(b'"', begin, end)
        values += text.count(b",", begin, end)
        if containers > MAX_CONTAINERS or strings > 2 * MAX_STRINGS or values > MAX_VALUES:
            raise _refused("too many values")
        if end < len(text):
            yield


def _looking_at(bare: bytes) -> Steps[int]:
    """How deep it goes, and how large its integers are. Returns the number of its pairs."""
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
            yield
    return pairs


def _without_strings(text: bytes) -> Steps[bytes]:
    """Of a text that is known to be JSON: these patterns are quadratic in one whose last string has no end."""
    if len(text) <= _SHORT:
        return _STRING.sub(b"", text)
    bare, at = bytearray(), 0
    while at < len(text):
        yield
        some = _SOME_STRINGS.match(text, at, at + _WINDOW)
        if some is not None and some.end() > at:
            bare += _STRING.sub(b"", some.group())
            at = some.end()
        else:  # it begins with a string that is longer than that
            at = _end_of_string(text, at + 1)
    return bytes(bare)


def _end_of_string(text: bytes, at: int) -> int:
    """Behind the quote that ends the string whose content is at ``at``: the first that no backslash escapes."""
    while True:
        quote = text.index(b'"', at)
        before = text[at:quote]
        at = quote + 1
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return at


def _depth(piece: bytes, depth: int) -> int:
    """Behind it. Raises BadRequest where it goes too deep."""
    for bracket in piece.translate(None, _ALL_BUT_BRACKETS):
        if bracket in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _refused("recursion limit exceeded")
        else:
            depth -= 1
    return depth


def _integers_fit(bare: bytes) -> bool:
    """Of a larger one serde and orjson make a double, others do not."""
    if _SUSPICIOUS not in bare.translate(_ZERO_FOR_DIGIT):
        return True
    found = (match.group() for match in _LONG_INTEGER.finditer(bare))
    return all(len(digits.lstrip(b"-")) <= _LONGEST_INTEGER and int(digits) in _INTEGERS for digits in found)


def _refused(text: str) -> BadRequest:
    return BadRequest(f"Format error in JSON body: {text}")
