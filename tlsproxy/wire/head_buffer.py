"""What has come of a connection's requests and was not taken yet: heads are cut out of it one at a time.

Each byte of an unfinished head is looked at once, however small the pieces in which it comes, and what follows a head
stays where it is: neither one that comes byte by byte nor thousands that come at once cost more than their bytes do.
"""

from __future__ import annotations

from tlsproxy.errors import BadRequest, HeadTooLarge
from tlsproxy.wire.http1 import END, has_bare_lf


class HeadBuffer:
    """``data`` from ``start`` on is what was not taken; empty where nothing is left. It is bounded by who feeds it.

    Before ``_searched`` no end of a head begins.
    """

    __slots__ = ("_searched", "data", "start")

    def __init__(self) -> None:
        self.data = b""
        self.start = 0
        self._searched = 0

    def __len__(self) -> int:
        return len(self.data) - self.start

    def add(self, data: bytes) -> None:
        if not self.data:
            self.data = data
            return
        self.data = self.data[self.start :] + data
        self._searched -= self.start
        self.start = 0

    def take(self, end: int) -> None:
        """Marks all bytes before ``end``, a position in ``data``, as taken."""
        if end == len(self.data):
            self.data, self.start, self._searched = b"", 0, 0
        else:
            self.start = self._searched = end

    def put_back(self, data: bytes) -> None:
        """It comes first again."""
        self.data, self.start, self._searched = data + self.data[self.start :], 0, 0

    def clear(self) -> None:
        self.take(len(self.data))

    def head(self, longest: int) -> bytes | None:
        """The next head up to and with its empty line, taken; None until it is whole. ``longest``: in bytes.

        Raises :class:`HeadTooLarge`, and :class:`BadRequest` where waiting for its end is of no use.
        """
        data, start = self.data, self.start
        end = data.find(END, self._searched)
        if end >= 0:
            end += len(END)
            if end - start > longest:
                raise _too_large(longest)
            self.take(end)
            return data[start:end]
        if len(data) - start > longest:
            raise _too_large(longest)
        if has_bare_lf(data, self._searched):
            raise BadRequest("Header lines end with CRLF")
        self._searched = max(start, len(data) - len(END) + 1)
        return None


def _too_large(longest: int) -> HeadTooLarge:
    return HeadTooLarge(f"The request head exceeds {longest} bytes")
