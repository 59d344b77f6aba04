"""Decodes the content coding of a message body (RFC 9110 §8.4.1), up to a limit.

One coding and one stream only: a second gzip member behind the first is decoded by some readers and ignored by others.
"""

from __future__ import annotations

import zlib
from typing import Final, TypeAlias

from tlsproxy.errors import BadRequest, BodyTooLarge, CodingRefused
from tlsproxy.wire.cooperative import Steps

_WINDOW: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""As zlib's `wbits`: a gzip header and trailer, or zlib's own, which is what HTTP calls deflate."""


PIECE: Final = 1 << 16
"""Most bytes that one step decodes to."""
_INPUT: Final = 1 << 14
"""Encoded bytes that are passed to zlib at once: each step copies those that it has not consumed yet."""


Content: TypeAlias = bytes | bytearray
"""A body, copied only where it has to be."""


def decoding(content: Content, coding: str | None, limit: int) -> Steps[Content]:
    """Decodes to at most ``limit`` bytes. Each step asks for the memory of the next piece before it is decoded.

    Raises :class:`CodingRefused`, :class:`BadRequest`, :class:`BodyTooLarge`.
    """
    name = (coding or "identity").lower()
    if name == "identity":
        return content
    window = _WINDOW.get(name)
    if window is None:
        raise CodingRefused("The only content codings that are understood here are gzip and deflate")
    stream = zlib.decompressobj(window)
    declared = int.from_bytes(content[-4:], "little") if name == "gzip" else 0  # RFC 1952 §2.3.1
    plain, piece = bytearray(), b""
    position = 0
    pending: Content = b""
    while pending or position < len(content) or len(piece) == PIECE:
        if not pending:
            pending = content[position : position + _INPUT]
            position += len(pending)
        yield max(len(plain) + PIECE, min(declared, limit)) + PIECE
        try:
            piece = stream.decompress(pending, PIECE)
        except zlib.error:
            raise BadRequest(f"Malformed {name} body") from None
        plain += piece
        if len(plain) > limit:
            raise BodyTooLarge(f"The decoded body is larger than allowed (limit: {limit} bytes)")
        pending = stream.unconsumed_tail
        if stream.eof:
            break
    if not stream.eof or stream.unused_data or position < len(content):
        raise BadRequest(f"Malformed {name} body")
    return plain
