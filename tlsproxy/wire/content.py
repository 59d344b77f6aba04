"""A message body's content coding (RFC 9110 §8.4.1) undone under a limit, for whoever must know what the body says.

Only one coding at a time and one stream: what follows the end of a gzip member is read by some and ignored by others.
"""

from __future__ import annotations

import zlib
from typing import Final

from tlsproxy.errors import BadRequest, BodyTooLarge, CodingRefused
from tlsproxy.wire.steps import Steps

_WINDOW: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""As zlib's `wbits`: a gzip header and trailer, or zlib's own, which is what HTTP calls deflate."""


PIECE: Final = 1 << 20
"""Bytes that are decoded in one step."""


def decoding(content: bytes, coding: str | None, limit: int) -> Steps[bytes]:
    """At most ``limit`` bytes. Raises :class:`CodingRefused`, :class:`BadRequest`, :class:`BodyTooLarge`."""
    name = (coding or "identity").lower()
    if name == "identity":
        return content
    window = _WINDOW.get(name)
    if window is None:
        raise CodingRefused("The only content codings that are understood here are gzip and deflate")
    stream = zlib.decompressobj(window)
    plain, piece = bytearray(), b""
    while content or len(piece) == PIECE:
        try:
            piece = stream.decompress(content, PIECE)
        except zlib.error:
            raise BadRequest(f"Malformed {name} body") from None
        plain += piece
        if len(plain) > limit:
            raise BodyTooLarge(f"The decoded body is larger than allowed (limit: {limit} bytes)")
        content = stream.unconsumed_tail
        yield
    if not stream.eof or stream.unused_data:
        raise BadRequest(f"Malformed {name} body")
    return bytes(plain)
