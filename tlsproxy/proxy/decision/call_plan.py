"""A gRPC call's field block → everything that is known of it before its message: the decision above all.

As :mod:`tlsproxy.proxy.decision.request_plan` for REST. The method says what is asked, and for callers with rights to
all of Qdrant that is enough. Others are decided by their message: their plan is a refusal (``unread``) and knows what
it was made of.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

from tlsproxy.audit.line import Prepared
from tlsproxy.authz.access import ALLOWED, NO_NAMES, UNREAD, BodyNames, Confinements, Decision, without_public
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.claims import ValueExists
from tlsproxy.authz.cross_site import cross_site, is_cross_site
from tlsproxy.authz.keys import NEVER, presented_key
from tlsproxy.authz.query_policy import QueryPolicy
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import BodyTooLarge, Form, GrpcStatus, RequestError, RoleBodyTooLarge
from tlsproxy.memo import Memo
from tlsproxy.proxy.decision.admissions import Admissions
from tlsproxy.proxy.decision.affinity import HEADER, clients_affinity, own_affinity
from tlsproxy.proxy.decision.attribution import caller_of, error_of, expiry, prepared, refusal_of
from tlsproxy.proxy.limits.quotas import LimitCheck, Quotas
from tlsproxy.qdrant.grpc_decision import decide_call, decide_call_again, decide_message, operation_of
from tlsproxy.qdrant.grpc_query_policy import policy_of_message
from tlsproxy.qdrant.grpc_tenancy import is_confinable_call, method_of_confined
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.rest_decision import BEYOND_POLICY, UNKNOWN_OPERATION, UNREDUCED, BodyFacts, HeadDecision
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.qdrant.timeouts import timeout_of
from tlsproxy.wire.field_block import Fields, literals, size_of, write
from tlsproxy.wire.grpc import CallHead, NotGrpc, origin, parse_call, restate_call

if TYPE_CHECKING:
    from tlsproxy.snapshot.generation import Generation
    from tlsproxy.snapshot.nodes import Upstream

MEMO_PLANS: Final = 2048
MEMO_REFUSALS: Final = 512
MEMO_BLOCK: Final = 4096
"""A longer one is not remembered: the memo's size in memory is bounded by the product."""

OPEN_MESSAGE: Final = 1024
"""Bytes of the message of a health check, which says at most which service it is about."""

MEMO_NAMES: Final = 1024
"""Characters of the collections that a message names, beyond which it is judged anew, for the same reason."""

# Qdrant's own pairs of statuses, and those of our own refusals.
_GRPC: Final = {
    400: GrpcStatus.INVALID_ARGUMENT,
    401: GrpcStatus.UNAUTHENTICATED,
    403: GrpcStatus.PERMISSION_DENIED,
    404: GrpcStatus.NOT_FOUND,
    405: GrpcStatus.UNIMPLEMENTED,
    408: GrpcStatus.DEADLINE_EXCEEDED,
    409: GrpcStatus.ALREADY_EXISTS,
    415: GrpcStatus.UNIMPLEMENTED,
    421: GrpcStatus.UNIMPLEMENTED,
    429: GrpcStatus.RESOURCE_EXHAUSTED,
    431: GrpcStatus.RESOURCE_EXHAUSTED,
    502: GrpcStatus.UNAVAILABLE,
    503: GrpcStatus.UNAVAILABLE,
    504: GrpcStatus.DEADLINE_EXCEEDED,
    507: GrpcStatus.RESOURCE_EXHAUSTED,
}


def grpc_status(decision: Decision) -> int:
    if decision is UNKNOWN_OPERATION:
        return GrpcStatus.UNIMPLEMENTED.value
    return _GRPC.get(decision.status, GrpcStatus.INTERNAL).value


