"""Exchange with a response that is read whole, reduced to what its caller may see, then sent.

Only the status and the reduced body pass: no header, and of a listing no error text, which may name hidden collections.
Example: of `GET /collections` a caller with rights on `docs` alone gets a list with `docs`, if it exists, and nothing
else.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from tlsproxy.errors import NoMemory, RequestError, UpstreamBroken
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import in_slices
from tlsproxy.proxy.decision.request_plan import Plan, Reduced, Relayed
from tlsproxy.proxy.rest.body import RequestBody
from tlsproxy.proxy.rest.buffered_response import DeliveredExchange
from tlsproxy.proxy.rest.link import ExchangeHandler
from tlsproxy.proxy.upstream.collected_response import CollectedResponse
from tlsproxy.qdrant.rest_answers import error_of
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.http1_response import ResponseHead

MAX_ANSWER: Final = 32 << 20
"""Bytes: the telemetry of thousands of collections."""
_OK: Final = 200
_ERRORS: Final = range(400, 600)
_ERROR: Final = b'{"status":{"error":"The upstream refused; its reason may name what you may not know"},"time":0.0}'


class ReducedExchange(DeliveredExchange):
    """Exchange with a reduced response, unless its plan's route is :class:`Relayed` when the response begins.

    Another route than :class:`Reduced`, which has the reducer of a status 200, leaves nothing of it.
    """

    __slots__ = ("_collected", "_relays")

    def __init__(self, client: ExchangeHandler, record: Record[Plan], body: RequestBody) -> None:
        super().__init__(client, record, body)
        self._collected = CollectedResponse()
        self._relays = False

    def response_head(self, head: ResponseHead) -> None:
        self._relays = isinstance(self.record.plan.route, Relayed)
        if self._relays:
            super().response_head(head)
        else:
            self._collected.begin(head)

    def response_body(self, data: bytes) -> None:
        if self._relays:
            super().response_body(data)
            return
        self._collected.feed(data)
        if len(self._collected.content) > MAX_ANSWER:
            self._client.exchange_failed(UpstreamBroken("The upstream's answer is too large to be reduced"))
            return
        try:
            if not self._memory.waits and not self._reserve() and self._upstream is not None:
                self._upstream.pause()
        except NoMemory as error:
            self._client.exchange_failed(error)

    def _reserve(self) -> bool:
        """Takes memory for the collected body. False: waits for it, :meth:`_memory_granted` follows."""
        return self._memory.keep(len(self._collected.content), self._memory_granted)

    def _memory_granted(self) -> None:
        if not self._reserve():
            return
        if self._upstream is not None:
            self._upstream.resume()
        else:
            self._collected_whole()

    def response_done(self) -> None:
        if self._relays:
            super().response_done()
            return
        self._upstream = None
        if not self._memory.waits:
            self._collected_whole()

    def _collected_whole(self) -> None:
        head, _ = self._collected.whole()
        self._client.present()
        if not self._ended:
            self._reduce(head)

    def _reduce(self, head: ResponseHead) -> None:
        reducer = self._reducer()
        in_slices(self._memory, self._reduction(head, reducer), partial(self._send_reduced, head, reducer))

    def _reducer(self) -> Reducer | None:
        route = self.record.plan.route
        return route.reducer if isinstance(route, Reduced) else None

    def _send_reduced(self, head: ResponseHead, reducer: Reducer | None, reduced: bytes | RequestError | None) -> None:
        if reducer is not self._reducer():  # the rights have changed meanwhile
            self._reduce(head)
            return
        self._collected.content.clear()
        if reduced is None:
            reduced = UpstreamBroken("The upstream's answer cannot be reduced to what you may know")
        if isinstance(reduced, RequestError):
            self._client.exchange_failed(reduced)
            return
        fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(reduced) + self.record.plan.fields
        super().response_head(ResponseHead(head.status, head.line, fields, len(reduced), head.keep, head.ends))
        self._deliver(reduced)

    def _reduction(self, head: ResponseHead, reducer: Reducer | None) -> Steps[bytes | RequestError | None]:
        content = self._collected.content
        if head.status in _ERRORS:
            return _ERROR if reducer is None or reducer.hides_errors else error_of(content) or _ERROR
        if head.status != _OK or reducer is None:
            return None
        try:
            return (yield from reducer.reducing(content))
        except ValueError:
            return None
        except RequestError as error:
            return error

    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None:
        """Retries are safe until the end: the client has not received a byte of a response that is reduced."""
        super().upstream_lost(error, stale=stale, answered=answered and self._relays)
