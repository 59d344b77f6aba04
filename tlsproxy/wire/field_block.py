"""Field blocks (RFC 9113 §4.3, HPACK of RFC 7541): decoded with their connection's dynamic table, encoded without one.

An encoded block has literals and static indexes only, so that leaving one out never desynchronises the peer's decoder.
Clients send the same block again and again: as long as the dynamic table does not change, it has the same meaning, and
is looked up in a memo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from tlsproxy.wire.hpack import Decoder, Field, HpackError, TooLarge
from tlsproxy.wire.http2 import TABLE, Code, Http2Error

Fields = tuple[Field, ...]
T = TypeVar("T")

MEMO: Final = 256
MEMO_BLOCK: Final = 2048
"""Longer blocks are not memoized: the memo takes at most `MEMO * MEMO_BLOCK` bytes of keys."""
_NO_TABLE: Final = b"\x20"
"""A dynamic table size update to 0 (RFC 7541 §6.3)."""
# Frequent fields and names, by their index in the static table (RFC 7541 appendix A).
_INDEXED: Final = {
    (b":method", b"POST"): 3,
    (b":scheme", b"http"): 6,
    (b":scheme", b"https"): 7,
    (b":status", b"200"): 8,
}
_NAMES: Final = {
    b":authority": 1,
    b":path": 4,
    b":status": 8,
    b"authorization": 23,
    b"content-type": 31,
    b"user-agent": 58,
}


def size_of(fields: Fields) -> int:
    """Bytes of all names and values."""
    return sum(len(name) + len(value) for name, value in fields)


class FieldReader(Generic[T]):
    """Decodes the blocks of one direction of one connection, each once and in order."""

    __slots__ = ("_decoder", "_memo", "_parse", "_table")

    def __init__(self, limit: int, parse: Callable[[Fields], T], *, table: bool = True) -> None:
        """``limit``: most bytes of a block's fields, with 32 more for each (RFC 9113 §6.5.2).

        ``parse``: a pure function from the fields to the value that :meth:`read` returns. ``table``: false where we
        have announced a dynamic table of 0 bytes, so that no entry may be added. A block need not confirm that by a
        size update (RFC 7541 §4.2): gRPC's C library answers expired calls with handwritten blocks without one.
        """
        self._decoder = Decoder(limit, TABLE)
        self._table = table
        self._parse = parse
        self._memo: dict[bytes, T] = {}

    def read(self, block: bytes) -> T:
        """The value of a block; the same object for the same block while the table is unchanged. Raises Http2Error."""
        value = self._memo.get(block)
        if value is not None:
            return value
        decoder = self._decoder
        changes = decoder.changes
        try:
            fields = decoder.decode(block)
        except TooLarge as excess:
            raise Http2Error(Code.ENHANCE_YOUR_CALM, str(excess), "flood_fields") from None
        except HpackError as error:
            raise Http2Error(Code.COMPRESSION_ERROR, f"a field block that cannot be read: {error}") from None
        if not self._table and decoder.entries:
            raise Http2Error(Code.COMPRESSION_ERROR, "a field block that uses a table where there is none")
        value = self._parse(fields)
        if decoder.changes != changes:
            self._memo.clear()
        elif len(self._memo) < MEMO and len(block) <= MEMO_BLOCK:
            self._memo[block] = value
        return value


def write(fields: Fields) -> bytes:
    """A block of these fields. It begins with a table size of 0, which a decoder may insist on (RFC 7541 §4.2)."""
    return _NO_TABLE + literals(fields)


def literals(fields: Fields) -> bytes:
    """Fields as a part of a block."""
    return b"".join([_field(name, value) for name, value in fields])


def _field(name: bytes, value: bytes) -> bytes:
    whole = _INDEXED.get((name, value))
    if whole is not None:
        return bytes((0x80 | whole,))
    index = _NAMES.get(name)
    return (b"\x00" + _string(name) if index is None else _integer(index, 4)) + _string(value)


def _string(value: bytes) -> bytes:
    """A string literal. Not Huffman-coded: over a loopback or a short link that costs more than it saves."""
    return _integer(len(value), 7) + value


def _integer(value: int, bits: int) -> bytes:
    """An integer (RFC 7541 §5.1); the bits before its prefix are 0."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    out = bytearray((most,))
    value -= most
    while value >= 128:  # noqa: PLR2004 - seven bits at a time
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