@dataclass(slots=True, eq=False)
class Asked:
    """Inputs of a plan, for a plan that may take its place. Compared by identity, as the key of a memo.

    ``confinements``: conditions of the caller's points. ``queries``: the query policy under which the message is
    rewritten. ``rebuilt``: the message is confined, maybe as one of another method. That is settled when the call
    begins.
    """

    head: CallHead
    operation: Operation
    admission: Admission
    listing: Reducer | None
    confinements: Confinements
    queries: QueryPolicy
    rebuilt: bool

    @classmethod
    def of(
        cls,
        head: CallHead,
        operation: Operation,
        admission: Admission,
        listing: Reducer | None,
        *,
        rebuilt: bool = False,
    ) -> Asked:
        """Of an operation that is not confinable the message is not confined: it is about no points, or was refused."""
        confinements = admission.confinements if is_confinable_call(operation) else ()
        queries = policy_of_message(admission.queries, operation)
        return cls(head, operation, admission, listing, confinements, queries, rebuilt or bool(confinements))

    @property
    def rewritten(self) -> bool:
        """Whether another message is sent in place of its own."""
        return self.rebuilt or bool(self.queries)


@dataclass(slots=True)
class CallPlan:
    """``block`` are the fields to send upstream, short of the connection's own; empty where the call is refused.

    ``form`` is that of a refusal's body where no gRPC was spoken, else None. ``expires`` as in
    :class:`tlsproxy.proxy.decision.request_plan.Plan`;
    ``exists``: the point that the caller's token requires. ``affinity`` goes with the gateway's own questions.
    ``unread``: the message must be read before the call is decided. ``asked``: the question of the decision, None where
    that cannot matter any more. ``body_facts``: facts of the message that was read. ``limit_check`` as there;
    ``largest``: most bytes of the message, 0 if without limit; ``of_role``: by the caller's role. ``length``: bytes of
    its DATA, where the client has said so. ``timeout``: as there, but for the deadline, which each call has for itself.
    """

    operation: str
    role: str
    decision: Decision
    audit: Prepared
    block: bytes = b""
    form: Form | None = None
    expires: float = NEVER
    exists: ValueExists | None = None
    affinity: bytes = b""
    unread: bool = False
    asked: Asked | None = None
    body_facts: BodyFacts | None = None
    limit_check: LimitCheck | None = None
    largest: int = 0
    of_role: bool = True
    length: int | None = None
    timeout: float = 0.0

    def too_large(self) -> BodyTooLarge:
        """Error for a message of more than ``largest`` bytes."""
        if self.of_role:
            return RoleBodyTooLarge(self.largest)
        return BodyTooLarge(f"The message is larger than allowed (limit: {self.largest} bytes)")

    def refused(self, decision: Decision) -> Self:
        """The same call, which is not carried out after all."""
        audit = self.audit.denied(error_of(decision), decision.reason)
        return replace(self, decision=decision, audit=audit, block=b"", unread=False, asked=None)

    def under(self, present: CallPlan) -> CallPlan | Decision:
        """Plan by which a call under way goes on, where its head is planned like ``present`` now; or its refusal."""
        decision, asked = present.decision, present.asked
        if decision is UNREAD and asked is not None and self.body_facts is not None:
            decision = decide_call_again(asked.admission, asked.operation, self.body_facts)
        if not (decision.allowed or (decision is UNREAD and self.unread)):
            return BEYOND_POLICY if decision is UNREAD and asked is not None and asked.queries else decision
        if asked is not None and self.asked is not None:
            if asked.listing is not None and self.asked.listing is None:
                return UNREDUCED
            asked = replace(asked, listing=asked.listing or self.asked.listing, rebuilt=self.asked.rebuilt)
        return replace(self, asked=asked, expires=present.expires, block=present.block or self.block)


def origin_of(upstream: Upstream) -> Fields:
    return origin(upstream.authority, tls=upstream.tls is not None)


def origin_block(upstream: Upstream) -> bytes:
    """`:scheme` and `:authority` as they stand in a plan's block."""
    return literals(origin_of(upstream))


