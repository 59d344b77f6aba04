"""Protocol buffers on the wire (protobuf.dev, "Encoding"): fields read and written, and the names in a message found.

It knows no message of anybody's. A :class:`Shape` says of one message which fields it has, and in which of them to
look; a :class:`Scanner` follows a message that comes in pieces and keeps of it only the strings that were asked for.
What two readers could see differently is refused where it is looked at: a singular field that is there twice (the last
counts for one reader, the first for another), a field that no shape knows, groups, numbers too long or too large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

VARINT: Final = 0
I64: Final = 1
LEN: Final = 2
I32: Final = 5
_FIXED: Final = {I64: 8, I32: 4}

MAX_DEPTH: Final = 100
"""Messages below the first; prost, with which Qdrant reads, goes no deeper."""
_TAG_BYTES: Final = 5
_VARINT_BYTES: Final = 10
_SEVEN_BITS: Final = 0x7F
_HIGHEST: Final = 1 << 64
_HIGHEST_TAG: Final = 1 << 32
_NO_END: Final = 1 << 65
"""Beyond what a length can say."""
_NOWHERE: Final[Mapping[int, str]] = {}
_FLAT: Final[Mapping[str, Mapping[int, str]]] = {}


class ProtobufError(ValueError):
    """Not a message, or not one that every reader would read alike. ``str(error)`` is a phrase about it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of one message, by their numbers.

    ``names``: strings that are looked for, each with what it is reported as; ``nested``: messages that are looked into,
    each with the name of its shape. ``skipped`` are all others that the message is known to have, ``repeated`` those of
    any kind that may occur more than once.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    nested: Mapping[int, str] = field(default_factory=dict)
    skipped: frozenset[int] = frozenset()
    repeated: frozenset[int] = frozenset()
    known: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        looked_at = self.names.keys() | self.nested.keys()
        if looked_at & self.skipped:
            raise ValueError("a field that is looked at is not skipped")
        object.__setattr__(self, "known", self.skipped | looked_at)

    def check(self, number: int, seen: int, where: str) -> None:
        """``seen`` has a bit for each number that the message had before. Raises :class:`ProtobufError`."""
        if number not in self.known:
            raise ProtobufError(f"field {number} of {where} is not known here")
        if seen >> number & 1 and number not in self.repeated:
            raise ProtobufError(f"field {number} of {where} is there twice")


@dataclass(frozen=True, slots=True)
class Field:
    """``value`` is the content of a length-delimited field, and empty for others; ``raw`` all of it with its tag."""

    number: int
    wire_type: int
    value: bytes
    raw: bytes

    def content(self) -> bytes:
        """Of a string, bytes or message. Raises :class:`ProtobufError` where the field is none of these."""
        if self.wire_type != LEN:
            raise ProtobufError(f"field {self.number} has another type")
        return self.value


def fields(message: bytes) -> Iterator[Field]:
    """All fields of a whole message, in their order. Raises :class:`ProtobufError`."""
    position, end = 0, len(message)
    while position < end:
        head = _head(message, position)
        if head is None or head[3] + head[2] > end:
            raise ProtobufError("the message ends within a field")
        number, wire_type, size, content = head
        stop = content + size
        value = message[content:stop] if wire_type == LEN else b""
        yield Field(number, wire_type, value, message[position:stop])
        position = stop


def shaped(shape: Shape, where: str, message: bytes) -> Iterator[Field]:
    """As :func:`fields`, of a message that has only what its shape knows, and nothing singular twice."""
    seen = 0
    for one in fields(message):
        shape.check(one.number, seen, where)
        seen |= 1 << one.number
        yield one


