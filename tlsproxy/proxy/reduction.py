"""The exchange of a listing of whose answer the caller may see a part: it is read whole, reduced, then sent.

Nothing of what the upstream said passes but its status and what the reduction kept: no header, and no text of an error,
which may name what the caller must not know.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from tlsproxy.errors import Overloaded, RequestError, UpstreamBroken
from tlsproxy.proxy.admitting import Client
from tlsproxy.proxy.exchange import Exchange
from tlsproxy.proxy.gateway import Gateway
from tlsproxy.proxy.holding import Holding
from tlsproxy.proxy.plan import Plan
from tlsproxy.proxy.pool import Pool
from tlsproxy.proxy.record import Record, RequestBody
from tlsproxy.proxy.slices import in_slices
from tlsproxy.qdrant.listings import Reducer
from tlsproxy.wire.chunked import ChunkedBody
from tlsproxy.wire.http1 import CHUNKED
from tlsproxy.wire.response import ResponseHead
from tlsproxy.wire.steps import Steps

MAX_ANSWER: Final = 32 << 20
"""Bytes: the telemetry of thousands of collections."""
_OK: Final = 200
_ERRORS: Final = range(400, 600)
_ERROR: Final = b'{"status":{"error":"The upstream refused; its reason may name what you may not know"},"time":0.0}'


class ReducedExchange(Exchange):
    """Its plan's ``listing`` says what is kept of a good answer."""

    __slots__ = ("_answer", "_answered", "_chunks", "_holding")

    def __init__(self, gateway: Gateway, pool: Pool, client: Client, record: Record[Plan], body: RequestBody) -> None:
        super().__init__(gateway, pool, client, record, body)
        self._answer = bytearray()
        self._answered: ResponseHead | None = None
        self._chunks: ChunkedBody | None = None
        self._holding = Holding(gateway)

    def response_head(self, head: ResponseHead) -> None:
        self._answered = head
        self._chunks = ChunkedBody(self._answer) if head.length == CHUNKED else None

    def response_body(self, data: bytes) -> None:
        if self._chunks is None:
            self._answer += data
        elif data:
            self._chunks.feed(data)
        try:
            self._holding.grow(len(self._answer))
        except Overloaded as error:
            self._client.exchange_failed(error)
            return
        if len(self._answer) > MAX_ANSWER:
            self._client.exchange_failed(UpstreamBroken("The upstream's answer is too large to be reduced"))

    def response_done(self) -> None:
        head, answer = self._answered, bytes(self._answer)
        self._answer.clear()
        self._upstream = None
        if head is None:
            raise RuntimeError("the end of no answer")
        self._client.present()
        if not self._ended:
            self._reduce(head, answer)

    def _reduce(self, head: ResponseHead, answer: bytes) -> None:
        listing = self.record.plan.listing
        in_slices(self, self._showing(head, answer, listing), partial(self._show, head, answer, listing))

    def _show(self, head: ResponseHead, answer: bytes, listing: Reducer | None, shown: bytes | None) -> None:
        if listing is not self.record.plan.listing:  # meanwhile something else may be shown
            self._reduce(head, answer)
            return
        if shown is None:
            self._client.exchange_failed(UpstreamBroken("The upstream's answer cannot be reduced to what you may know"))
            return
        fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(shown) + self.record.plan.fields
        super().response_head(replace(head, fields=fields, length=len(shown)))
        super().response_body(shown)
        super().response_done()

    def _showing(self, head: ResponseHead, answer: bytes, listing: Reducer | None) -> Steps[bytes | None]:
        if head.status in _ERRORS:
            return _ERROR
        if head.status != _OK or listing is None:
            return None
        try:
            return (yield from listing.reducing(answer))
        except ValueError:
            return None

    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None:
        """Whatever has come, the client was told nothing yet."""
        del answered
        super().upstream_lost(error, stale=stale, answered=False)

    def over(self) -> None:
        self._holding.release()
