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

_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def long_arrays(text: Content, long: int = LONG, most: int = MOST) -> list[tuple[int, int]]:
    """Offsets (start, end) of the contents of each long array of scalars.

    Without them, a text that is no JSON may become some: Qdrant refuses it.
    """
    found = []
    place = 0
    for _ in range(most):
        bracket = text.find(b"[", place)
        if bracket < 0:
            break
        quote = text.find(b'"', place, bracket)
        if quote >= 0:  # brackets within strings do not count
            string = _STRING.match(text, quote)
            if string is None:
                break
            place = string.end()
            continue
        end = text.find(b"]", bracket)
        place = bracket + 1
        if (
            end - bracket > long
            and text.find(b'"', place, end) < 0
            and text.find(b"[", place, end) < 0
            and text.find(b"{", place, end) < 0
        ):
            found.append((place, end))
            place = end
    return found


def without(text: Content, parts: list[tuple[int, int]]) -> Content:
    """The text without these parts; the same object where there are none."""
    if not parts:
        return text
    view, begin, rest = memoryview(text), 0, []
    for start, end in parts:
        rest.append(view[begin:start])
        begin = end
    rest.append(view[begin:])
    return b"".join(rest)


_MARK: Final = b"-77%017d"
"""An integer of 64 bits."""


def marked(text: Content, parts: list[tuple[int, int]]) -> Content:
    """The text with a number in place of each part; the same object where there are none."""
    if not parts:
        return text
    view, begin = memoryview(text), 0
    rest: list[bytes | memoryview] = []
    for number, (start, end) in enumerate(parts):
        rest += [view[begin:start], _MARK % number]
        begin = end
    rest.append(view[begin:])
    return b"".join(rest)


@dataclass(frozen=True, slots=True)
class Template:
    """A text that was made of a marked one: ``texts``, and between them the parts of these numbers."""

    texts: tuple[bytes, ...]
    numbers: tuple[int, ...]

    def filled(self, original: Content, parts: list[tuple[int, int]]) -> bytes:
        """The text with the parts of an original in their places again."""
        view, rest = memoryview(original), list[bytes | memoryview](self.texts[:1])
        for number, text in zip(self.numbers, self.texts[1:], strict=True):
            start, end = parts[number]
            rest += (view[start:end], text)
        return b"".join(rest)


def template_of(text: bytes, count: int) -> Template:
    """Raises ValueError where one of ``count`` marks is not there, or another number looks like it."""
    places = sorted((text.find(_MARK % number), number) for number in range(count))
    if any(place < 0 or text.count(_MARK % number) > 1 for place, number in places):
        raise ValueError("not one mark for each part")
    texts, begin = [], 0
    for place, number in places:
        texts.append(text[begin:place])
        begin = place + len(_MARK % number)
    return Template((*texts, text[begin:]), tuple(number for _, number in places))