class CallPlans:
    """The plans of one generation. ``origin`` is in their blocks: that of the first node."""

    def __init__(self, generation: Generation, quotas: Quotas, affinity_key: bytes | None = None) -> None:
        """``affinity_key``: that of :func:`own_affinity`; None for none."""
        self._quotas = quotas
        self._affinity_key = affinity_key
        config = generation.config
        self._admissions = Admissions(generation.policy)
        self._log_api = config.audit.log_api
        self._audit_probes = config.audit.probes
        self._max_fields = config.limits.max_headers
        self._origins = frozenset(origin.encode() for origin in config.service.allowed_origins)
        grpc = generation.nodes[0].grpc
        self._upstream = () if grpc is None else origin_of(grpc)
        self.origin = literals(self._upstream)
        key = generation.upstream_api_key
        self._upstream_key = key.encode() if key is not None else None
        self._memo = Memo[tuple[Principal, Fields], CallPlan](MEMO_PLANS)
        self._refusals = Memo[tuple[Principal, Fields], CallPlan](MEMO_REFUSALS)
        self._judged = Memo[tuple[Asked, str | None, BodyNames | None], CallPlan](MEMO_PLANS)
        self._latest: CallPlan | None = None
        self._latest_principal: Principal | None = None
        self._latest_fields: Fields = ()

    def of(self, principal: Principal, fields: Fields, now: float) -> CallPlan:
        """``now`` is seconds since the epoch. Raises :class:`tlsproxy.wire.http2.StreamError`."""
        latest = self._latest
        if latest is not None and principal is self._latest_principal and now < latest.expires:
            # Calls that come together; the memo's hash takes longer.
            if fields is self._latest_fields:
                return latest
            if fields == self._latest_fields:
                self._latest_fields = fields
                return latest
        key = principal, fields
        plan = self._memo.get(key) or self._refusals.get(key)
        if plan is None or now >= plan.expires:
            self._memo.pop(key, None)
            self._refusals.pop(key, None)
            plan = self.make(principal, fields, now)
            if now < plan.expires and size_of(fields) <= MEMO_BLOCK:
                # Refusals apart: whoever makes them up drives out no permission.
                (self._memo if plan.block else self._refusals).remember(key, plan)
        self._latest, self._latest_principal, self._latest_fields = plan, principal, fields
        return plan

    def make(self, principal: Principal, fields: Fields, now: float, *, ended: Decision | None = None) -> CallPlan:
        """``ended`` refuses whatever is asked: the connection has lost its right to exist."""
        try:
            head = parse_call(fields, max_fields=self._max_fields)
        except RequestError as error:
            return replace(
                self.unreadable(principal, error), limit_check=self._quotas.check(principal, None, None, None)
            )
        return self._made(principal, head, now, ended)

    def _made(
        self, principal: Principal, head: CallHead, now: float, ended: Decision | None, *, rebuilt: bool = False
    ) -> CallPlan:
        presented = presented_key(head.value(b"api-key"), head.value(b"authorization"))
        admitted = ended or self._admissions.of(principal, presented, now)
        operation = operation_of(head.path)
        judgement = HeadDecision(ended) if ended is not None else decide_call(admitted, operation)
        admission = admitted if isinstance(admitted, Admission) else None
        alone = admission is not None and presented is None and not (operation is not None and operation.open)
        if alone and is_cross_site(head.fields, head.authority, self._origins):
            judgement = HeadDecision(cross_site())
        return self._plan(principal, head, operation, admission, judgement, rebuilt=rebuilt)

    def unreadable(self, principal: Principal, error: Exception) -> CallPlan:
        """Plan of a stream that is no call: with a RequestError's words, or a malformed stream's."""
        if isinstance(error, RequestError):
            decision = refusal_of(error)
        else:
            decision = Decision(
                allowed=False, reason="malformed_stream", status=HTTPStatus.BAD_REQUEST, text=str(error)
            )
        form = (Form.EMPTY if error.to_head else Form.JSON) if isinstance(error, NotGrpc) else None
        caller = caller_of(principal, None)
        return CallPlan("unreadable", principal.role, decision, prepared(caller, decision), form=form)

    def judged(self, asked: Asked, collection: str | None, names: BodyNames) -> CallPlan:
        """The plan of a call whose message names these. A pure function again, of a head that may be remembered."""
        key = asked, collection, None if names is NO_NAMES else names  # whose hash takes longer than all the rest
        plan = self._judged.get(key)
        if plan is None:
            plan = self._judge(asked, collection, names)
            small = len(collection or "") + names.characters <= MEMO_NAMES and size_of(asked.head.fields) <= MEMO_BLOCK
            if plan.decision.allowed and small:
                self._judged.remember(key, plan)
        return plan

    def present(
        self, former: CallPlan, principal: Principal, now: float, ended: Decision | None
    ) -> CallPlan | Decision:
        """Plan by which a call under way, planned as ``former`` at another moment, goes on; or its refusal."""
        if former.asked is None:  # of what is open to anybody nothing is known
            return ended or former
        return former.under(self._made(principal, former.asked.head, now, ended, rebuilt=former.asked.rebuilt))

    def _judge(self, asked: Asked, collection: str | None, names: BodyNames) -> CallPlan:
        confined = bool(asked.confinements)
        decision = decide_message(asked.admission, asked.operation, collection, names, confined=confined)
        held = asked.confinements if asked.operation.reads else without_public(asked.confinements)
        return self._plan(
            asked.admission.principal,
            asked.head,
            asked.operation,
            asked.admission,
            HeadDecision(decision, asked.listing),
            facts=BodyFacts(names, held, collection, asked.queries),
            rebuilt=asked.rebuilt,
        )

    def _plan(
        self,
        principal: Principal,
        head: CallHead,
        operation: Operation | None,
        admission: Admission | None,
        judgement: HeadDecision,
        *,
        facts: BodyFacts | None = None,
        rebuilt: bool = False,
    ) -> CallPlan:
        decision, listing = judgement.decision, judgement.listing
        asked, block, exists, affinity, is_open = None, b"", None, b"", operation is not None and operation.open
        if operation is not None and admission is not None:
            asked = Asked.of(head, operation, admission, listing, rebuilt=rebuilt)
        if decision is ALLOWED or decision is UNREAD:
            sent = head
            if listing is not None:  # the answer will be read
                sent = sent.without(b"grpc-accept-encoding")
            if asked is not None and asked.rewritten:
                sent = sent.without(b"grpc-encoding")
            if asked is not None and asked.rebuilt:
                sent = replace(sent, path=method_of_confined(asked.operation))
            own = own_affinity(head, self._affinity_key, admission)
            affinity = own or clients_affinity(head)
            restated = restate_call(
                sent,
                upstream=self._upstream,
                upstream_key=self._upstream_key,
                more=((HEADER, own),) if own else (),
            )
            block = write(restated)
            if asked is not None and asked.admission.credential is not None and not asked.operation.open:
                exists = asked.admission.credential.exists
        return CallPlan(
            operation=operation.name if operation is not None else "unknown",
            role=admission.role if admission is not None else principal.role,
            decision=decision,
            audit=prepared(
                caller_of(principal, admission),
                decision,
                method=operation.audit_method if operation is not None else None,
                api=head.path if self._log_api or not decision.allowed else None,
                collection=facts.collection if facts is not None else None,
                probe=operation is not None and operation.probe and not self._audit_probes,
            ),
            block=block,
            affinity=affinity,
            expires=expiry(admission, decision, presented_key(head.value(b"api-key"), head.value(b"authorization"))),
            exists=exists,
            unread=decision is UNREAD,
            asked=asked,
            body_facts=facts,
            limit_check=self._quotas.check(principal, admission, operation, decision),
            largest=OPEN_MESSAGE if is_open else self._quotas.largest_body(admission) or 0,
            of_role=not is_open,
            length=head.length,
            timeout=timeout_of(operation, ""),
        )
