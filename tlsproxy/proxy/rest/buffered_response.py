"""The ground of exchanges whose response is made here: its memory is held until the client has taken it."""

from __future__ import annotations

from typing import Final

from tlsproxy.errors import NoMemory
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.memory_budget import MemoryShare
from tlsproxy.proxy.core.record import Record, RequestBody
from tlsproxy.proxy.decision.request_plan import Plan
from tlsproxy.proxy.rest.admitting import Client
from tlsproxy.proxy.rest.exchange import Exchange
from tlsproxy.proxy.upstream.upstreams import Upstreams

PIECE: Final = 131_072
"""Bytes that are handed to the client's stream at a time."""


class DeliveredExchange(Exchange):
    """``_left`` is what the client has no room for yet."""

    __slots__ = ("_holding", "_left")

    def __init__(
        self, gateway: Gateway, upstreams: Upstreams, client: Client, record: Record[Plan], body: RequestBody
    ) -> None:
        super().__init__(gateway, upstreams, client, record, body)
        self._holding = MemoryShare(
            gateway, self.account, self, lambda _: NoMemory("The answer is too large to be read")
        )
        self._left = memoryview(b"")

    def _deliver(self, body: bytes) -> None:
        """Sends ``body``, which is all that follows the head. Ends the exchange."""
        self._holding.settle(len(body))
        self._left = memoryview(body)
        self._deliver_on()

    def _deliver_on(self) -> None:
        while self._left and not self._client.stream.stalled:
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
        self._holding.release()
