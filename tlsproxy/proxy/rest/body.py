"""Bodies of requests: framing, limits and kept content."""

from __future__ import annotations

from typing import Final

from tlsproxy.errors import BadRequest, BodyTooLarge, RoleBodyTooLarge
from tlsproxy.wire.chunked import ChunkedBody, ChunkedError
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.head_buffer import HeadBuffer
from tlsproxy.wire.http1 import CHUNKED

SMALL_REST: Final = 65_536
"""Refused body that is read and dropped, at most, in bytes; a larger one closes the connection."""


class RequestBody:
    """Framing of one request's body. ``done``: its end is known to be behind; from the start where there is no body.

    ``buffer`` is the connection's, and begins with received bytes of this body. ``content``: the body without its
    framing as far as it was taken, or None where it is not kept; what comes in one piece is not copied.
    """

    __slots__ = ("_chunks", "_left", "_limit", "_of_role", "buffer", "content", "done")

    def __init__(
        self, buffer: HeadBuffer, length: int, limit: int, *, of_role: bool = False, keep: bool = False
    ) -> None:
        """``of_role``: the limit is of the caller's role. Raises :class:`BodyTooLarge` if the length exceeds it."""
        self.buffer = buffer
        self._limit = limit
        self._of_role = of_role
        decoded = bytearray() if keep and length == CHUNKED else None
        self.content: Content | None = b"" if keep and decoded is None else decoded
        self._chunks = ChunkedBody(decoded) if length == CHUNKED else None
        self._left = max(0, length)
        self.done = length == 0
        if length > limit:
            raise self._too_large()

    @property
    def chunked(self) -> bool:
        return self._chunks is not None

    @property
    def left(self) -> int | None:
        """Bytes not yet taken; None where their number is not known."""
        return None if self._chunks is not None and not self.done else self._left

    @property
    def arrived(self) -> bool:
        """Whether it is known to be in the buffer whole."""
        left = self.left
        return left is not None and left <= len(self.buffer)

    def skippable(self, *, expected: bool) -> bool:
        """Whether the rest can be received and dropped. ``expected``: the client waits for `100 Continue`, and may now
        send the body or the next head.
        """
        left = self.left
        return left == 0 or (left is not None and left <= SMALL_REST and not expected)

    def take(self) -> tuple[bytes, int]:
        """Takes received bytes: (bytes to forward, number taken). Of very many chunks some are left.

        Raises :class:`BadRequest`, :class:`BodyTooLarge`.
        """
        buffer = self.buffer
        data, start = buffer.data, buffer.start
        if self._chunks is not None:
            try:
                forward, end = self._chunks.feed(data, start)
            except ChunkedError as error:
                raise BadRequest(f"Malformed chunked body: {error}") from None
            if self._chunks.size > self._limit:
                raise self._too_large()
            self.done = self._chunks.done
            buffer.take(end)
            return forward, end - start
        end = min(len(data), start + self._left)
        forward = data[start:end]
        self._left -= end - start
        self.done = self._left == 0
        content = self.content
        if isinstance(content, bytearray):
            content += forward
        elif content is not None:
            self.content = forward if self.done else bytearray(forward)
        buffer.take(end)
        return forward, end - start

    def hand_over(self) -> Content:
        """Gives the content away, keeping no reference to it."""
        content, self.content = self.content, None
        if self._chunks is not None:
            self._chunks.forget()
        return content or b""

    def _too_large(self) -> BodyTooLarge:
        if self._of_role:
            return RoleBodyTooLarge(self._limit)
        return BodyTooLarge(f"The body is larger than allowed (limit: {self._limit} bytes)")


NO_BODY: Final = RequestBody(HeadBuffer(), 0, 0)
