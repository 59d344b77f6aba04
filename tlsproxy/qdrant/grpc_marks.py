"""Marks of a tenant's points in payloads of `Value` messages, as :mod:`tlsproxy.qdrant.tenant_filters` has for JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from tlsproxy.authz.access import Condition, Value
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant import tenant_texts
from tlsproxy.qdrant.grpc_rewrite import Reading
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import delimited, integer

_INTEGER: Final = 3
_STRING: Final = 4
_BOOLEAN: Final = 5
_STRUCT: Final = 6
_LIST: Final = 7
"""Fields of a Value."""
_NULL: Final = integer(1, 0)
"""A Value: null."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark, ready to be written: the ``steps`` of its path, and its ``values`` as messages."""

    condition: Condition
    steps: tuple[str, ...]
    values: frozenset[bytes]

    @classmethod
    def of(cls, condition: Condition) -> Self:
        return cls(condition, tuple(condition.key.split(".")), frozenset(map(encoded_value, condition.values)))

    @property
    def root(self) -> bytes:
        """The payload's own key."""
        return self.condition.root.encode()

    def marked(self, value: bytes | None, reading: Reading, depth: int = 0) -> Steps[bytes]:
        """The Value under a step of the path with the mark in it; None where there is none yet.

        Raises :class:`Unconfined` where the mark is another, :class:`BadRequest`, :class:`ProtobufError`.
        """
        step = self.steps[depth]
        if depth + 1 == len(self.steps):
            if value is None and len(self.values) == 1:
                return next(iter(self.values))
            if value not in self.values:
                raise self._refusal()
            return value
        if value == _NULL:
            value = None
        if not step.endswith("[]"):
            struct = b"" if value is None else self._content(_STRUCT, value, reading)
            return delimited(_STRUCT, (yield from self._in_struct(struct, reading, depth + 1)))
        marked = bytearray()
        for member in () if value is None else reading.fields_of("ListValue", self._content(_LIST, value, reading)):
            if reading.is_step():
                yield reading.memory
            struct = self._content(_STRUCT, member.content(), reading)
            marked += yield from self._member(struct, reading, depth + 1)
        return delimited(_LIST, marked or (yield from self._member(b"", reading, depth + 1)))

    def _member(self, struct: bytes, reading: Reading, depth: int) -> Steps[bytes]:
        return delimited(1, delimited(_STRUCT, (yield from self._in_struct(struct, reading, depth))))

    def _in_struct(self, struct: bytes, reading: Reading, depth: int) -> Steps[bytes]:
        name = self.steps[depth].removesuffix("[]").encode()
        kept, own = list[bytes](), None
        for one in reading.fields_of("Struct", struct):
            if reading.is_step():
                yield reading.memory
            key, value = entry(one.content(), reading)
            if key != name:
                kept.append(one.raw)
            elif own is not None:
                raise twice()
            else:
                own = value
        return b"".join([*kept, delimited(1, entry_of(name, (yield from self.marked(own, reading, depth))))])

    def _content(self, kind: int, value: bytes, reading: Reading) -> bytes:
        chosen = reading.alone("Value", value)
        if chosen is None or chosen.number != kind:
            raise self._refusal()
        return chosen.content()

    def _refusal(self) -> Unconfined:
        return Unconfined(tenant_texts.MARKED.format(self.condition.key))


def twice() -> BadRequest:
    return BadRequest("A payload's key is there twice")


def entry(content: bytes, reading: Reading) -> tuple[bytes, bytes]:
    """Key and value of an entry of a map of Values; an absent one is empty, as in any map."""
    found = {one.number: one.content() for one in reading.fields_of("Struct.FieldsEntry", content)}
    return found.get(1, b""), found.get(2, b"")


def entry_of(key: bytes, value: bytes) -> bytes:
    return delimited(1, key) + delimited(2, value)


def encoded_value(value: Value) -> bytes:
    """A Value."""
    if isinstance(value, str):
        return delimited(_STRING, value.encode())
    return integer(_BOOLEAN if isinstance(value, bool) else _INTEGER, value % (1 << 64))
