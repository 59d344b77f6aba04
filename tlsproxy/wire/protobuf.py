"""The protocol buffers wire format (protobuf.dev, "Encoding"): reading and writing fields, and scanning for strings.

It has no schema of its own. A :class:`Shape` describes the fields of one message; a :class:`Scanner` follows a message
that arrives in pieces, and retains only the strings that its shapes ask for. Anything that two readers could see
differently is refused: a singular field that occurs twice (the last counts for one reader, the first for another),
a field that is in no shape, groups, integers that are too long or too large.
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
_Head = tuple[int, int, int, int]
_NO_HEAD: Final = 0, 0, 0, 0
"""No field has the number 0."""

MAX_DEPTH: Final = 100
"""Nesting of messages; prost, Qdrant's parser, goes no deeper."""
_TAG_BYTES: Final = 5
_VARINT_BYTES: Final = 10
_SHORTEST: Final = 2
"""Bytes of a varint field: a tag and a value of one byte each."""
_SEVEN_BITS: Final = 0x7F
_LAST_OF_ONE_BYTE: Final = 15
_HIGHEST: Final = 1 << 64
_HIGHEST_TAG: Final = 1 << 32
_NO_END: Final = 1 << 65
"""More than any length."""
_NOWHERE: Final[Mapping[int, str]] = {}
_FLAT: Final[Mapping[str, Mapping[int, str]]] = {}


