"""Exchange of a request that the gateway answers itself: waits for room in the audit log and for a token's point."""

from __future__ import annotations

from tlsproxy.authz.access import Decision
from tlsproxy.errors import RequestError
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.decision.local_responses import LocalResponse
from tlsproxy.proxy.decision.request_plan import Plan
from tlsproxy.proxy.rest.body import RequestBody
from tlsproxy.proxy.rest.exchange import Exchange
from tlsproxy.proxy.rest.link import ExchangeHandler


class LocalExchange(Exchange):
    """Exchange without an upstream. Its outcome is ``error``, or else the plan's answer or refusal."""

    __slots__ = ("_error",)

    def __init__(
        self, client: ExchangeHandler, record: Record[Plan], body: RequestBody, error: RequestError | None
    ) -> None:
        super().__init__(client, record, body)
        self._error = error

    def _start(self) -> None:
        if self._error is not None:
            self._client.exchange_failed(self._error)
        else:
            self._ask_of_token(self._client.exchange_settled)

    def under(self, present: Plan) -> Plan | Decision:
        """Plan under the present rules: an answer is made or refused by them, a refusal stays as it was."""
        if self._error is not None or not isinstance(self.record.plan.route, LocalResponse):
            return self.record.plan
        return present if isinstance(present.route, LocalResponse) else present.decision
