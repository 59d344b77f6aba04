"""An HPACK decoder (RFC 7541) for the field blocks of one direction of a connection.

The tables are those of the library ``hpack``, whose own decoder takes four times as long: 78 µs for the ten fields of a
call whose metadata changes from call to call, as real clients' does. Property tests compare the two.
"""

from __future__ import annotations

from typing import Final, cast

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
    second list has the sizes. Most of a client's block are such bytes: `82 87` is `:method: GET`, `:scheme: https`.

    Its fields have no type, as a typed tuple is made anew where compiled code takes it: two calls with a field of the
    table have the same object, which is equal at a glance.
    """

    __slots__ = ("_fields", "_limit", "_room", "_size", "_sizes", "_table", "changes")

    def __init__(self, limit: int, table: int) -> None:
        """``limit``: most bytes of a block's fields with their overhead; ``table``: most bytes of the dynamic table."""
        self._limit = limit
        self._table = self._room = table
        self._size = 0
        self.changes = 0
        self._fields: list[object] = [*[_STATIC[0]] * _INDEXED, *_STATIC]
        self._sizes = [*[0] * _INDEXED, *[_counted(field) for field in _STATIC]]

    @property
    def entries(self) -> list[Field]:
        """The fields of the dynamic table, newest first."""
        return cast("list[Field]", self._fields[_DYNAMIC:])

    def decode(self, block: bytes) -> tuple[Field, ...]:
        """The fields of a block. Raises HpackError, after which the decoder cannot be used any more."""
        try:
            return self._decode(block)
        except IndexError:
            raise HpackError("an index that is in no table, or a block that ends within a field") from None

    def _decode(self, block: bytes) -> tuple[Field, ...]:
        table_fields, sizes, limit = self._fields, self._sizes, self._limit
        fields: list[object] = []
        at = size = 0
        end = len(block)
        if end and block[0] & 0xE0 == _RESIZE:
            at = self._resized(block)
        while at < end:
            first = block[at]
            at += 1
            if first > _INDEXED:
                if first == 0xFF:  # noqa: PLR2004
                    index, at = _integer(block, at, 0x7F)
                    first = index + _INDEXED
                fields.append(table_fields[first])
                size += sizes[first]
            elif first == _INDEXED or first & 0xE0 == _RESIZE:
                raise HpackError("an index of 0, or a table size update that is not at the beginning of its block")
            else:  # §6.2: a literal
                mask = 0x3F if first >= 0x40 else 0x0F  # noqa: PLR2004
                index = first & mask
                if index == mask:
                    index, at = _integer(block, at, mask)
                if index:
                    name = cast("Field", table_fields[index + _INDEXED])[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                field: object = (name, value)
                fields.append(field)
                counted = len(name) + len(value) + OVERHEAD
                size += counted
                if first >= 0x40:  # noqa: PLR2004 - §6.2.1
                    self._add(field, counted)
            if size > limit:
                raise TooLarge(f"more than {limit} bytes of fields")
        return cast("tuple[Field, ...]", tuple(fields))

    def _add(self, field: object, counted: int) -> None:
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
    return (_huffman_decoded(block, at, end) if first & 0x80 else block[at:end]), end


# Huffman (§5.2, appendix B), a byte at a time: the state is the node of the code's tree at which a byte begins. There
# are 256 inner nodes, so that at most 65,536 steps are computed, each when it is first needed.
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


class _Step:
    """One byte's step from a node: the symbols that it completes, and the steps from the node that comes after it."""

    __slots__ = ("after", "symbols")

    def __init__(self, after: _Steps, symbols: bytes) -> None:
        self.after = after
        self.symbols = symbols


class _Steps:
    """The steps from a node by their byte, as far as they were needed. ``ends``: a string may end at the node."""

    __slots__ = ("by_byte", "ends", "node")

    def __init__(self, node: int) -> None:
        self.node = node
        self.ends = node in _ENDS
        self.by_byte: list[_Step | None] = [None] * 256

    def by(self, byte: int) -> _Step:
        """The step by a byte, found now."""
        node, symbols = self.node, bytearray()
        for place in range(7, -1, -1):
            node = _NODES[node][byte >> place & 1]
            if node < 0:
                if ~node == _EOS:
                    raise HpackError("the symbol EOS within a Huffman-coded text")
                symbols.append(~node)
                node = 0
        after = _nodes[node] = _nodes.get(node) or _Steps(node)
        step = self.by_byte[byte] = _Step(after, bytes(symbols))
        return step


_ROOT: Final = _Steps(0)
_nodes: Final = {0: _ROOT}


def _huffman_decoded(block: bytes, at: int, end: int) -> bytes:
    steps, parts = _ROOT, []
    while at < end:
        byte = block[at]
        step = steps.by_byte[byte] or steps.by(byte)
        parts.append(step.symbols)
        steps = step.after
        at += 1
    if not steps.ends:
        raise HpackError("a Huffman-coded text that ends within a symbol")
    return b"".join(parts)
