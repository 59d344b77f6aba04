"""The exchange of `POST /audit/logs`, which goes to the gateway's own audit log and never upstream."""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Final

from tlsproxy.audit.query import LARGEST, AuditQuery, read_query
from tlsproxy.errors import AuditUnavailable, Overloaded, RequestError
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

_SLOW_LOG: Final[Late] = (Overloaded, "The audit log could not be read in time", "response_timeout")


class AuditLogsExchange(DeliveredExchange):
    """Reads its small body whole, has the log read in a thread, and answers in Qdrant's form.

    ``_looking``: the thread has a part of the memory, also when this has ended.
    """

    __slots__ = ("_largest", "_looking")

    def __init__(self, client: ExchangeHandler, record: Record[Plan], body: RequestBody) -> None:
        super().__init__(client, record, body)
        self._largest = 0
        self._looking = False

    @property
    def sending(self) -> bool:
        return self.record.admitted and not self.body.done

    @property
    def taken(self) -> bytes | None:
        return None if self.record.bytes_in else b""

    def _start(self) -> None:
        self._wait(SLOW_BODY)
        if self.record.plan.expects_continue:
            self._stream.write(CONTINUE)
        if self.body.done:
            self._ask()

    def send(self) -> None:
        _, taken = self.body.take()
        self.record.bytes_in += taken
        if self.body.done:
            self._ask()

    def _ask(self) -> None:
        query = read_query(bytes(self.body.content or b""))
        whole = min(2 * LARGEST, self._gateway.memory.capacity)
        self._largest = whole // 2  # entries, and the answer that they are joined to
        self._stream.deadline = NEVER
        if self._holding.reserve(whole, partial(self._look_up, query)):
            self._look_up(query)

    def _look_up(self, query: AuditQuery) -> None:
        gateway = self._gateway
        self._looking = True
        self._wait(_SLOW_LOG)
        reading = in_thread(gateway.audit.read, query, self._largest)
        reading.add_done_callback(self._read)

    def _failed(self, error: RequestError) -> None:
        if not self._ended:
            self._client.exchange_failed(error)

    def _read(self, reading: asyncio.Future[list[bytes]]) -> None:
        self._looking = False
        if self._ended:
            self._holding.release()
        if reading.cancelled():
            return
        self._client.present()
        error = reading.exception()
        if isinstance(error, RequestError):
            self._failed(error)
        elif error is not None:
            self._failed(AuditUnavailable("The audit log cannot be read"))
        elif not self._ended:
            body = b'{"result":{"entries":[%b]},"status":"ok","time":0.0}' % b",".join(reading.result())
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        record = self.record
        fields = b"content-type: application/json\r\n" + record.plan.fields + id_line(record.id)
        record.status = HTTPStatus.OK
        self._begun = True
        self._head = response(record.status, fields, body, close=self._client.close, to_head=True)
        self._deliver(body)

    def over(self) -> None:
        self._ended = True
        if not self._looking:
            super().over()
