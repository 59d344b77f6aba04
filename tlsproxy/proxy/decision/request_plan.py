"""A request head → everything that is known of its request before its first body byte: the decision above all.

A plan is a pure function of the head's bytes, the principal and the generation, and clients repeat themselves: a small
memo per generation answers a head that was seen before (0.8 µs instead of a parse and a decision).

Where the body has a say the head's plan is a refusal that keeps what it was made of (``unread``), and
:meth:`Plans.read` makes the plan of head and body in its place. Both are decided in
:mod:`tlsproxy.qdrant.rest_decision`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

from tlsproxy.audit.line import Prepared
from tlsproxy.authz.access import ALLOWED, UNREAD, Decision
from tlsproxy.authz.claims import ValueExists
from tlsproxy.authz.cross_site import cross_site, is_cross_site
from tlsproxy.authz.keys import NEVER, presented_key
from tlsproxy.authz.query_policy import NO_POLICY, QueryPolicy
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import Form, RequestError, UnexpectedBody
from tlsproxy.memo import Memo
from tlsproxy.proxy.decision.affinity import HEADER, clients_affinity, own_affinity
from tlsproxy.proxy.decision.attribution import caller_of, error_of, prepared, refusal_of
from tlsproxy.proxy.decision.local_responses import LocalResponse, cors_fields, is_preflight, preflight, whoami
from tlsproxy.proxy.decision.rulings import UNLIMITED, Ruling, Rulings
from tlsproxy.proxy.decision.unread_body import Skeleton, Unread, deciding_skeleton, skeleton_at_once, skeleton_of
from tlsproxy.proxy.limits.quotas import LimitCheck, Quotas
from tlsproxy.qdrant.operations import AUDIT_LOGS, PREFLIGHT, WHOAMI, Operation
from tlsproxy.qdrant.rest_decision import (
    BEYOND_POLICY,
    GRPC_OVER_HTTP_1,
    UNKNOWN_OPERATION,
    UNREDUCED,
    BodyDecision,
    BodyFacts,
    HeadDecision,
    decide_again,
)
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.qdrant.rest_query_policy import counts_numbers, is_read_under
from tlsproxy.qdrant.router import Recognised, recognise
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.qdrant.tenant_examples import Question
from tlsproxy.qdrant.timeouts import timeout_of
from tlsproxy.snapshot.generation import Generation
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.field_block import size_of
from tlsproxy.wire.http1 import KnownLines, RequestHead, parse_request, restate_request
from tlsproxy.wire.json_skeleton import Template
from tlsproxy.wire.target import RequestTarget
from tlsproxy.wire.tracing import NO_TRACING, Tracing, tracing_from_head

MEMO_PLANS: Final = 2048
MEMO_REFUSALS: Final = 512
MEMO_BODIES: Final = 512
MEMO_HEAD: Final = 4096
"""A longer head or body is not remembered: the memo's size in memory is bounded by the product."""

READ_FIRST: Final = 65_536
"""A body of at most this many bytes, or so much of one of unknown length, is read before an upstream is taken."""


@dataclass(slots=True, init=False)
class Relayed:
    """``head`` goes upstream, short of the connection's own lines; body and answer pass as they are, as most do."""

    head: bytes

    def __init__(self, head: bytes) -> None:
        self.head = head


@dataclass(slots=True)
class Reduced:
    """``head`` goes upstream; of the answer the client sees as much as ``reducer`` leaves."""

    head: bytes
    reducer: Reducer


class AuditSearch:
    """The answer comes from the audit log."""


AUDIT_SEARCH: Final = AuditSearch()
_FORWARDED: Final = Relayed, Reduced

Route = Relayed | Reduced | Unread | LocalResponse | AuditSearch | None
"""Source of the answer to a request. None: it is refused. Unread: its body decides which of the others."""


