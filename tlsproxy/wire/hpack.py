"""An HPACK decoder (RFC 7541) for the field blocks of one direction of a connection.

The tables are those of the library ``hpack``, whose own decoder takes four times as long: 78 µs for the ten fields of a
call whose metadata changes from call to call, as real clients' does. Property tests compare the two. Integers nearly
always fit into their prefix, so that this case is inlined.
"""

from __future__ import annotations

import re
from typing import Final

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

Field = tuple[bytes, bytes]

OVERHEAD: Final = 32
"""Bytes that are counted for each field beside its name and value (§4.1, RFC 9113 §6.5.2)."""
_MAX_INTEGER: Final = 5
"""Most bytes of an integer behind its prefix, enough for 32 bits (§5.1 leaves the limit to implementations)."""
_STATIC: Final[tuple[Field, ...]] = ((b"", b""), *HeaderTable.STATIC_TABLE)
_INDEXED: Final = 0x80
_RESIZE: Final = 0x20
_DYNAMIC: Final = _INDEXED + len(_STATIC)
"""The place of the newest entry of the dynamic table."""
_INDEXED_RUN: Final = re.compile(rb"[\x81-\xfe]+")
_EOS: Final = 256


def _counted(field: Field) -> int:
    name, value = field
    return len(name) + len(value) + OVERHEAD


class HpackError(Exception):
    """A block that cannot be decoded; the dynamic tables of the two ends may differ from here on."""


class TooLarge(HpackError):
    """A block whose fields exceed the limit."""


class Decoder:
    """``changes`` counts the changes of the dynamic table: of its entries, or of its size.

    Both tables are one list, in which the place of a field is the byte that encodes it (§6.1: the index plus 128); a
    second list has the sizes. A run of such bytes, which is most of a client's block, is looked up by `map`, in C:
    `82 87` is `:method: GET`, `:scheme: https`.
    """

    __slots__ = ("_fields", "_limit", "_room", "_size", "_sizes", "_table", "changes")

    def __init__(self, limit: int, table: int) -> None:
        """``limit``: most bytes of a block's fields with their overhead; ``table``: most bytes of the dynamic table."""
        self._limit = limit
        self._table = self._room = table
        self._size = 0
        self.changes = 0
        self._fields: list[Field] = [*[_STATIC[0]] * _INDEXED, *_STATIC]
        self._sizes = [_counted(field) for field in self._fields]

    @property
    def entries(self) -> list[Field]:
        """The fields of the dynamic table, newest first."""
        return self._fields[_DYNAMIC:]

    def decode(self, block: bytes) -> tuple[Field, ...]:
        """The fields of a block. Raises HpackError, after which the decoder cannot be used any more."""
        try:
            return self._decode(block)
        except IndexError:
            raise HpackError("an index that is in no table, or a block that ends within a field") from None

    def _decode(self, block: bytes) -> tuple[Field, ...]:  # noqa: C901, PLR0912 - one branch per representation
        table_fields, sizes, limit = self._fields, self._sizes, self._limit
        fields: list[Field] = []
        at = size = 0
        end = len(block)
        if end and block[0] & 0xE0 == _RESIZE:
            at = self._resized(block)
        while at < end:
            first = block[at]
            if first > _INDEXED:
                run = _INDEXED_RUN.match(block, at)
                if run is not None:
                    indexes, at = run[0], run.end()
                    fields += map(table_fields.__getitem__, indexes)
                    size += sum(map(sizes.__getitem__, indexes))
                else:
                    index, at = _integer(block, at + 1, 0x7F)
                    fields.append(table_fields[index + _INDEXED])
                    size += sizes[index + _INDEXED]
            elif first == _INDEXED or first & 0xE0 == _RESIZE:
                raise HpackError("an index of 0, or a table size update that is not at the beginning of its block")
            else:  # §6.2: a literal
                mask = 0x3F if first >= 0x40 else 0x0F  # noqa: PLR2004
                index = first & mask
                at += 1
                if index == mask:
                    index, at = _integer(block, at, mask)
                if index:
                    name = table_fields[index + _INDEXED][0]
                else:
                    length = block[at]
                    stop = at + 1 + length
                    if length < 0x7F and stop <= end:  # noqa: PLR2004 - as below
                        name, at = block[at + 1 : stop], stop
                    else:
                        name, at = _string(block, at)
                length = block[at]
                stop = at + 1 + length
                if length < 0x7F and stop <= end:  # noqa: PLR2004 - as most are: short, and not Huffman-coded
                    value, at = block[at + 1 : stop], stop
                else:
                    value, at = _string(block, at)
                field = name, value
                fields.append(field)
                counted = len(name) + len(value) + OVERHEAD
                size += counted
                if first >= 0x40:  # noqa: PLR2004 - §6.2.1
                    self._add(field, counted)
            if size > limit:
                raise TooLarge(f"more than {limit} bytes of fields")
        return tuple(fields)

    def _add(self, field: Field, counted: int) -> None:
        """§4.4: an entry that is larger than the table empties it; an empty table (one of 0 bytes) stays as it is."""
        left = self._room - counted
        if self._size > left:
            if not self._size:
                return
            self._evict(max(left, 0))
        self.changes += 1
        if left >= 0:
            self._fields.insert(_DYNAMIC, field)
            self._sizes.insert(_DYNAMIC, counted)
            self._size += counted

    def _resized(self, block: bytes) -> int:
        """Applies the size updates at the beginning of a block (§6.3); returns the position behind them."""
        at, end = 0, len(block)
        while at < end and block[at] & 0xE0 == _RESIZE:
            room = block[at] & 0x1F
            at += 1
            if room == 0x1F:  # noqa: PLR2004
                room, at = _integer(block, at, 0x1F)
            if room > self._table:
                raise HpackError(f"a table of {room} bytes, where {self._table} are allowed")
            if room != self._room:
                self.changes += 1
                self._room = room
                self._evict(room)
        return at

    def _evict(self, room: int) -> None:
        """Removes the oldest entries until at most ``room`` bytes are left (§4.3)."""
        table_fields, sizes, size = self._fields, self._sizes, self._size
        while size > room:
            table_fields.pop()
            size -= sizes.pop()
        self._size = size


