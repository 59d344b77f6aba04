"""The answer to a tenant's request over REST, without Qdrant's `usage`, as it streams by.

How long it will be is not known before its end, so it comes in chunks; one that is whole before any of it has gone on
has its length instead.
"""

from __future__ import annotations

import re
from typing import Final

from tlsproxy.errors import UpstreamBroken
from tlsproxy.wire.chunked import ChunkedBody
from tlsproxy.wire.http1 import CHUNKED
from tlsproxy.wire.http1_response import ResponseHead
from tlsproxy.wire.usage_filter import UsageFilter

_LAST: Final = b"0\r\n\r\n"
_ENCODED: Final = re.compile(rb"^content-encoding:(?![ \t]*identity[ \t]*\r\n)", re.IGNORECASE | re.MULTILINE)


class StreamedAnswer:
    """One answer. ``begun``: its head (``head``) and some of its body have been sent."""

    __slots__ = ("_chunks", "_content", "_encoded", "_without", "begun", "head")

    def __init__(self, head: ResponseHead) -> None:
        self._encoded = _ENCODED.search(head.fields) is not None
        self._content = bytearray()
        self._chunks = ChunkedBody(self._content) if head.length == CHUNKED else None
        self._without = UsageFilter()
        self.head = head.reframed(CHUNKED)
        self.begun = False

    def feed(self, data: bytes) -> bytes:
        """The chunk to send now, if any. Raises :class:`UpstreamBroken`."""
        if self._encoded and data:  # it was not asked for that
            raise UpstreamBroken("The upstream's answer cannot be reduced to what you may know")
        if self._chunks is not None and data:
            self._chunks.feed(data)
            data = bytes(self._content)
            self._content.clear()
        return self._chunk(self._without.feed(data))

    def close(self) -> bytes:
        """The rest, and its end; ``head`` is that of the whole if none has begun."""
        rest = self._without.close()
        if self.begun:
            return self._chunk(rest) + _LAST
        self.head = self.head.reframed(len(rest))
        return rest

    def _chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
