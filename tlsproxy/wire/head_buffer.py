"""Received bytes of a client connection that are not consumed yet; request heads are cut out of them one at a time.

Each byte of an incomplete head is searched once, and bytes behind a head are not moved. So the cost is linear in the
bytes, for a head that comes byte by byte as for thousands of pipelined heads in one read.
"""

from __future__ import annotations

from tlsproxy.errors import BadRequest, HeadTooLarge
from tlsproxy.wire.http1 import END, has_bare_lf


class HeadBuffer:
    """``data`` from ``start`` on is not consumed yet; ``data`` is empty where nothing is left. The caller bounds it.

    No end of a head begins before ``_searched``.
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
        """Consumes all bytes before ``end``, a position in ``data``."""
        if end == len(self.data):
            self.data, self.start, self._searched = b"", 0, 0
        else:
            self.start = self._searched = end

    def put_back(self, data: bytes) -> None:
        """Inserts bytes before all others, to be read again."""
        self.data, self.start, self._searched = data + self.data[self.start :], 0, 0

    def clear(self) -> None:
        self.take(len(self.data))

    def head(self, longest: int) -> bytes | None:
        """Consumes the next head, its empty line included; None while it is incomplete. ``longest``: in bytes.

        Raises :class:`HeadTooLarge`, and :class:`BadRequest` for an incomplete head that cannot become a valid one.
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