def _integer(block: bytes, at: int, most: int) -> tuple[int, int]:
    """(an integer whose prefix is ``most``, all ones, continued at ``at``; the position behind it): §5.1."""
    value = most
    if at < len(block) and block[at] < 0x80:  # noqa: PLR2004 - as the next would be, and nearly always is
        return value + block[at], at + 1
    for shift, byte in zip(range(0, 7 * _MAX_INTEGER, 7), block[at : at + _MAX_INTEGER], strict=False):
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004
            return value, at
    raise HpackError("an integer that has no end, or is too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """(the string literal at ``at``, the position behind it): §5.2. Raises IndexError at the end of the block."""
    first = block[at]
    length = first & 0x7F
    at += 1
    if length == 0x7F:  # noqa: PLR2004
        length, at = _integer(block, at, 0x7F)
    end = at + length
    if end > len(block):
        raise HpackError("a string beyond its block")
    return (_huffman_decoded(block[at:end]) if first & 0x80 else block[at:end]), end


# Huffman (§5.2, appendix B), a byte at a time: the state is the node of the code's tree at which a byte begins. There
# are 256 inner nodes, so that at most 65,536 transitions are computed, each when it is first needed.
_Tree = list[list[int]]


def _tree() -> _Tree:
    """The successors of each node on a 0 and on a 1: a node, or a leaf as ``~symbol``. The root is node 0."""
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
    """The nodes at which a string may end: the root, and those after up to seven ones, the beginning of EOS (§5.2)."""
    node, found = 0, [0]
    for _ in range(7):
        node = _NODES[node][1]
        found.append(node)
    return frozenset(found)


_NODES: Final = _tree()
_ENDS: Final = _padding()
_transitions: Final[dict[int, tuple[int, bytes]]] = {}
_ROOT: Final = 0


def _huffman_decoded(coded: bytes) -> bytes:
    """Decodes a Huffman-coded string. The state is the node times 256, so that state and byte are a step's key."""
    state, parts, transitions = _ROOT, [], _transitions
    for byte in coded:
        try:
            state, symbols = transitions[state | byte]
        except KeyError:
            transitions[state | byte] = state, symbols = _transition(state >> 8, byte)
        parts.append(symbols)
    if state >> 8 not in _ENDS:
        raise HpackError("a Huffman-coded text that ends within a symbol")
    return b"".join(parts)


def _transition(node: int, byte: int) -> tuple[int, bytes]:
    """(the state after this byte, the symbols that it completes)."""
    symbols = bytearray()
    for place in range(7, -1, -1):
        node = _NODES[node][byte >> place & 1]
        if node < 0:
            if ~node == _EOS:
                raise HpackError("the symbol EOS within a Huffman-coded text")
            symbols.append(~node)
            node = 0
    return node << 8, bytes(symbols)