class ProtobufError(ValueError):
    """Not a message, or an ambiguous one. ``str(error)`` is a phrase about it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The fields of one message, by their numbers.

    ``names``: strings to find, each with the name under which it is reported; ``nested``: messages to scan, each with
    the name of its shape; ``present``: fields whose presence alone is reported, each with a name for it; ``skipped``:
    all other fields that the message is known to have; ``repeated``: fields of any of these that may occur more than
    once.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    nested: Mapping[int, str] = field(default_factory=dict)
    present: Mapping[int, str] = field(default_factory=dict)
    skipped: frozenset[int] = frozenset()
    repeated: frozenset[int] = frozenset()
    known: frozenset[int] = field(init=False)
    lists: frozenset[int] = field(init=False)
    """First bytes of the items of skipped lists, where one byte is the tag of such a field."""

    def __post_init__(self) -> None:
        looked_at = self.names.keys() | self.nested.keys()
        if looked_at & self.skipped or self.present.keys() & (self.skipped | looked_at):
            raise ValueError("a field that is looked at is not skipped")
        object.__setattr__(self, "known", self.skipped.union(looked_at, self.present))
        lists = (number << 3 | LEN for number in self.skipped & self.repeated if number <= _LAST_OF_ONE_BYTE)
        object.__setattr__(self, "lists", frozenset(lists))

    def check(self, number: int, seen: int, where: str) -> None:
        """``seen`` has a bit for the number of each earlier field of the message. Raises :class:`ProtobufError`."""
        if number not in self.known:
            raise ProtobufError(f"field {number} of {where} is not known here")
        if seen >> number & 1 and number not in self.repeated:
            raise ProtobufError(f"field {number} of {where} is there twice")


class Field:
    """``value`` is the content of a length-delimited field, and empty for others; ``raw`` is the field with its tag.

    It is no named tuple: compiled, an instance of those takes 1,900 instructions.
    """

    __slots__ = ("number", "raw", "value", "wire_type")

    def __init__(self, number: int, wire_type: int, value: bytes, raw: bytes) -> None:
        self.number = number
        self.wire_type = wire_type
        self.value = value
        self.raw = raw

    def content(self) -> bytes:
        """The content of a string, bytes or message field. Raises :class:`ProtobufError` for other types."""
        if self.wire_type != LEN:
            raise ProtobufError(f"field {self.number} has another type")
        return self.value

    def integer(self) -> int:
        """The value of a varint field, without a sign. Raises :class:`ProtobufError` for other types."""
        if self.wire_type == VARINT and len(self.raw) == _SHORTEST:
            return self.raw[1]
        read = _varint(self.raw, self._tag_bytes, _VARINT_BYTES) if self.wire_type == VARINT else None
        if read is None:
            raise ProtobufError(f"field {self.number} has another type")
        return read[0]

    def tagged(self, number: int) -> bytes:
        """The field with another number."""
        return varint(number << 3 | self.wire_type) + self.raw[self._tag_bytes :]

    @property
    def _tag_bytes(self) -> int:
        """Bytes of the tag, which may be longer than it need be."""
        return next(at for at, byte in enumerate(self.raw, start=1) if byte <= _SEVEN_BITS)


def fields(message: bytes) -> Iterator[Field]:
    """All fields of a whole message in order. Raises :class:`ProtobufError`."""
    position, end = 0, len(message)
    while position < end:
        number, wire_type, size, content = _head(message, position)
        stop = content + size
        if not number or stop > end:
            raise ProtobufError("the message ends within a field")
        value = message[content:stop] if wire_type == LEN else b""
        yield Field(number, wire_type, value, message[position:stop])
        position = stop


def known_fields(message: bytes, known: frozenset[int]) -> int:
    """How many fields a whole message has; 0 where one is not among the ``known``, or the message ends within one.

    Raises :class:`ProtobufError`.
    """
    found, position, end = 0, 0, len(message)
    while position < end:
        number, _, size, content = _head(message, position)
        if number not in known:
            return 0
        found += 1
        position = content + size
    return found if position == end else 0


def shaped(shape: Shape, where: str, message: bytes) -> Iterator[Field]:
    """As :func:`fields`, refusing fields that are not in the shape and singular fields that occur twice."""
    seen, known = 0, shape.known
    for one in fields(message):
        number = one.number
        if number not in known or seen >> number & 1:
            shape.check(number, seen, where)
        seen |= 1 << number
        yield one


def entry(content: bytes) -> tuple[bytes, bytes] | None:
    """Key and value of a map's entry, strings or messages in fields 1 and 2, as every writer has them: once each, in
    this order, and nothing else. None for another form. Raises :class:`ProtobufError`.
    """
    number, wire_type, size, key = _head(content, 0)
    if number != 1 or wire_type != LEN:
        return None
    stop = key + size
    number, wire_type, size, value = _head(content, stop)
    if number != 2 or wire_type != LEN or value + size != len(content):  # noqa: PLR2004 - as above
        return None
    return content[key:stop], content[value:]


def varint(value: int) -> bytes:
    """``value`` is below 2**64 and not negative."""
    if value <= _SEVEN_BITS:
        return value.to_bytes(1, "big")
    written = bytearray()
    while value > _SEVEN_BITS:
        written.append(value & _SEVEN_BITS | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def delimited(number: int, value: bytes | bytearray) -> bytes:
    """A string, bytes or message field."""
    return varint(number << 3 | LEN) + varint(len(value)) + value


def integer(number: int, value: int) -> bytes:
    """A varint field: ``value`` is below 2**64 and not negative."""
    return varint(number << 3 | VARINT) + varint(value)


def flag(number: int) -> bytes:
    """A bool field that is true."""
    return integer(number, 1)


def _head(data: bytes, position: int) -> _Head:
    """(number, wire type, size of the content, its position); :data:`_NO_HEAD` where ``data`` ends before these are
    known. Compiled, a tuple or None would be an object, and a tuple is none.

    For a varint the position is behind its value, and the size is 0.
    """
    left = len(data) - position
    if left >= _SHORTEST:  # nearly always a tag of one byte, and a length of one or two, or a value of one
        first, length = data[position], data[position + 1]
        if first & 0x87 == LEN < first:
            if length <= _SEVEN_BITS:
                return first >> 3, LEN, length, position + 2
            if left > _SHORTEST and data[position + 2] <= _SEVEN_BITS:
                return first >> 3, LEN, length & _SEVEN_BITS | data[position + 2] << 7, position + 3
        elif first & 0x87 == VARINT < first and length <= _SEVEN_BITS:
            return first >> 3, VARINT, 0, position + 2
    return _any_head(data, position)


def _any_head(data: bytes, position: int) -> _Head:
    """As :func:`_head`, for any field."""
    tag = _varint(data, position, _TAG_BYTES)
    if tag is None:
        return _NO_HEAD
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
        return _NO_HEAD
    if wire_type == VARINT:
        return number, wire_type, 0, after[1]
    return number, wire_type, *after


def _varint(data: bytes, position: int, longest: int) -> tuple[int, int] | None:
    """(the value, the position behind it); None where ``data`` ends within it."""
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
    """By the number of open messages: the least size of one more that could nest beyond :data:`MAX_DEPTH`."""
    sizes = [0]
    while len(sizes) < MAX_DEPTH + 2:
        sizes.append(1 + len(varint(sizes[-1])) + sizes[-1])
    return tuple(reversed(sizes))


_LEAST: Final = _least()


class _Frame:
    """An open message; ``end`` is an offset in the outermost message. ``seen`` has a bit for each field's number.

    Without a ``shape`` it is followed only to limit the depth; ``deep`` are its fields that nest.
    """

    __slots__ = ("deep", "end", "seen", "shape", "where")

    def __init__(self, where: str, shape: Shape | None, deep: Mapping[int, str], end: int) -> None:
        self.where = where
        self.shape = shape
        self.deep = deep
        self.end = end
        self.seen = 0


class Scanner:
    """Finds the strings that shapes ask for in one message of shape ``where``, fed in pieces of any size.

    ``found`` has them in order, once each, as (name in the shape, string); an absent one is the empty string there, as
    in proto3, and so is the string of a field that is only present. Limits: ``names`` strings of ``longest`` bytes
    each, ``fields`` fields in all. Skipped fields are not buffered, and cost nothing for their length. They are
    followed only if ``nesting`` (of each message: its fields that lead to recursive messages) and their size allow a
    depth beyond :data:`MAX_DEPTH`.
    """

    __slots__ = ("_at", "_fields", "_frames", "_longest", "_names", "_nesting", "_partial", "_shapes", "_skip", "found")

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
        self._fields = fields  # the rest of the budget
        self._at = 0  # the offset of ``_partial`` in the message
        self._skip = 0  # bytes of the current field that are still to skip
        self._partial = b""  # an incomplete field

    def feed(self, data: bytes) -> None:
        """Raises :class:`ProtobufError`, after which the scanner cannot be used any more."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            self._at += skipped
            data = data[skipped:]
            self._leave()
        if self._partial:
            data = self._partial + data
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
        self._partial = data[position:]

    def close(self) -> None:
        """Ends the message. Raises :class:`ProtobufError` where it is incomplete."""
        if self._partial or self._skip or len(self._frames) > 1:
            raise ProtobufError("the message ends within a field")
        self._close(self._frames[0])

    def _field(self, data: bytes, position: int) -> int:
        """Consumes (the beginning of) one field: the number of its bytes, 0 where it needs more. Sets ``_skip``."""
        head = _head(data, position)
        number, wire_type, size, content = head
        if not number:
            return 0
        frame = self._frames[-1]
        start = content - position
        if self._at + start + size > frame.end:
            raise ProtobufError(f"field {number} of {frame.where} is longer than the message")
        shape = frame.shape
        if shape is not None:
            if number not in shape.known or (frame.seen >> number & 1 and number not in shape.repeated):
                shape.check(number, frame.seen, frame.where)
            if number in shape.present:
                self._report(shape.present[number], b"")
            elif number not in shape.skipped:
                return self._scanned_field(frame, shape, head, data, start)
            frame.seen |= 1 << number
        if wire_type == LEN and number in frame.deep and size >= _LEAST[len(self._frames)]:
            self._enter(frame.deep[number], None, start + size)
            return start
        here = min(size, len(data) - content)
        self._skip = size - here
        stop = content + here
        if shape is not None and stop < len(data) and data[stop] in shape.lists:
            stop += self._run(frame, shape, data, stop, self._at + start + here)
        return stop - position

    def _run(self, frame: _Frame, shape: Shape, data: bytes, position: int, at: int) -> int:
        """The number of bytes of short items of skipped lists from ``position`` on, which is the offset ``at``: a frame
        may have thousands.
        """
        begin, items, lists = position, 0, shape.lists
        longest = min(_LEAST[len(self._frames)] - 1, _SEVEN_BITS)
        last = min(len(data), position + frame.end - at) - 2
        while position <= last and data[position] in lists:
            length = data[position + 1]
            if length > longest or position + length > last:
                break
            position += 2 + length
            items += 1
        self._fields -= items
        return position - begin

    def _enter(self, where: str, shape: Shape | None, size: int) -> None:
        """Opens a message that ends after ``size`` bytes."""
        if len(self._frames) > MAX_DEPTH:
            raise ProtobufError("messages are nested too deeply")
        self._frames.append(_Frame(where, shape, self._nesting.get(where, _NOWHERE), self._at + size))

    def _scanned_field(self, frame: _Frame, shape: Shape, head: _Head, data: bytes, start: int) -> int:
        """As :meth:`_field`, for a name or a message whose content begins after ``start`` bytes."""
        number, wire_type, size, content = head
        if wire_type != LEN:
            raise ProtobufError(f"field {number} of {frame.where} has another type")
        nested = shape.nested.get(number)
        if nested is not None and not size and len(self._frames) <= MAX_DEPTH:
            self._report_absent(self._shapes[nested], 0)
        elif nested is not None:
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
        """Closes all messages that end here."""
        while self._frames[-1].end == self._at:
            self._close(self._frames.pop())

    def _close(self, frame: _Frame) -> None:
        if frame.shape is not None:
            self._report_absent(frame.shape, frame.seen)

    def _report_absent(self, shape: Shape, seen: int) -> None:
        for number, name in shape.names.items():
            if not seen >> number & 1 and (name, "") not in self.found:
                self._report(name, b"")

    def _report(self, name: str, value: bytes) -> None:
        try:
            self.found[name, value.decode()] = None
        except UnicodeDecodeError:
            raise ProtobufError("a name is not UTF-8") from None
        if len(self.found) > self._names:
            raise ProtobufError("too many names")
