"""Field blocks (RFC 9113 §4.3, HPACK of RFC 7541): read with their connection's state, written without any.

A block that is written holds literals and static indexes only, so that leaving one out never desynchronises whoever
reads the others. Clients repeat themselves: a block that was seen before and that neither met nor made a change of the
dynamic table means what it meant.
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
"""A longer block is not remembered: the memo's size in memory is bounded by the product."""
_NO_TABLE: Final = b"\x20"
"""A dynamic table size update to 0 (RFC 7541 §6.3)."""
# What is written often, by its place in the static table (RFC 7541 appendix A).
_INDEXED: Final = {
    (b":method", b"POST"): 3,
    (b":scheme", b"http"): 6,
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


class FieldReader(Generic[T]):
    """Reads the blocks of one direction of one connection, each once and in their order."""

    __slots__ = ("_decoder", "_made", "_memo", "_without")

    def __init__(self, limit: int, made: Callable[[Fields], T], *, table: bool = True) -> None:
        """``limit``: most bytes of a block's fields, each counted with 32 more (RFC 9113 §6.5.2).

        ``made``: what is to be known of them, a pure function. Without a ``table`` nothing may be added to it. That a
        block first says so (RFC 7541 §4.2) is not asked for: gRPC's C library answers late calls with blocks that it
        writes by hand.
        """
        self._decoder = Decoder(limit, TABLE)
        self._without = not table
        self._made = made
        self._memo: dict[bytes, T] = {}

    def read(self, block: bytes) -> T:
        """The same object for the same block, as long as that is so. Raises Http2Error."""
        known = self._memo.get(block)
        if known is not None:
            return known
        decoder = self._decoder
        changes = decoder.changes
        try:
            fields = decoder.decode(block)
        except TooLarge as error:
            raise Http2Error(Code.ENHANCE_YOUR_CALM, str(error), "flood_fields") from None
        except HpackError as error:
            raise Http2Error(Code.COMPRESSION_ERROR, f"a field block that cannot be read: {error}") from None
        if self._without and decoder.entries:
            raise Http2Error(Code.COMPRESSION_ERROR, "a field block that uses a table where there is none")
        known = self._made(fields)
        if decoder.changes != changes:
            self._memo.clear()
        elif len(self._memo) < MEMO and len(block) <= MEMO_BLOCK:
            self._memo[block] = known
        return known


def write(fields: Fields) -> bytes:
    """A block of these fields. It says that there is no table, which a reader may wait to be told (RFC 7541 §4.2)."""
    return _NO_TABLE + literals(fields)


def literals(fields: Fields) -> bytes:
    """The rest of a block."""
    return b"".join([_field(name, value) for name, value in fields])


def _field(name: bytes, value: bytes) -> bytes:
    whole = _INDEXED.get((name, value))
    if whole is not None:
        return bytes((0x80 | whole,))
    index = _NAMES.get(name)
    return (b"\x00" + _string(name) if index is None else _integer(index, 4)) + _string(value)


def _string(value: bytes) -> bytes:
    """Not Huffman-coded: on a link that is a loopback or a short wire, it would cost more than it saves."""
    return _integer(len(value), 7) + value


def _integer(value: int, bits: int) -> bytes:
    """RFC 7541 §5.1, with no bits of ours before it."""
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
