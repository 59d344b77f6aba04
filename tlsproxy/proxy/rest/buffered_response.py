"""Base of exchanges with a response made by the gateway: its memory is reserved until the client has taken it."""

from __future__ import annotations

from typing import Final

from tlsproxy.errors import NoMemory
from tlsproxy.proxy.core.memory_budget import MemoryShare
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import in_slices
from tlsproxy.proxy.decision.request_plan import Plan
from tlsproxy.proxy.rest.body import RequestBody
from tlsproxy.proxy.rest.exchange import Exchange
from tlsproxy.proxy.rest.link import ExchangeHandler
from tlsproxy.wire.cooperative import Steps

PIECE: Final = 131_072
"""Bytes written to the client's stream at a time."""
_NOTHING: Final = memoryview(b"")


def _too_large(_capacity: int) -> NoMemory:
    return NoMemory("The answer is too large to be read")


class DeliveredExchange(Exchange):
    """Exchange that sends a whole body as the client takes it. ``_unsent`` is the unsent rest."""

    __slots__ = ("_memory", "_unsent")

    def __init__(self, client: ExchangeHandler, record: Record[Plan], body: RequestBody) -> None:
        super().__init__(client, record, body)
        self._memory = MemoryShare(self._gateway, self.account, self, _too_large)
        self._unsent = _NOTHING

    def _deliver(self, body: bytes) -> None:
        """Sends ``body``, the whole of it, after the head. Ends the exchange."""
        self._memory.settle(len(body))
        if len(body) > PIECE or self._stream.stalled:
            self._unsent = memoryview(body)
            self._deliver_more()
        else:
            super().response_body(body)
            super().response_done()

    def _deliver_more(self) -> None:
        in_slices(self._memory, self._delivery(), self._delivered)

    def _delivery(self) -> Steps[None]:
        """In steps: a client that reads fast enough never stalls."""
        while self._unsent and not self._stream.stalled:
            self._send_piece()
            yield None

    def _send_piece(self) -> None:
        piece, self._unsent = self._unsent[:PIECE], self._unsent[PIECE:]
        super().response_body(bytes(piece))

    def _delivered(self, _: None) -> None:
        if not self._unsent:
            super().response_done()

    def resume_response(self) -> None:
        if self._unsent:
            self._deliver_more()
        else:
            super().resume_response()

    def over(self) -> None:
        super().over()
        self._memory.release()
