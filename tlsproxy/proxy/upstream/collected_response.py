"""Response of the upstream that is read whole."""

from __future__ import annotations

from tlsproxy.wire.chunked import ChunkedBody
from tlsproxy.wire.http1 import CHUNKED
from tlsproxy.wire.http1_response import ResponseHead


class CollectedResponse:
    """``head``: None until it came. ``content``: the body without its framing, as far as it was received."""

    __slots__ = ("_chunks", "content", "head")

    def __init__(self) -> None:
        self.head: ResponseHead | None = None
        self.content = bytearray()
        self._chunks: ChunkedBody | None = None

    def begin(self, head: ResponseHead) -> None:
        self.head = head
        self._chunks = ChunkedBody(self.content) if head.length == CHUNKED else None

    def feed(self, data: bytes) -> None:
        if self._chunks is None:
            self.content += data
        elif data:
            self._chunks.feed(data)

    @property
    def complete(self) -> bool:
        """Whether the whole body has come; False for one that ends with its connection."""
        if self._chunks is not None:
            return self._chunks.done
        return self.head is not None and 0 <= self.head.length <= len(self.content)

    def whole(self) -> tuple[ResponseHead, bytearray]:
        """Raises RuntimeError without a head."""
        if self.head is None:
            raise RuntimeError("the end of a response that never began")
        return self.head, self.content