# As all that each new head makes: not frozen, which sets each field by a call, and not by dataclass's own constructor,
# which stays interpreted.
@dataclass(slots=True, init=False)
class Plan:
    """Everything that is decided of a request before its body.

    ``route``: where the answer comes from. ``length`` as in :class:`RequestHead`; ``framed``: the end of the request is
    known. ``limit``: of the body, in bytes; ``of_role``: by the caller's role. ``limit_check`` has the limits that it
    counts against, if there are any. ``resend``: the request may be sent again after its connection was lost.
    ``expires``: seconds since the epoch, from which the plan must be made anew, as the credential counts no longer.
    ``exists``: the point that the caller's token requires. ``affinity`` goes with the gateway's own questions.
    ``streamed``: the body goes up as it comes, and `Expect` is the upstream's. ``fields``: header lines of every
    response of the gateway, ``readable`` of one that is passed on. ``body_facts``: facts of the body, where it was
    read. ``questions``: on the points that a confined query is made of, to be asked of the upstream first. ``timeout``:
    seconds that the client gives the upstream, as in :func:`tlsproxy.qdrant.timeouts.timeout_of`. ``queries``: the
    query policy that the request was decided by.
    """

    operation: str
    role: str
    decision: Decision
    audit: Prepared
    route: Route
    framed: bool
    length: int
    close: bool
    to_head: bool
    expects_continue: bool
    streamed: bool
    limit: int
    of_role: bool
    limit_check: LimitCheck | None
    resend: bool
    expires: float
    exists: ValueExists | None
    affinity: bytes
    fields: bytes
    readable: bytes
    body_facts: BodyFacts | None
    questions: tuple[Question, ...]
    timeout: float
    queries: QueryPolicy

    def __init__(  # noqa: PLR0913 - what is decided, by name
        self,
        operation: str,
        role: str,
        decision: Decision,
        audit: Prepared,
        route: Route = None,
        *,
        framed: bool = False,
        length: int = 0,
        close: bool = True,
        to_head: bool = False,
        expects_continue: bool = False,
        streamed: bool = False,
        limit: int = UNLIMITED,
        of_role: bool = False,
        limit_check: LimitCheck | None = None,
        resend: bool = False,
        expires: float = NEVER,
        exists: ValueExists | None = None,
        affinity: bytes = b"",
        fields: bytes = b"",
        readable: bytes = b"",
        body_facts: BodyFacts | None = None,
        questions: tuple[Question, ...] = (),
        timeout: float = 0.0,
        queries: QueryPolicy = NO_POLICY,
    ) -> None:
        self.operation = operation
        self.role = role
        self.decision = decision
        self.audit = audit
        self.route = route
        self.framed = framed
        self.length = length
        self.close = close
        self.to_head = to_head
        self.expects_continue = expects_continue
        self.streamed = streamed
        self.limit = limit
        self.of_role = of_role
        self.limit_check = limit_check
        self.resend = resend
        self.expires = expires
        self.exists = exists
        self.affinity = affinity
        self.fields = fields
        self.readable = readable
        self.body_facts = body_facts
        self.questions = questions
        self.timeout = timeout
        self.queries = queries

    @property
    def upstream(self) -> bytes:
        """The head to send; empty where nothing goes upstream, or nothing yet."""
        route = self.route
        return route.head if isinstance(route, _FORWARDED) else b""

    def refused(self, decision: Decision) -> Self:
        """The same request, which is not carried out after all."""
        audit = self.audit.denied(error_of(decision), decision.reason)
        return replace(self, decision=decision, audit=audit, route=None, exists=None)

    def under(self, present: Plan) -> Plan | Decision:
        """Plan by which a request under way goes on, where its head is planned like ``present`` now; or its refusal."""
        decision, route, ahead = present.decision, self.route, present.route
        if isinstance(ahead, Unread) and self.body_facts is not None:
            decision = decide_again(ahead.admission, ahead.asked, self.body_facts)
        if (decision.allowed or decision is UNREAD) and not self.queries.meets(present.queries):
            return BEYOND_POLICY
        if not decision.allowed:
            return decision
        if isinstance(ahead, Reduced):
            if not isinstance(route, Reduced):
                return UNREDUCED
            route = replace(route, reducer=ahead.reducer)
        return replace(self, expires=present.expires, route=route)