def varint(value: int) -> bytes:
    """``value`` is below 2**64 and not negative."""
    written = bytearray()
    while value > _SEVEN_BITS:
        written.append(value & _SEVEN_BITS | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def delimited(number: int, value: bytes) -> bytes:
    """A string, bytes or message field."""
    return varint(number << 3 | LEN) + varint(len(value)) + value


def flag(number: int) -> bytes:
    """A bool field that is true."""
    return varint(number << 3 | VARINT) + b"\x01"


def _head(data: bytes, position: int) -> tuple[int, int, int, int] | None:
    """(number, wire type, size of what follows, where that begins); None where ``data`` ends before.

    What follows a varint's tag is the varint itself, of which the size is known once it is whole.
    """
    if position + 2 < len(data):  # nearly always a tag of one byte, and a length of one or two
        first, length, more = data[position : position + 3]
        if first & 0x87 == LEN < first:
            if length <= _SEVEN_BITS:
                return first >> 3, LEN, length, position + 2
            if more <= _SEVEN_BITS:
                return first >> 3, LEN, length & _SEVEN_BITS | more << 7, position + 3
    return _any_head(data, position)


def _any_head(data: bytes, position: int) -> tuple[int, int, int, int] | None:
    """The same, whatever it is."""
    tag = _varint(data, position, _TAG_BYTES)
    if tag is None:
        return None
    value, position = tag
    number, wire_type = value >> 3, value & 7
    if not number or value >= _HIGHEST_TAG:
        raise ProtobufError("a field has a number that there is not")
    if wire_type in _FIXED:
        return number, wire_type, _FIXED[wire_type], position
    if wire_type not in (VARINT, LEN):
        raise ProtobufError(f"field {number} has a type that is not accepted")
    after = _varint(data, position, _VARINT_BYTES)
    if after is None:
        return None
    if wire_type == VARINT:
        return number, wire_type, 0, after[1]
    return number, wire_type, *after


def _varint(data: bytes, position: int, longest: int) -> tuple[int, int] | None:
    """(the value, where it ends); None where ``data`` ends before it does."""
    end = len(data)
    if position < end and data[position] <= _SEVEN_BITS:
        return data[position], position + 1
    value = 0
    for index in range(longest):
        if position + index >= end:
            return None
        byte = data[position + index]
        value |= (byte & _SEVEN_BITS) << 7 * index
        if byte <= _SEVEN_BITS:
            if value >= _HIGHEST:
                break
            return value, position + index + 1
    raise ProtobufError("a number is too long")


def _least() -> tuple[int, ...]:
    """For each number of messages that have begun: the bytes of another that can hold more than :data:`MAX_DEPTH`."""
    sizes = [0]
    while len(sizes) < MAX_DEPTH + 2:
        sizes.append(1 + len(varint(sizes[-1])) + sizes[-1])
    return tuple(reversed(sizes))


_LEAST: Final = _least()


@dataclass(slots=True)
class _Frame:
    """A message that has begun: ``end`` counts bytes from the beginning of the first one.

    Without a ``shape`` it is one that is followed for its depth alone, to which ``deep`` leads.
    """

    where: str
    shape: Shape | None
    deep: Mapping[int, str]
    end: int
    seen: int = 0


class Scanner:
    """Finds the strings that shapes ask for in one message of ``where``, which comes in pieces of any size.

    ``found`` has them in order, once each, as (what the shape calls it, the string); one that a message does not have
    is the empty string there, as proto3 has it. At most ``names`` of them of at most ``longest`` bytes are taken, from
    at most ``fields`` fields in all. What is skipped is not kept, and costs nothing for its length. It is followed
    where ``nesting`` (of each message: the fields that lead to messages that may hold themselves) says that it could be
    too deep, and it is large enough for that.
    """

    __slots__ = ("_at", "_fields", "_frames", "_held", "_left", "_longest", "_names", "_nesting", "_shapes", "found")

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        where: str,
        *,
        longest: int,
        names: int,
        fields: int,
        nesting: Mapping[str, Mapping[int, str]] = _FLAT,
    ) -> None:
        self.found: dict[tuple[str, str], None] = {}
        self._shapes = shapes
        self._nesting = nesting
        self._frames = [_Frame(where, shapes[where], nesting.get(where, _NOWHERE), _NO_END)]
        self._longest = longest
        self._names = names
        self._fields = fields  # that may still come
        self._at = 0  # where ``_held`` begins, in the message
        self._left = 0  # bytes of the current field still to skip
        self._held = b""  # the beginning of a field, as far as it came

    def feed(self, data: bytes) -> None:
        """Raises :class:`ProtobufError`, after which there is no use in going on."""
        if self._left:
            skipped = min(self._left, len(data))
            self._left -= skipped
            self._at += skipped
            data = data[skipped:]
            self._leave()
        if self._held:
            data = self._held + data
        position, size, frames = 0, len(data), self._frames
        while position < size:
            step = self._field(data, position)
            if not step:
                break
            position += step
            self._at += step
            self._fields -= 1
            if self._fields < 0:
                raise ProtobufError("too many fields")
            if frames[-1].end == self._at:
                self._leave()
        self._held = data[position:]

    def close(self) -> None:
        """The message is whole. Raises :class:`ProtobufError` where it is not."""
        if self._held or self._left or len(self._frames) > 1:
            raise ProtobufError("the message ends within a field")
        self._report_absent(self._frames[0])

    def _field(self, data: bytes, position: int) -> int:
        """How many bytes of ``data`` are done with, 0 where more must come first. ``_left`` are those to skip after."""
        head = _head(data, position)
        if head is None:
            return 0
        number, wire_type, size, content = head
        frame = self._frames[-1]
        start = content - position
        if self._at + start + size > frame.end:
            raise ProtobufError(f"field {number} of {frame.where} is longer than the message")
        shape = frame.shape
        if shape is not None:
            shape.check(number, frame.seen, frame.where)
            if number not in shape.skipped:
                return self._looked_at(frame, shape, head, data, start)
            frame.seen |= 1 << number
        if wire_type == LEN and number in frame.deep and size >= _LEAST[len(self._frames)]:
            self._enter(frame.deep[number], None, start + size)
            return start
        here = min(size, len(data) - content)
        self._left = size - here
        return start + here

    def _enter(self, where: str, shape: Shape | None, size: int) -> None:
        """A message begins, and ends after ``size`` bytes."""
        if len(self._frames) > MAX_DEPTH:
            raise ProtobufError("messages are nested too deeply")
        self._frames.append(_Frame(where, shape, self._nesting.get(where, _NOWHERE), self._at + size))

    def _looked_at(self, frame: _Frame, shape: Shape, head: tuple[int, int, int, int], data: bytes, start: int) -> int:
        """As :meth:`_field`, of one that is a name or a message; its content begins after ``start`` bytes."""
        number, wire_type, size, content = head
        if wire_type != LEN:
            raise ProtobufError(f"field {number} of {frame.where} has another type")
        nested = shape.nested.get(number)
        if nested is not None:
            self._enter(nested, self._shapes[nested], start + size)
        else:
            if size > self._longest:
                raise ProtobufError(f"field {number} of {frame.where} has more than {self._longest} bytes")
            if content + size > len(data):
                return 0
            self._report(shape.names[number], data[content : content + size])
            start += size
        frame.seen |= 1 << number
        return start

    def _leave(self) -> None:
        """What ends here has ended."""
        while self._frames[-1].end == self._at:
            self._report_absent(self._frames.pop())

    def _report_absent(self, frame: _Frame) -> None:
        if frame.shape is None:
            return
        for number, name in frame.shape.names.items():
            if not frame.seen >> number & 1:
                self._report(name, b"")

    def _report(self, name: str, value: bytes) -> None:
        try:
            self.found[name, value.decode()] = None
        except UnicodeDecodeError:
            raise ProtobufError("a name is not UTF-8") from None
        if len(self.found) > self._names:
            raise ProtobufError("too many names")
