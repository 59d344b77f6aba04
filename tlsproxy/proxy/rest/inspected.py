"""Exchange of a request that is decided by head *and* body: the body is read whole, then it is decided.

Until then no upstream connection is asked for. The upstream gets the bytes that were decided on (for a caller
confined to a tenant: the rewritten ones), in one piece, with `content-length` in place of chunks.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from tlsproxy.authz.access import Decision
from tlsproxy.errors import RequestError, TooLargeToRead, UpstreamBroken, UpstreamTimeout
from tlsproxy.proxy.core.memory_budget import MemoryShare
from tlsproxy.proxy.core.record import Record
from tlsproxy.proxy.core.scheduler import in_slices
from tlsproxy.proxy.decision.request_plan import AuditSearch, Plan, Reduced, Relayed
from tlsproxy.proxy.decision.unread_body import Unread
from tlsproxy.proxy.rest.audit_query import AuditLogsExchange
from tlsproxy.proxy.rest.body import RequestBody
from tlsproxy.proxy.rest.exchange import Exchange, Late
from tlsproxy.proxy.rest.link import ExchangeHandler
from tlsproxy.proxy.rest.reduced import ReducedExchange
from tlsproxy.proxy.rest.responses import CONTINUE
from tlsproxy.proxy.rest.tenant_response import StreamedAnswer
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.upstream.connection import UpstreamConnection
from tlsproxy.qdrant.rest_answers import ChangedAnswer
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


class InspectedExchange(ReducedExchange):
    """Exchange with an inspected body.

    ``record.plan`` is decided by the head alone until the body is whole, then by both. ``_content`` is the inspected
    body, kept as long as the request may have to start again. ``_answer`` is set where the caller is confined, and its
    response is not read whole.
    """

    __slots__ = ("_answer", "_body_memory", "_confined", "_content", "_reading")

    def __init__(self, client: ExchangeHandler, record: Record[Plan], body: RequestBody) -> None:
        super().__init__(client, record, body)
        self._body_memory = MemoryShare(self._gateway, self.account, self, TooLargeToRead)
        self._reading = True
        self._content: Content = b""
        self._confined = False
        self._answer: StreamedAnswer | None = None

    def _start(self) -> None:
        if self.record.plan.expects_continue:
            self._stream.write(CONTINUE)
        if self.body.arrived and not self.body.done:
            self.send()
        else:
            self._continue_reading()

    @property
    def sending(self) -> bool:
        if self._reading:
            return self.record.admitted and not (self.body.done or self.congested)
        return super().sending

    def send(self) -> None:
        """Reads more of the body. Raises as :meth:`RequestBody.take` does, and NoMemory."""
        _, taken = self.body.take()
        self.record.bytes_in += taken
        if self._body_memory.keep(len(self.body.content or b""), self._body_granted):
            self._continue_reading()
        else:
            self.upstream_congested()

    def _body_granted(self) -> None:
        """Continues once the received data has its memory."""
        self.congested = False
        self._continue_reading()
        self._client.advance()

    def _continue_reading(self) -> None:
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
        """Plan under the present rules.

        A body that is not decided yet will be decided by them, so that only a refusal by the head counts here.
        """
        if not (self._reading or isinstance(self.record.plan.route, Unread)):
            return super().under(present)
        return present.decision if present.route is None else present

    def _decide(self) -> None:
        self._reading = False
        self._decide_content(self.body.hand_over())

    def _decide_content(self, content: Content, facts: Facts | None = None) -> None:
        self._content = content
        self._client.present()
        if self._ended:
            return
        plan = self.record.plan
        unread = plan.route
        if not isinstance(unread, Unread):  # rights have changed: the head alone decides now
            self._whole_body = in_chunks(bytes(content)) if plan.length == CHUNKED else content
            self._acquire()
            return
        if facts is None and unread.confined:
            facts = self._link.upstreams.facts.known(unread.asked.collection or "")
        self._stream.deadline = NEVER  # the gateway is at work, neither peer is late
        outcome = self._gateway.plans.read(unread, content, facts)
        if isinstance(outcome, tuple):
            self._decided(unread, content, outcome)
        else:
            decided = partial(self._decided, unread, content)
            in_slices(self._body_memory, self._decision_steps(outcome), decided)

    def _decision_steps(self, steps: Steps[tuple[Plan, Content]]) -> Steps[tuple[Plan, Content] | None]:
        """Decision on the body. None: it needs facts from the upstream first."""
        try:
            return (yield from steps)
        except FactsNeeded:
            return None

    def _facts_received(self, unread: Unread, content: Content, facts: Facts | RequestError) -> None:
        self._client.present()
        if self._ended:
            return
        published = unread is not self.record.plan.route  # since then, maybe with another upstream
        if isinstance(facts, RequestError) and not published:
            self._client.exchange_failed(facts)
            return
        try:
            self._decide_content(content, None if published or isinstance(facts, RequestError) else facts)
        except RequestError as error:
            self._client.exchange_failed(error)
        else:
            self._client.advance()

    def _decided(self, unread: Unread, content: Content, outcome: tuple[Plan, Content] | None) -> None:
        if unread is not self.record.plan.route:  # published since
            self._body_memory.settle(len(content))
            self._decide_content(content)
            return
        if outcome is None:
            self._body_memory.settle(len(content))
            self._wait(_UNKNOWN_FACTS)
            callback = partial(self._facts_received, unread, content)
            self._link.upstreams.facts.ask(unread.asked.collection or "", self.account, callback)
            return
        self.record.plan, forwarded = outcome
        self._body_memory.settle(len(forwarded) if forwarded is content else len(forwarded) + len(content))
        self._confined = unread.confined
        if self.record.plan.decision.allowed:
            self._whole_body = forwarded
            self._acquire()
        else:
            self._client.exchange_settled()

    def _begin(self, upstream: UpstreamConnection) -> None:
        super()._begin(upstream)
        if self._sent is None:
            self._content = b""
        if not self.congested:
            self._body_sent()

    def upstream_drained(self) -> None:
        self._body_sent()
        super().upstream_drained()

    def _body_sent(self) -> None:
        """Gives back the body's memory, but for so much as the answer's reduction keeps of it."""
        route = self.record.plan.route
        reducer = route.reducer if isinstance(route, Reduced) else None
        self._body_memory.settle(reducer.memory if isinstance(reducer, ChangedAnswer) else 0)

    # Response to a confined caller

    def response_head(self, head: ResponseHead) -> None:
        if self._confined and head.length and isinstance(self.record.plan.route, Relayed):
            self._relays = True
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
        """Retries are still safe while the response is held back: the client has not received a byte of it."""
        answer, self._answer = self._answer, None
        super().upstream_lost(error, stale=stale, answered=answered and (answer is None or answer.begun))

    def over(self) -> None:
        super().over()
        self._content = b""
        self.body.hand_over()
        self._body_memory.release()


EXCHANGES: Final[dict[type, type[Exchange]]] = {
    Relayed: Exchange,
    Unread: InspectedExchange,
    Reduced: ReducedExchange,
    AuditSearch: AuditLogsExchange,
}
"""Exchange for each type of a plan's route."""
