"""What has come of a connection's requests and was not taken yet: heads are cut out of it one at a time.

Each byte of an unfinished head is looked at once, however small the pieces in which it comes: a client that sends its
head byte by byte costs no more than the bytes do.
"""

from __future__ import annotations

from tlsproxy.errors import BadRequest, HeadTooLarge
from tlsproxy.wire.http1 import END, has_bare_lf


class Inbox:
    """``data`` is what was not taken. It is bounded by who feeds it, the head by ``max_head`` bytes.

    Before ``_searched`` no end of a head begins.
    """

    __slots__ = ("_max_head", "_searched", "data")

    def __init__(self, max_head: int) -> None:
        self.data = b""
        self._max_head = max_head
        self._searched = 0

    def add(self, data: bytes) -> None:
        self.data = self.data + data if self.data else data

    def keep(self, rest: bytes) -> None:
        """What is left of ``data`` after a body was taken from it."""
        self.data, self._searched = rest, 0

    def head(self) -> bytes | None:
        """The next head up to and with its empty line, taken; None until it is whole.

        Raises :class:`HeadTooLarge`, and :class:`BadRequest` where waiting for its end is of no use.
        """
        data = self.data
        end = data.find(END, self._searched)
        if end >= 0:
            end += len(END)
            if end > self._max_head:
                raise self._too_large()
            self.data, self._searched = data[end:], 0
            return data[:end]
        if len(data) > self._max_head:
            raise self._too_large()
        if has_bare_lf(data, self._searched):
            raise BadRequest("Header lines end with CRLF")
        self._searched = max(0, len(data) - len(END) + 1)
        return None

    def _too_large(self) -> HeadTooLarge:
        return HeadTooLarge(f"The request head exceeds {self._max_head} bytes")
