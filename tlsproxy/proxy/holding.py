"""The budget of bodies that are kept whole: a limited caller's query, and the answer to its listing.

All of them together may hold ``limits.inspection_memory_mb``. Who finds that used up is told to come again: nobody
waits for it, so that slow bodies lock others out for no longer than a body may take.
"""

from __future__ import annotations

from tlsproxy.errors import Overloaded
from tlsproxy.proxy.gateway import Gateway


class Holding:
    """The share of one body. Whoever made it must :meth:`release` it, once or more often."""

    __slots__ = ("_gateway", "_size")

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._size = 0

    def grow(self, size: int) -> None:
        """``size`` is that of the whole body as far as it has come. Raises :class:`Overloaded`."""
        self._gateway.held += size - self._size
        self._size = size
        if self._gateway.held > self._gateway.generation.config.limits.inspection_memory_mb << 20:
            raise Overloaded("Too many bodies are being read at once")

    def release(self) -> None:
        self._gateway.held -= self._size
        self._size = 0
