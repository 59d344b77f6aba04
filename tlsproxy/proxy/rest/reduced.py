"""The exchange of a listing of whose answer the caller may see a part: it is read whole, reduced, then sent.

Nothing of what the upstream said passes but its status and what the reduction kept: no header, and no text of an error,
which may name what the caller must not know.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from tlsproxy.errors import NoMemory, RequestError, UpstreamBroken
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import in_slices
from tlsproxy.proxy.decision.request_plan import Plan, Reduced
from tlsproxy.proxy.rest.body import RequestBody
from tlsproxy.proxy.rest.buffered_response import DeliveredExchange
from tlsproxy.proxy.rest.link import ExchangeHandler
from tlsproxy.proxy.upstream.collected_response import CollectedResponse
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.http1_response import ResponseHead

MAX_ANSWER: Final = 32 << 20
"""Bytes: the telemetry of thousands of collections."""
_OK: Final = 200
_ERRORS: Final = range(400, 600)
_ERROR: Final = b'{"status":{"error":"The upstream refused; its reason may name what you may not know"},"time":0.0}'


class ReducedExchange(DeliveredExchange):
    """The plan's :class:`Reduced` route says what is left of a good answer."""

    __slots__ = ("_collected",)

    def __init__(self, client: ExchangeHandler, record: Record[Plan], body: RequestBody) -> None:
        super().__init__(client, record, body)
        self._collected = CollectedResponse()

    def response_head(self, head: ResponseHead) -> None:
        self._collected.begin(head)

    def response_body(self, data: bytes) -> None:
        self._collected.feed(data)
        if len(self._collected.content) > MAX_ANSWER:
            self._client.exchange_failed(UpstreamBroken("The upstream's answer is too large to be reduced"))
            return
        try:
            if not self._holding.waits and not self._count() and self._upstream is not None:
                self._upstream.pause()
        except NoMemory as error:
            self._client.exchange_failed(error)

    def _count(self) -> bool:
        """Whether there is memory for what has come; if not, it waits for some."""
        return self._holding.keep(len(self._collected.content), self._read_on)

    def _read_on(self) -> None:
        if not self._count():
            return
        if self._upstream is not None:
            self._upstream.resume()
        else:
            self._answer_is_whole()

    def response_done(self) -> None:
        self._upstream = None
        if not self._holding.waits:
            self._answer_is_whole()

    def _answer_is_whole(self) -> None:
        head, _ = self._collected.whole()
        self._client.present()
        if not self._ended:
            self._reduce(head)

    def _reduce(self, head: ResponseHead) -> None:
        reducer = self._reducer()
        in_slices(self._holding, self._showing(head, reducer), partial(self._show, head, reducer))

    def _reducer(self) -> Reducer | None:
        route = self.record.plan.route
        return route.reducer if isinstance(route, Reduced) else None

    def _show(self, head: ResponseHead, reducer: Reducer | None, shown: bytes | None) -> None:
        if reducer is not self._reducer():  # meanwhile something else may be shown
            self._reduce(head)
            return
        self._collected.content.clear()
        if shown is None:
            self._client.exchange_failed(UpstreamBroken("The upstream's answer cannot be reduced to what you may know"))
            return
        fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(shown) + self.record.plan.fields
        super().response_head(replace(head, fields=fields, length=len(shown)))
        self._deliver(shown)

    def _showing(self, head: ResponseHead, reducer: Reducer | None) -> Steps[bytes | None]:
        if head.status in _ERRORS:
            return _ERROR
        if head.status != _OK or reducer is None:
            return None
        try:
            return (yield from reducer.reducing(self._collected.content))
        except ValueError:
            return None

    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None:
        """Whatever has come, the client was told nothing yet."""
        del answered
        super().upstream_lost(error, stale=stale, answered=False)
