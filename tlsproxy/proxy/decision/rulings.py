"""Rulings: the part of a plan that all requests of a caller for one operation on one collection have in common.

Heads differ in ids of points, length, query and fields that nobody decides by. Each is parsed and written anew; the
caller and its rights are found once, and remembered as long as its key or token holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tlsproxy.audit.line import Prepared
from tlsproxy.authz.access import ALLOWED, UNREAD
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.claims import ValueExists
from tlsproxy.authz.query_policy import NO_POLICY, QueryPolicy
from tlsproxy.authz.roles import Principal
from tlsproxy.memo import Memo
from tlsproxy.proxy.decision.admissions import MEMO_KEY, Admissions
from tlsproxy.proxy.decision.attribution import caller_of, expiry, prepared
from tlsproxy.proxy.limits.quotas import LimitCheck, Quotas
from tlsproxy.qdrant.operations import AUDIT_LOGS, Operation
from tlsproxy.qdrant.query_policy import concerning
from tlsproxy.qdrant.rest_decision import HeadDecision, decide_request
from tlsproxy.qdrant.router import Recognised
from tlsproxy.snapshot.generation import Generation

MEMO: Final = 2048

UNLIMITED: Final = 1 << 62
AUDIT_QUERY: Final = 65_536
"""Bytes of a question about the audit log."""


@dataclass(slots=True, eq=False)
class Ruling:
    """``audit`` lacks the path. ``admission`` is None where the caller was not admitted, or not asked who it is.
    ``allowed``: the ruling on bodies that are allowed, and their answers not reduced, once there was one.

    The other fields are as in :class:`tlsproxy.proxy.decision.request_plan.Plan`.
    """

    operation: Operation | None
    admission: Admission | None
    judgement: HeadDecision
    role: str
    audit: Prepared
    limit: int
    of_role: bool
    limit_check: LimitCheck | None
    expires: float
    exists: ValueExists | None
    queries: QueryPolicy
    allowed: Ruling | None = None


class Rulings:
    """The rulings of one generation."""

    def __init__(self, generation: Generation, quotas: Quotas) -> None:
        config = generation.config
        self._quotas = quotas
        self._admissions = Admissions(generation.policy)
        self._audit_probes = config.audit.probes
        self._body_limit = config.service.max_request_size_mb << 20
        self._upload_limit = config.limits.max_upload_size_mb << 20 or UNLIMITED
        self._memo = Memo[tuple[Principal, Operation | None, str | None, str | None], Ruling](MEMO)

    def of(self, principal: Principal, asked: Recognised, presented: str | None, now: float) -> Ruling:
        """The ruling by the head. ``presented`` is its key or token, if any, ``now`` seconds since the epoch."""
        key = principal, asked.operation, asked.collection, presented
        known = self._memo.get(key)
        if known is not None and now < known.expires:
            return known
        admitted = self._admissions.of(principal, presented, now)
        admission = admitted if isinstance(admitted, Admission) else None
        ruling = self.make(principal, asked, admission, decide_request(admitted, asked), presented)
        if _lasts(ruling, presented) and now < ruling.expires:
            self._memo.remember(key, ruling)
        return ruling

    def make(
        self,
        principal: Principal,
        asked: Recognised | None,
        admission: Admission | None,
        judgement: HeadDecision,
        presented: str | None,
    ) -> Ruling:
        """The ruling by this judgement."""
        decision = judgement.decision
        operation = asked.operation if asked is not None else None
        limit, largest = self._limit(operation), self._quotas.largest_body(admission)
        of_role = largest is not None and largest < limit
        return Ruling(
            operation,
            admission,
            judgement,
            admission.role if admission is not None else principal.role,
            prepared(
                caller_of(principal, admission),
                decision,
                method=operation.audit_method if operation is not None else None,
                collection=asked.collection if asked is not None else None,
                probe=operation is not None and operation.probe and not self._audit_probes,
            ),
            largest if largest is not None and of_role else limit,
            of_role,
            self._quotas.check(principal, admission, operation, decision),
            expiry(admission, decision, presented),
            _exists(operation, admission),
            concerning(admission.queries, operation) if admission is not None else NO_POLICY,
        )

    def _limit(self, operation: Operation | None) -> int:
        """Most bytes of a body, whoever sends it."""
        if operation is AUDIT_LOGS:
            return AUDIT_QUERY
        return self._upload_limit if operation is not None and operation.upload else self._body_limit


def _lasts(ruling: Ruling, presented: str | None) -> bool:
    """Whether it may be remembered: not a refusal, so that whoever makes up requests drives out no permission, and not
    under a query policy, which looks at the query too.
    """
    decision = ruling.judgement.decision
    return (
        ruling.admission is not None
        and (decision is ALLOWED or decision is UNREAD)
        and not ruling.queries
        and (presented is None or len(presented) <= MEMO_KEY)
    )


def _exists(operation: Operation | None, admission: Admission | None) -> ValueExists | None:
    """The point that the token requires; none for an operation that is open to anybody."""
    credential = admission.credential if admission is not None else None
    if credential is None or (operation is not None and operation.open):
        return None
    return credential.exists
