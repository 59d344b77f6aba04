"""Exchange of `POST /audit/logs`, which goes to the gateway's own audit log and never upstream."""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Final

from tlsproxy.audit.query import LARGEST, AuditQuery, read_query
from tlsproxy.errors import AuditUnavailable, Overloaded, RequestError
from tlsproxy.proxy.core.gateway import AuditSink
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.decision.request_plan import Plan
from tlsproxy.proxy.rest.body import RequestBody
from tlsproxy.proxy.rest.buffered_response import DeliveredExchange
from tlsproxy.proxy.rest.exchange import SLOW_BODY, Late
from tlsproxy.proxy.rest.link import ExchangeHandler
from tlsproxy.proxy.rest.responses import CONTINUE, response
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.threads import in_thread
from tlsproxy.wire.tracing import id_line

_BEGIN: Final = b'{"result":{"entries":['
_END: Final = b']},"status":"ok","time":0.0}'
_SLOW_LOG: Final[Late] = (Overloaded, "The audit log could not be read in time", "response_timeout")


class AuditLogsExchange(DeliveredExchange):
    """Reads the small body whole, searches the log in a thread, and answers in Qdrant's form.

    ``_asked``: the point that the token requires is there. ``_searching``: the thread uses reserved memory, which
    outlasts an exchange that ends before the search.
    """

    __slots__ = ("_asked", "_largest", "_searching")

    def __init__(self, client: ExchangeHandler, record: Record[Plan], body: RequestBody) -> None:
        super().__init__(client, record, body)
        self._largest = 0
        self._asked = self._searching = False

    @property
    def sending(self) -> bool:
        return self._asked and not self.body.done

    @property
    def taken(self) -> bytes | None:
        return None if self.record.bytes_in else b""

    def _start(self) -> None:
        self._ask_of_token(self._read_body)

    def _read_body(self) -> None:
        self._asked = True
        self._wait(SLOW_BODY)
        if self.record.plan.expects_continue:
            self._stream.write(CONTINUE)
        if self.body.done:
            self._query()

    def send(self) -> None:
        _, taken = self.body.take()
        self.record.bytes_in += taken
        if self.body.done:
            self._query()

    def _query(self) -> None:
        query = read_query(bytes(self.body.content or b""))
        size = min(2 * LARGEST, self._gateway.memory.capacity)
        self._largest = size // 2  # half for the entries, half for the body that they are joined to
        self._stream.deadline = NEVER
        if self._memory.reserve(size, partial(self._search, query)):
            self._search(query)

    def _search(self, query: AuditQuery) -> None:
        gateway = self._gateway
        self._searching = True
        self._wait(_SLOW_LOG)
        search = in_thread(answered, gateway.audit, query, self._largest)
        search.add_done_callback(self._search_done)

    def _failed(self, error: RequestError) -> None:
        if not self._ended:
            self._client.exchange_failed(error)

    def _search_done(self, search: asyncio.Future[bytes]) -> None:
        self._searching = False
        if self._ended:
            self._memory.release()
        if search.cancelled():
            return
        self._client.present()
        error = search.exception()
        if isinstance(error, RequestError):
            self._failed(error)
        elif error is not None:
            self._failed(AuditUnavailable("The audit log cannot be read"))
        elif not self._ended:
            self._answer(search.result())

    def _answer(self, body: bytes) -> None:
        record = self.record
        fields = b"content-type: application/json\r\n" + record.plan.fields + id_line(record.id)
        record.status = HTTPStatus.OK
        self._begun = True
        self._head = response(record.status, fields, body, close=self._client.close, to_head=True)
        self._deliver(body)

    def over(self) -> None:
        self._ended = True
        if not self._searching:
            super().over()


def answered(audit: AuditSink, query: AuditQuery, largest: int) -> bytes:
    """Body of the answer. For a thread: it blocks, and entries of 32 MiB take 20 ms to join, by one call that lets
    others run. Raises as :meth:`tlsproxy.audit.log.AuditLog.read` does.
    """
    entries = audit.read(query, largest) or [b""]
    entries[0] = _BEGIN + entries[0]
    entries[-1] += _END
    return b",".join(entries)
