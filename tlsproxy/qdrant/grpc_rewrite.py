"""Reads a whole gRPC message field by field and writes another in its place, within budgets of memory and of fields.

The engine of all passes over a message (:mod:`tlsproxy.qdrant.grpc_tenancy`, for example), which have tables of their
own. A message that is read must have known fields only, and no singular one twice: a second `filter` field would be
merged with ours by Qdrant's parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tlsproxy.qdrant.grpc_schema import PARTS, SHAPES
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import MAX_DEPTH, Field, ProtobufError, shaped

MAX_FIELDS: Final = 300_000
"""Most fields of one message, at some 2 to 10 microseconds each."""
COPIES: Final = 5
"""Copies of a message in memory: with and without its tag if it is nested; its parts, and their results."""
FIELD: Final = 64
"""Bytes of memory per field beside its content."""
SMALL: Final = 4096
"""A message of so many bytes is rewritten without asking for memory."""
STEP: Final = 250
"""Fields per step."""
_MESSAGES: Final = SHAPES | PARTS


class Reading:
    """The budget of one pass over a message: ``fields`` in all."""

    __slots__ = ("_content_memory", "_fields_read", "_left", "_next_step", "fields")

    def __init__(self, fields: int = MAX_FIELDS) -> None:
        self.fields = fields
        self._left = MAX_DEPTH
        self._fields_read = self._content_memory = 0
        self._next_step = STEP

    def begin(self, content: bytes) -> int | None:
        """Enters a message: the memory that is needed from here on, None for a small one."""
        self._content_memory += COPIES * len(content)
        return self.memory if len(content) > SMALL else None

    def end(self, content: bytes) -> None:
        self._content_memory -= COPIES * len(content)

    @property
    def memory(self) -> int:
        """Bytes that the open messages take, nested ones included."""
        return self._content_memory + FIELD * self._fields_read

    def is_step(self) -> bool:
        """Whether :data:`STEP` fields were read since the last step."""
        if self._fields_read < self._next_step:
            return False
        self._next_step = self._fields_read + STEP
        return True

    def fields_of(self, message: str, content: bytes) -> Iterator[Field]:
        """The fields of a message, which must match its shape. Raises :class:`ProtobufError`."""
        for one in shaped(_MESSAGES[message], message, content):
            self._fields_read += 1
            if self._fields_read > self.fields:
                raise ProtobufError("too many fields")
            yield one

    def alone(self, message: str, content: bytes) -> Field | None:
        """The only field of a oneof message; None with more or less: readers may differ in which one counts."""
        found = list(self.fields_of(message, content))
        return found[0] if len(found) == 1 else None

    def deeper(self, rewriting: Steps[bytes]) -> Steps[bytes]:
        """A step into a message that may be within itself. Raises :class:`ProtobufError` beyond :data:`MAX_DEPTH`."""
        self._left -= 1
        if self._left < 0:
            raise ProtobufError("messages are nested too deeply")
        rewritten = yield from rewriting
        self._left += 1
        return rewritten

    def rewritten(
        self,
        message: str,
        content: bytes,
        take: Callable[[Field], bytes | Steps[bytes]],
        added: Callable[[], Steps[bytes]],
    ) -> Steps[bytes]:
        """Rewrites one message: ``take`` returns a field's replacement, in steps for a nested message; ``added`` the
        fields that follow. Raises :class:`ProtobufError`, and the errors of both.
        """
        rewritten = bytearray()  # a list of the parts would be freed in one step
        yield self.begin(content)
        for one in self.fields_of(message, content):
            if self.is_step():
                yield self.memory
            instead = take(one)
            rewritten += instead if isinstance(instead, bytes) else (yield from instead)
        rewritten += yield from added()
        self.end(content)
        return bytes(rewritten)