_Alike = tuple[Principal, Operation | None, str | None, str | None, bytes]
"""Caller, operation, collection, key or token, and a body without its long arrays: the names in it decide."""


class Plans:
    """The plans of one generation."""

    def __init__(self, generation: Generation, quotas: Quotas, affinity_key: bytes | None = None) -> None:
        """``affinity_key``: that of :func:`own_affinity`; None for none."""
        config = generation.config
        self._affinity_key = affinity_key
        self._rulings = Rulings(generation, quotas)
        self._cors = config.service.enable_cors
        self._origins = frozenset(origin.encode() for origin in config.service.allowed_origins)
        self._log_api = config.audit.log_api
        self._max_fields = config.limits.max_headers
        self._body_limit = config.service.max_request_size_mb << 20
        self._upstream_host = generation.nodes[0].rest.authority
        key = generation.upstream_api_key
        self._upstream_key = key.encode() if key is not None else None
        self._lines = KnownLines()
        self._memo = Memo[tuple[Principal, bytes], Plan](MEMO_PLANS)
        self._refusals = Memo[tuple[Principal, bytes], Plan](MEMO_REFUSALS)
        self._read = Memo[tuple[Unread, bytes], tuple[Plan, Template | None]](MEMO_PLANS)
        self._bodies = Memo[_Alike, tuple[BodyDecision, Ruling]](MEMO_BODIES)

    def of(self, principal: Principal, head: bytes, now: float, ended: Decision | None) -> tuple[Plan, Tracing]:
        """The plan, and what the client said besides that differs from request to request.

        ``now`` is seconds since the epoch. ``ended`` refuses whatever is asked: the connection has lost its right.
        """
        # A head that is remembered has nothing of that kind in it, so it is looked up as it is first.
        key = principal, head
        plan = self._memo.get(key) or self._refusals.get(key)
        if plan is not None and ended is None and now < plan.expires:
            return plan, NO_TRACING
        head, tracing = tracing_from_head(head)
        if ended is not None:
            return self.make(principal, head, now, ended=ended), tracing
        if tracing is not NO_TRACING:
            key = principal, head
            plan = self._memo.get(key) or self._refusals.get(key)
        if plan is None:
            return self._remembered(principal, head, now), tracing
        if now >= plan.expires:
            self._memo.pop(key, None)
            self._refusals.pop(key, None)
            plan = self._remembered(principal, head, now)
        return plan, tracing

    def _remembered(self, principal: Principal, head: bytes, now: float) -> Plan:
        key, plan = (principal, head), self.make(principal, head, now)
        if len(head) <= MEMO_HEAD and plan.framed and now < plan.expires:
            if plan.route is not None:
                self._memo.remember(key, plan)
            else:  # apart: whoever makes up refusals drives out no permission
                self._refusals.remember(key, plan)
        return plan

    def make(self, principal: Principal, head: bytes, now: float, *, ended: Decision | None = None) -> Plan:
        """``ended`` refuses whatever is asked: the connection has lost its right to exist."""
        try:
            parsed = parse_request(head, max_fields=self._max_fields, known=self._lines)
        except RequestError as error:
            return self.unreadable(principal, error)
        presented = _presented(parsed)
        try:
            asked = recognise(parsed.method, parsed.target)
        except RequestError as error:
            unrouted = self._rulings.make(principal, None, None, HeadDecision(refusal_of(error)), presented)
            return self._plan(parsed, None, unrouted)
        if self._cors and is_preflight(parsed, self._origins):
            asked = replace(asked, operation=PREFLIGHT, collection=None)
        if ended is not None:
            ruling = self._rulings.make(principal, asked, None, HeadDecision(ended), presented)
        else:
            ruling = self._rulings.of(principal, asked, presented, now)
            refusal = self._refusal(parsed, asked, ruling, presented)
            if refusal is not None:
                ruling = self._rulings.make(principal, asked, ruling.admission, HeadDecision(refusal), presented)
        target = ruling.judgement.target
        return self._plan(parsed, asked if target is None else replace(asked, target=target), ruling)

    def _refusal(self, head: RequestHead, asked: Recognised, ruling: Ruling, presented: str | None) -> Decision | None:
        """The refusal of this head, for what others of the same caller for the same operation need not have."""
        operation = asked.operation
        if operation is not None and operation.open:
            return refusal_of(UnexpectedBody()) if head.length else None
        if ruling.admission is not None and presented is None and is_cross_site(head.fields, head.host, self._origins):
            return cross_site(operation.form if operation is not None else Form.JSON)
        if ruling.judgement.decision is UNKNOWN_OPERATION:
            content_type = head.value(b"content-type") or ""
            return GRPC_OVER_HTTP_1 if content_type.startswith("application/grpc") else None
        return None

    def read(
        self, unread: Unread, content: Content, facts: Facts | None = None
    ) -> tuple[Plan, Content] | Steps[tuple[Plan, Content]]:
        """The plan of a request whose body is here, and the body to send: this one, or this one confined.

        One that is remembered for a body of little size, which takes no longer than that of a head; else the steps to
        it. They raise :class:`tlsproxy.qdrant.scoring.FactsNeeded` where ``facts`` do not do.
        """
        skeleton = skeleton_at_once(unread, content)
        known = self._known(skeleton) if skeleton is not None else None
        return known or self._reading(unread, content, skeleton, facts)

    def _known(self, skeleton: Skeleton) -> tuple[Plan, Content] | None:
        known = self._read.get(skeleton.key) if skeleton.key is not None else None
        if known is None:
            return None
        plan, template = known
        if template is not None:
            return plan, template.filled(skeleton.plain, skeleton.arrays)
        return plan, skeleton.plain if skeleton.unread.rewritten else skeleton.content

    def _reading(
        self, unread: Unread, content: Content, skeleton: Skeleton | None, facts: Facts | None
    ) -> Steps[tuple[Plan, Content]]:
        head, asked, template = unread.head, unread.asked, None
        try:
            if skeleton is None:
                skeleton = yield from skeleton_of(unread, content, self._body_limit)
                if (known := self._known(skeleton)) is not None:
                    return known
            read, template, ruling = yield from self._judged(skeleton, facts)
        except RequestError as error:
            read = BodyDecision(refusal_of(error))
            ruling = self._ruled(unread, read)
        target, confined = asked.target, read.confined
        if read.body is not None:
            head, content = head.without(b"content-encoding", b"accept-encoding"), read.body  # the answer will be read
        if confined is not None:
            head, target = head.of_json(confined.method or head.method), confined.target(target)
        plan = self._plan(head.with_length(len(content)), asked, ruling, target, read)
        lasts = read.decision is ALLOWED and (template is not None or not unread.rewritten)
        if lasts and skeleton is not None and skeleton.key is not None:
            self._read.remember(skeleton.key, (plan, None if read.body == skeleton.plain else template))
        return plan, content

    def _judged(self, skeleton: Skeleton, facts: Facts | None) -> Steps[tuple[BodyDecision, Template | None, Ruling]]:
        """The decision, with its ruling. Remembered beyond the head where the names in a body decide."""
        unread, text = skeleton.unread, skeleton.text
        asked, alike = unread.asked, None
        presented = _presented(unread.head)
        if not unread.rewritten and len(text) + len(presented or "") <= MEMO_HEAD:
            alike = unread.admission.principal, asked.operation, asked.collection, presented, bytes(text)
            if (known := self._bodies.get(alike)) is not None:
                return known[0], None, known[1]
        read, template = yield from deciding_skeleton(skeleton, facts)
        ruling = self._ruled(unread, read)
        if alike is not None and read.decision is ALLOWED:
            self._bodies.remember(alike, (read, ruling))
        return read, template, ruling

    def _ruled(self, unread: Unread, read: BodyDecision) -> Ruling:
        """The ruling on a body. All that are allowed have one, whatever is in them: filters differ, names seldom do."""
        by_head, admission, allowed = unread.ruling, unread.admission, read.decision is ALLOWED and read.reducer is None
        if allowed and by_head.allowed is not None:
            return by_head.allowed
        judgement, presented = HeadDecision(read.decision, read.reducer), _presented(unread.head)
        ruling = self._rulings.make(admission.principal, unread.asked, admission, judgement, presented)
        if allowed:
            by_head.allowed = ruling
        return ruling

    def _sent(self, head: RequestHead, listing: Reducer | None, *, streamed: bool) -> RequestHead:
        """An answer that will be read comes as it is; which pages may read it, Qdrant is not asked where we say so.

        Nor is it where the body is invited here, and read first.
        """
        if head.expects_continue and not streamed:
            head = head.without(b"expect")
        if listing is not None:
            head = head.without(b"accept-encoding")
        return head.without(b"origin") if self._origins else head

    def unreadable(self, principal: Principal, error: RequestError) -> Plan:
        """The plan of a request without a readable head, and so without an end."""
        decision = refusal_of(error)
        return Plan("unreadable", principal.role, decision, prepared(caller_of(principal, None), decision))

    def _plan(
        self,
        head: RequestHead,
        asked: Recognised | None,
        ruling: Ruling,
        target: RequestTarget | None = None,
        read: BodyDecision | None = None,
    ) -> Plan:
        """``target``: of the upstream's request, where it may be another than the client's; ``read``: of its body."""
        decision, listing, operation = ruling.judgement.decision, ruling.judgement.listing, ruling.operation
        admission, queries = ruling.admission, ruling.queries
        streamed = head.length > READ_FIRST or (operation is not None and operation.upload)
        route: Route = None
        exists: ValueExists | None = None
        affinity = b""
        fields = readable = cors_fields(head, self._origins) if self._cors else b""
        if decision is ALLOWED and operation is PREFLIGHT:
            route, fields = preflight(head, self._origins), b""
        elif decision is ALLOWED and operation is WHOAMI and admission is not None:
            route, exists = whoami(admission), ruling.exists
        elif decision is ALLOWED and operation is AUDIT_LOGS:
            route, exists = AUDIT_SEARCH, ruling.exists
        elif decision is ALLOWED and asked is not None and not (operation is not None and operation.own):
            own = own_affinity(head, self._affinity_key, admission)
            affinity = own or clients_affinity(head)
            upstream = restate_request(
                self._sent(head, listing, streamed=streamed),
                str(target or asked.target),
                upstream_host=self._upstream_host,
                upstream_key=self._upstream_key,
                more=((HEADER, own),) if own else (),
            )
            route = Relayed(upstream) if listing is None else Reduced(upstream, listing)
            exists = ruling.exists
        elif decision is UNREAD and asked is not None and admission is not None:
            confined = bool(admission.confinements)
            policed = operation is not None and is_read_under(operation, queries)
            whole = confined or (policed and operation is not None and counts_numbers(operation))
            coding = head.value(b"content-encoding")
            repeats = not whole and size_of(head.fields) + len(head.target) <= MEMO_HEAD
            route = Unread(head, asked, admission, coding, confined, confined or policed, whole, repeats, ruling)
        audit = ruling.audit
        if self._log_api or not decision.allowed:
            audit = audit.at(asked.target.path if asked is not None else head.target.partition("?")[0])
        return Plan(
            operation=operation.name if operation is not None else "unknown",
            role=ruling.role,
            decision=decision,
            audit=audit,
            route=route,
            framed=True,
            length=head.length,
            close=head.close,
            to_head=head.method == "HEAD",
            expects_continue=head.expects_continue,
            streamed=streamed,
            limit=ruling.limit,
            of_role=ruling.of_role,
            limit_check=ruling.limit_check,
            resend=operation is not None and operation.reads,
            expires=ruling.expires,
            exists=exists,
            affinity=affinity,
            fields=fields,
            readable=readable if self._origins and listing is None else b"",
            body_facts=read.facts if read is not None else None,
            questions=read.confined.questions if read is not None and read.confined is not None else (),
            timeout=timeout_of(operation, asked.target.query) if asked is not None else 0.0,
            queries=queries,
        )


def _presented(head: RequestHead) -> str | None:
    return presented_key(head.value(b"api-key"), head.value(b"authorization"))
