"""The ground of exchanges whose response is made here: its memory is held until the client has taken it."""

from __future__ import annotations

from typing import Final

from tlsproxy.errors import NoMemory
from tlsproxy.proxy.core.memory_budget import MemoryShare
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.decision.request_plan import Plan
from tlsproxy.proxy.rest.body import RequestBody
from tlsproxy.proxy.rest.exchange import Exchange
from tlsproxy.proxy.rest.link import ExchangeHandler

PIECE: Final = 131_072
"""Bytes that are handed to the client's stream at a time."""


def _too_large(_capacity: int) -> NoMemory:
    return NoMemory("The answer is too large to be read")


class DeliveredExchange(Exchange):
    """``_left`` is what the client has no room for yet."""

    __slots__ = ("_holding", "_left")

    def __init__(self, client: ExchangeHandler, record: Record[Plan], body: RequestBody) -> None:
        super().__init__(client, record, body)
        self._holding = MemoryShare(self._gateway, self.account, self, _too_large)
        self._left = memoryview(b"")

    def _deliver(self, body: bytes) -> None:
        """Sends ``body``, which is all that follows the head. Ends the exchange."""
        self._holding.settle(len(body))
        self._left = memoryview(body)
        self._deliver_on()

    def _deliver_on(self) -> None:
        while self._left and not self._stream.stalled:
            piece, self._left = self._left[:PIECE], self._left[PIECE:]
            super().response_body(bytes(piece))
        if not self._left:
            super().response_done()

    def resume_response(self) -> None:
        if self._left:
            self._deliver_on()
        else:
            super().resume_response()

    def over(self) -> None:
        super().over()
        self._holding.release()
