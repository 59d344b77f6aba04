"""REST response to a caller confined to a tenant: Qdrant's `usage` is removed while it streams.

The length without `usage` is known only at the end, so the response is sent in chunks. One that ends before its first
byte was sent has a `content-length` instead.
"""

from __future__ import annotations

import re
from typing import Final

from tlsproxy.errors import UpstreamBroken
from tlsproxy.wire.chunked import LAST_CHUNK, ChunkedBody, chunk
from tlsproxy.wire.http1 import CHUNKED
from tlsproxy.wire.http1_response import ResponseHead
from tlsproxy.wire.usage_filter import UsageFilter

_ENCODED: Final = re.compile(rb"^content-encoding:(?![ \t]*identity[ \t]*\r\n)", re.IGNORECASE | re.MULTILINE)


class StreamedAnswer:
    """Filtered response. ``begun``: ``head`` and a part of the body have been sent."""

    __slots__ = ("_chunks", "_content", "_encoded", "_filter", "begun", "head")

    def __init__(self, head: ResponseHead) -> None:
        self._encoded = _ENCODED.search(head.fields) is not None
        self._content = bytearray()
        self._chunks = ChunkedBody(self._content) if head.length == CHUNKED else None
        self._filter = UsageFilter()
        self.head = head.reframed(CHUNKED)
        self.begun = False

    def feed(self, data: bytes) -> bytes:
        """The chunk to send now, if any. Raises :class:`UpstreamBroken`."""
        if self._encoded and data:  # the request asked for no coding
            raise UpstreamBroken("The upstream's answer cannot be reduced to what you may know")
        if self._chunks is not None and data:
            self._chunks.feed(data)
            data = bytes(self._content)
            self._content.clear()
        return chunk(self._filter.feed(data))

    def close(self) -> bytes:
        """Last bytes. Where nothing was sent yet, they are the whole body, and ``head`` gets its length."""
        rest = self._filter.close()
        if self.begun:
            return chunk(rest) + LAST_CHUNK
        self.head = self.head.reframed(len(rest))
        return rest
