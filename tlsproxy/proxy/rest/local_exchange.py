"""The exchange of a request that goes no further, whose answer waits for room in the audit log like any other."""

from __future__ import annotations

from tlsproxy.authz.access import Decision
from tlsproxy.errors import RequestError
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.record import Record, RequestBody
from tlsproxy.proxy.decision.request_plan import Plan
from tlsproxy.proxy.rest.admitting import Client
from tlsproxy.proxy.rest.exchange import Exchange
from tlsproxy.proxy.upstream.upstreams import Upstreams


class LocalExchange(Exchange):
    """Its outcome is ``error``, or else the answer or the refusal of its plan."""

    __slots__ = ("_error",)

    def __init__(
        self,
        gateway: Gateway,
        upstreams: Upstreams,
        client: Client,
        record: Record[Plan],
        body: RequestBody,
        error: RequestError | None,
    ) -> None:
        super().__init__(gateway, upstreams, client, record, body)
        self._error = error

    def _start(self) -> None:
        client, answer = self._client, self.record.plan.answer
        if self._error is not None:
            client.exchange_failed(self._error)
        elif answer is not None:
            client.exchange_answered(answer)
        else:
            client.exchange_denied()

    def under(self, present: Plan) -> Plan | Decision:
        """An answer is of the present; a refusal stays one."""
        if self._error is not None or self.record.plan.answer is None:
            return self.record.plan
        return present.decision if present.answer is None else present
