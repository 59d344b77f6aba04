"""A message body's content coding (RFC 9110 §8.4.1) undone under a limit, for whoever must know what the body says.

Only one coding at a time and one stream: what follows the end of a gzip member is read by some and ignored by others.
"""

from __future__ import annotations

import zlib
from typing import Final, TypeAlias

from tlsproxy.errors import BadRequest, BodyTooLarge, CodingRefused
from tlsproxy.wire.cooperative import Steps

_WINDOW: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""As zlib's `wbits`: a gzip header and trailer, or zlib's own, which is what HTTP calls deflate."""


PIECE: Final = 1 << 16
"""Bytes that are decoded in one step, at most."""
_FED: Final = 1 << 14
"""Bytes that are decoded from: what of them has to wait is copied in each step."""


Content: TypeAlias = bytes | bytearray
"""It is not copied where it need not be."""


def decoding(content: Content, coding: str | None, limit: int) -> Steps[Content]:
    """At most ``limit`` bytes, for which each step asks before they are there.

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
    fed: Content = b""
    while fed or position < len(content) or len(piece) == PIECE:
        if not fed:
            fed = content[position : position + _FED]
            position += len(fed)
        yield max(len(plain) + PIECE, min(declared, limit)) + PIECE
        try:
            piece = stream.decompress(fed, PIECE)
        except zlib.error:
            raise BadRequest(f"Malformed {name} body") from None
        plain += piece
        if len(plain) > limit:
            raise BodyTooLarge(f"The decoded body is larger than allowed (limit: {limit} bytes)")
        fed = stream.unconsumed_tail
        if stream.eof:
            break
    if not stream.eof or stream.unused_data or position < len(content):
        raise BadRequest(f"Malformed {name} body")
    return plain
