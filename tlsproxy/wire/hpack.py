"""HPACK's decoder (RFC 7541): field blocks of one direction of a connection, each once and in their order.

It takes its tables from the library ``hpack``, but not its decoder: that one takes four times as long (78 µs for the
ten fields of a call whose metadata changes, which is what real clients send). The other stands beside it in property
tests. Integers are nearly always shorter than their prefix, so that this case is written out where it is met.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

Field = tuple[bytes, bytes]

OVERHEAD: Final = 32
"""What each field counts beside its bytes (§4.1, RFC 9113 §6.5.2)."""
_MAX_INTEGER: Final = 5
"""Bytes of an integer after its prefix: enough for 32 bits (§5.1 leaves the most to us)."""
_STATIC: Final[tuple[Field, ...]] = ((b"", b""), *HeaderTable.STATIC_TABLE)
_DYNAMIC: Final = len(_STATIC)
"""The first index of the dynamic table."""
_EOS: Final = 256


class HpackError(Exception):
    """A block that cannot be read: the two ends do not agree any more."""


class TooLarge(HpackError):
    """A block of more than was allowed."""


class Decoder:
    """``changes`` counts what blocks did to the dynamic table; ``entries`` has its fields, newest first."""

    __slots__ = ("_limit", "_room", "_size", "_table", "changes", "entries")

    def __init__(self, limit: int, table: int) -> None:
        """``limit``: most bytes of a block's fields, with their overhead; ``table``: of the dynamic table."""
        self._limit = limit
        self._table = self._room = table
        self._size = 0
        self.changes = 0
        self.entries: deque[Field] = deque()

    def decode(self, block: bytes) -> tuple[Field, ...]:
        """Raises HpackError, after which no other block can be read."""
        fields: list[Field] = []
        at, size, end = 0, 0, len(block)
        while at < end:
            first = block[at]
            if first >= 0x80:  # noqa: PLR2004 - §6.1: an indexed field
                index, at = (first & 0x7F, at + 1) if first != 0xFF else _integer(block, at, 0x7F)  # noqa: PLR2004
                field = _STATIC[index] if 0 < index < _DYNAMIC else self._indexed(index)
            elif first & 0xE0 == 0x20:  # noqa: PLR2004 - §6.3: a new size of the table
                if fields:
                    raise HpackError("a table size update that is not at the beginning of its block")
                room, at = _integer(block, at, 0x1F)
                self._resize(room)
                continue
            else:  # §6.2: a literal one
                mask = 0x3F if first >= 0x40 else 0x0F  # noqa: PLR2004
                index, at = (first & mask, at + 1) if first & mask != mask else _integer(block, at, mask)
                if index:
                    name = (_STATIC[index] if index < _DYNAMIC else self._indexed(index))[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                field = name, value
                if first >= 0x40:  # noqa: PLR2004
                    self._add(field)
            fields.append(field)
            size += len(field[0]) + len(field[1]) + OVERHEAD
            if size > self._limit:
                raise TooLarge(f"more than {self._limit} bytes of fields")
        return tuple(fields)

    def _indexed(self, index: int) -> Field:
        if 0 < index < _DYNAMIC:
            return _STATIC[index]
        if not 0 <= index - _DYNAMIC < len(self.entries):
            raise HpackError(f"an index that is in no table: {index}")
        return self.entries[index - _DYNAMIC]

    def _add(self, field: Field) -> None:
        """§4.4: one that is larger than the table empties it."""
        self.changes += 1
        size = len(field[0]) + len(field[1]) + OVERHEAD
        if self._size + size > self._room:
            self._evict(self._room - size)
        if size <= self._room:
            self.entries.appendleft(field)
            self._size += size

    def _resize(self, room: int) -> None:
        if room > self._table:
            raise HpackError(f"a table of {room} bytes, where {self._table} are allowed")
        if room != self._room:
            self.changes += 1
            self._room = room
            self._evict(room)

    def _evict(self, room: int) -> None:
        """§4.3: the oldest, until no more than this is left."""
        while self._size > room and self.entries:
            name, value = self.entries.pop()
            self._size -= len(name) + len(value) + OVERHEAD


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """§5.1: (the integer at ``at`` below its first byte's ``mask``, where what follows begins)."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift, byte in zip(range(0, 7 * _MAX_INTEGER, 7), block[at : at + _MAX_INTEGER], strict=False):
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004
            return value, at
    raise HpackError("an integer that has no end, or is too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """§5.2: (the text at ``at``, where what follows begins)."""
    if at >= len(block):
        raise HpackError("a field without a value")
    first = block[at]
    length, at = (first & 0x7F, at + 1) if first & 0x7F != 0x7F else _integer(block, at, 0x7F)  # noqa: PLR2004
    end = at + length
    if end > len(block):
        raise HpackError("a string beyond its block")
    text = block[at:end]
    return (_plain(text) if first & 0x80 else text), end


# Huffman (§5.2, appendix B), a byte at a time: the state is the node of the code's tree at which a byte begins. There
# are 256 nodes that are no leaves, so the steps below, found when they are first needed, are at most 65,536.
_Tree = list[list[int]]


def _tree() -> _Tree:
    """For each node what follows on a 0 and on a 1: a node, or a leaf as ``~symbol``. The root, 0, follows none."""
    nodes: _Tree = [[0, 0]]
    for symbol, (code, length) in enumerate(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)):
        node = 0
        for place in range(length - 1, 0, -1):
            bit = code >> place & 1
            if not nodes[node][bit]:
                nodes[node][bit] = len(nodes)
                nodes.append([0, 0])
            node = nodes[node][bit]
        nodes[node][code & 1] = ~symbol
    return nodes


def _padding() -> frozenset[int]:
    """The nodes at which a text may end: after no bits, or after up to seven that begin the code of EOS, all ones."""
    node, found = 0, [0]
    for _ in range(7):
        node = _NODES[node][1]
        found.append(node)
    return frozenset(found)


_NODES: Final = _tree()
_ENDS: Final = _padding()
_steps: Final[dict[int, tuple[int, bytes]]] = {}


def _plain(coded: bytes) -> bytes:
    state, parts = 0, []
    for byte in coded:
        key = state << 8 | byte
        step = _steps.get(key)
        if step is None:
            _steps[key] = step = _step(state, byte)
        state, symbols = step
        parts.append(symbols)
    if state not in _ENDS:
        raise HpackError("a Huffman-coded text that ends within a symbol")
    return b"".join(parts)


def _step(node: int, byte: int) -> tuple[int, bytes]:
    """(the node after this byte, the symbols that it completes)."""
    symbols = bytearray()
    for place in range(7, -1, -1):
        node = _NODES[node][byte >> place & 1]
        if node < 0:
            if ~node == _EOS:
                raise HpackError("the symbol EOS within a Huffman-coded text")
            symbols.append(~node)
            node = 0
    return node, bytes(symbols)
