"""The exchange of `POST /audit/logs`, which goes to the gateway's own audit log and never upstream."""

from __future__ import annotations

import asyncio
from typing import Final

from tlsproxy.authz.auditquery import read_query
from tlsproxy.errors import AuditUnavailable, Overloaded, RequestError
from tlsproxy.proxy.admitting import SLOW_BODY, Late
from tlsproxy.proxy.answers import Answer
from tlsproxy.proxy.exchange import Exchange
from tlsproxy.proxy.refusal import CONTINUE

_SLOW_LOG: Final[Late] = (Overloaded, "The audit log could not be read in time", "response_timeout")


class AuditLogsExchange(Exchange):
    """Reads its small body whole, has the log read in a thread, and answers in Qdrant's form."""

    __slots__ = ()

    @property
    def sending(self) -> bool:
        return self.record.admitted and not self.body.done

    @property
    def taken(self) -> bytes | None:
        return None if self.record.bytes_in else b""

    def _start(self) -> None:
        self._wait(SLOW_BODY)
        if self.record.plan.expects_continue:
            self._client.stream.write(CONTINUE)
        if self.body.done:
            self._ask()

    def send(self) -> None:
        _, taken = self.body.take(self._client.inbox)
        self.record.bytes_in += taken
        if self.body.done:
            self._ask()

    def _ask(self) -> None:
        loop = self._gateway.loop
        query = read_query(bytes(self.body.content or b""))
        self._wait(_SLOW_LOG)
        loop.run_in_executor(None, self._gateway.audit.read, query).add_done_callback(self._read)

    def _failed(self, error: RequestError) -> None:
        if not self._ended:
            self._client.exchange_failed(error)

    def _read(self, reading: asyncio.Future[list[bytes]]) -> None:
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
            self._client.exchange_answered(Answer(body, b"content-type: application/json\r\n"))
