"""JSON texts without their long vectors: enough of a search to decide which collections it names.

`{"vector":[0.1, …],"with_lookup":"x"}` becomes `{"vector":[],"with_lookup":"x"}`. An array without a string, an object
or an array in it can name nothing, and no reader can place what follows it elsewhere. So long ones are emptied before
the text is parsed: a search of 13 KB takes 5 µs instead of 160. Their content is not validated; Qdrant refuses what is
no JSON. Where the value is changed and written anew, marks stand for the contents, which are put back afterwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tlsproxy.wire.content_coding import Content

LONG: Final = 256
"""Bytes. Shorter arrays are left as they are."""
MOST: Final = 64
"""Most strings and arrays that are looked at, each perhaps as far as the end of the text; the rest stays as it is."""

_LITTLE: Final = 65_536
"""Bytes of a text that is copied in parts: of little, a copy costs less than a view of it."""

_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def long_arrays(text: Content, long: int = LONG, most: int = MOST) -> list[tuple[int, int]]:
    """Offsets (start, end) of the contents of each long array of scalars.

    Without them, a text that is no JSON may become some: Qdrant refuses it.
    """
    found = []
    bracket, quote = text.find(b"["), text.find(b'"')
    for _ in range(most):
        if bracket < 0:
            break
        if 0 <= quote < bracket:  # brackets within strings do not count
            string = _STRING.match(text, quote)
            if string is None:
                break
            place = string.end()
            quote = text.find(b'"', place)
            if bracket < place:
                bracket = text.find(b"[", place)
            continue
        begin, end = bracket + 1, text.find(b"]", bracket)
        bracket = text.find(b"[", begin)
        if end - begin >= long and not 0 <= quote < end and not 0 <= bracket < end and text.find(b"{", begin, end) < 0:
            found.append((begin, end))
    return found


def _kept(text: Content, parts: list[tuple[int, int]]) -> list[Content | memoryview]:
    """The texts before, between and behind the parts."""
    view = text if len(text) <= _LITTLE else memoryview(text)
    kept, begin = list[Content | memoryview](), 0
    for start, end in parts:
        kept.append(view[begin:start])
        begin = end
    kept.append(view[begin:])
    return kept


def without(text: Content, parts: list[tuple[int, int]]) -> Content:
    """The text without these parts; the same object where there are none."""
    return b"".join(_kept(text, parts)) if parts else text


_MARKS: Final = tuple(b"-77%017d" % number for number in range(MOST))
"""Integers of 64 bits."""


def marked(text: Content, parts: list[tuple[int, int]]) -> Content:
    """The text with a number in place of each of at most :data:`MOST` parts; the same object where there are none."""
    if not parts:
        return text
    kept = _kept(text, parts)
    rest = [kept[0]]
    for number in range(len(parts)):
        rest.append(_MARKS[number])
        rest.append(kept[number + 1])
    return b"".join(rest)


@dataclass(frozen=True, slots=True)
class Template:
    """A text that was made of a marked one: ``begin``, then each part by its number, with the text behind it."""

    begin: bytes
    parts: tuple[tuple[int, bytes], ...]

    def filled(self, original: Content, parts: list[tuple[int, int]]) -> bytes:
        """The text with the parts of an original in their places again."""
        view, rest = memoryview(original), list[bytes | memoryview]((self.begin,))
        for number, text in self.parts:
            start, end = parts[number]
            rest.append(view[start:end])
            rest.append(text)
        return b"".join(rest)


def template_of(text: bytes, count: int) -> Template:
    """Raises ValueError where one of ``count`` marks is not there, or another number looks like it."""
    marks = _MARKS[:count]
    places = sorted((text.find(mark), number) for number, mark in enumerate(marks))
    if any(place < 0 or text.count(marks[number]) > 1 for place, number in places):
        raise ValueError("not one mark for each part")
    behind, end = list[tuple[int, bytes]](), len(text)
    for place, number in reversed(places):
        behind.append((number, text[place + len(marks[number]) : end]))
        end = place
    return Template(text[:end], tuple(reversed(behind)))
