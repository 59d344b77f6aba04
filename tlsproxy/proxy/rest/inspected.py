"""The exchange of a request that is decided by head *and* body: the body is read whole, then the decision is made.

Until then nothing of it is an exchange: the audit log and the upstream pool do not know of it. The bytes that go
upstream are those that were decided on (or made, for a caller that is confined to a tenant), in one piece, with their
length in place of chunks.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.errors import RequestError, TooLargeToRead, UpstreamBroken, UpstreamTimeout
from tlsproxy.proxy.core.memory_budget import MemoryShare
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import in_slices
from tlsproxy.proxy.decision.request_plan import AuditSearch, Plan, Reduced, Relayed, Unread
from tlsproxy.proxy.rest.audit_query import AuditLogsExchange
from tlsproxy.proxy.rest.body import RequestBody
from tlsproxy.proxy.rest.exchange import Exchange, Late
from tlsproxy.proxy.rest.link import ExchangeHandler
from tlsproxy.proxy.rest.reduced import ReducedExchange
from tlsproxy.proxy.rest.responses import CONTINUE
from tlsproxy.proxy.rest.tenant_response import StreamedAnswer
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.upstream.connection import UpstreamConnection
from tlsproxy.qdrant.scoring import Facts, FactsNeeded
from tlsproxy.wire.chunked import in_chunks
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.http1 import CHUNKED
from tlsproxy.wire.http1_response import ResponseHead

_UNKNOWN_FACTS: Final[Late] = (
    UpstreamTimeout,
    "The upstream did not say in time how the collection's words are counted",
    "response_timeout",
)


class InspectedExchange(Exchange):
    """Its record's plan is that of the head until the body is whole, then that of both."""

    __slots__ = ("_answer", "_confined", "_content", "_holding", "_reading")

    def __init__(self, client: ExchangeHandler, record: Record[Plan], body: RequestBody) -> None:
        super().__init__(client, record, body)
        self._holding = MemoryShare(self._gateway, self.account, self, TooLargeToRead)
        self._reading = True
        self._content: Content = b""  # what was judged, for as long as the request may have to begin anew
        self._confined = False
        self._answer: StreamedAnswer | None = None

    def _start(self) -> None:
        if self.record.plan.expects_continue:
            self._stream.write(CONTINUE)
        if self.body.done:
            self._decide()
        else:
            self._await_body()

    @property
    def sending(self) -> bool:
        if self._reading:
            return self.record.admitted and not (self.body.done or self.congested)
        return super().sending

    def send(self) -> None:
        """Takes what has come of the body. Raises as :meth:`RequestBody.take` does, and NoMemory."""
        _, taken = self.body.take()
        self.record.bytes_in += taken
        if self._holding.keep(len(self.body.content or b""), self._read_on):
            self._go_on_reading()
        else:
            self.upstream_congested()

    def _read_on(self) -> None:
        """Memory for the received data is there."""
        self.congested = False
        self._go_on_reading()
        self._client.advance()

    def _go_on_reading(self) -> None:
        if self.body.done:
            self._decide()
        else:
            self._await_body()

    @property
    def taken(self) -> bytes | None:
        if not self.record.bytes_in:
            return b""
        if self._begun or self._reading:
            return None
        content = bytes(self._content)
        return in_chunks(content) if self.body.chunked else content

    def under(self, present: Plan) -> Plan | Decision:
        """Until it is decided it is for head and body of the present to decide."""
        if not (self._reading or isinstance(self.record.plan.route, Unread)):
            return super().under(present)
        return present.decision if present.route is None else present

    def _decide(self) -> None:
        self._reading = False
        self._judge(self.body.hand_over())

    def _judge(self, content: Content, facts: Facts | None = None) -> None:
        self._content = content
        self._client.present()
        if self._ended:
            return
        plan = self.record.plan
        unread = plan.route
        if not isinstance(unread, Unread):  # rights have changed: by now the head alone decides, and says the framing
            self._whole_body = in_chunks(bytes(content)) if plan.length == CHUNKED else content
            self._acquire()
            return
        facts = facts or self._link.upstreams.facts.known(unread.asked.collection or "")
        self._stream.deadline = NEVER  # nobody is waited for
        in_slices(self._holding, self._judging(unread, content, facts), partial(self._decided, unread, content))

    def _judging(self, unread: Unread, content: Content, facts: Facts | None) -> Steps[tuple[Plan, Content] | None]:
        """None where facts of the upstream are needed first."""
        try:
            return (yield from self._gateway.plans.reading(unread, content, facts))
        except FactsNeeded:
            return None

    def _facts_received(self, unread: Unread, content: Content, facts: Facts | RequestError) -> None:
        self._client.present()
        if self._ended:
            return
        try:
            if unread is not self.record.plan.route:  # there has been a publication since, maybe of another upstream
                self._judge(content)
            elif isinstance(facts, RequestError):
                raise facts
            else:
                self._judge(content, facts)
        except RequestError as error:
            self._client.exchange_failed(error)
        else:
            self._client.advance()

    def _decided(self, unread: Unread, content: Content, outcome: tuple[Plan, Content] | None) -> None:
        if unread is not self.record.plan.route:  # there has been a publication since
            self._holding.settle(len(content))
            self._judge(content)
            return
        if outcome is None:
            self._holding.settle(len(content))
            self._wait(_UNKNOWN_FACTS)
            callback = partial(self._facts_received, unread, content)
            self._link.upstreams.facts.ask(unread.asked.collection or "", self.account, callback)
            return
        self.record.plan, made = outcome
        self._holding.settle(len(made) if made is content else len(made) + len(content))
        self._confined = unread.confined
        if self.record.plan.decision.allowed:
            self._whole_body = made
            self._acquire()
        else:
            self._client.exchange_settled()

    def _begin(self, upstream: UpstreamConnection) -> None:
        super()._begin(upstream)
        if self._sent is None:
            self._content = b""
        if not self.congested:
            self._holding.release()

    def upstream_drained(self) -> None:
        self._holding.release()
        super().upstream_drained()

    # The answer to a tenant

    def response_head(self, head: ResponseHead) -> None:
        if self._confined and head.length:
            self._answer = StreamedAnswer(head)
        else:
            super().response_head(head)

    def response_body(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            super().response_body(data)
            return
        try:
            chunk = answer.feed(data)
        except UpstreamBroken as error:
            self._client.exchange_failed(error)
            return
        if chunk:
            self._begin_answer(answer)
            super().response_body(chunk)

    def response_done(self) -> None:
        answer = self._answer
        if answer is not None:
            rest = answer.close()
            self._begin_answer(answer)
            super().response_body(rest)
        super().response_done()

    def _begin_answer(self, answer: StreamedAnswer) -> None:
        if not answer.begun:
            answer.begun = True
            super().response_head(answer.head)

    def upstream_lost(self, error: RequestError, *, stale: bool, answered: bool) -> None:
        """Counts an answer that is held back as not begun: the client was told nothing of it yet."""
        answer, self._answer = self._answer, None
        super().upstream_lost(error, stale=stale, answered=answered and (answer is None or answer.begun))

    def over(self) -> None:
        super().over()
        self._content = b""
        self.body.hand_over()
        self._holding.release()


EXCHANGES: Final[dict[type, type[Exchange]]] = {
    Relayed: Exchange,
    Unread: InspectedExchange,
    Reduced: ReducedExchange,
    AuditSearch: AuditLogsExchange,
}
"""By the type of a plan's route."""
