"""A request head → everything that is known of its request before its first body byte: the decision above all.

A plan is a pure function of the head's bytes, the principal and the generation, and clients repeat themselves: a small
memo per generation answers a head that was seen before (0.8 µs instead of a parse and a decision).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from tlsproxy.authz.access import ALLOWED, Decision
from tlsproxy.authz.audit import Caller, Prepared, prepare, tracing_id_of
from tlsproxy.authz.credentials import presented_key
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import RequestError
from tlsproxy.qdrant.judge import judge
from tlsproxy.qdrant.rest import Recognised, recognise
from tlsproxy.tls.generation import Generation
from tlsproxy.wire.http1 import RequestHead, parse_request, restate_request

MEMO_PLANS: Final = 2048
MEMO_HEAD: Final = 4096
"""A longer head is not remembered: the memo's size in memory is bounded by the product."""

UNLIMITED: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Plan:
    """``upstream`` is the head to send, short of the connection's own lines; empty where the request is refused.

    ``length`` as in :class:`RequestHead`; ``framed`` says whether the end of the request is known at all. ``limit`` is
    of the body, in bytes. ``resend`` says that the request may be sent again if a connection was lost under it.
    """

    operation: str
    role: str
    decision: Decision
    audit: Prepared
    framed: bool = False
    length: int = 0
    close: bool = True
    to_head: bool = False
    expects_continue: bool = False
    limit: int = UNLIMITED
    resend: bool = False
    upstream: bytes = b""


class Plans:
    """The plans of one generation."""

    def __init__(self, generation: Generation) -> None:
        config = generation.config
        self._keys = generation.policy.keys
        self._log_api = config.audit.log_api
        self._max_fields = config.limits.max_headers
        self._body_limit = config.service.max_request_size_mb << 20
        self._upload_limit = config.limits.max_upload_size_mb << 20 or UNLIMITED
        self._upstream_host = urlsplit(config.upstream.rest).netloc.encode()
        key = generation.upstream_api_key
        self._upstream_key = key.encode() if key is not None else None
        self._memo: dict[tuple[Principal, bytes], Plan] = {}

    def of(self, principal: Principal, head: bytes) -> Plan:
        plan = self._memo.get((principal, head))
        if plan is None:
            plan = self.make(principal, head)
            if plan.decision.allowed and len(head) <= MEMO_HEAD:
                if len(self._memo) >= MEMO_PLANS:
                    del self._memo[next(iter(self._memo))]  # the oldest
                self._memo[principal, head] = plan
        return plan

    def make(self, principal: Principal, head: bytes, *, ended: Decision | None = None) -> Plan:
        """``ended`` refuses whatever is asked: the connection has lost its right to exist."""
        try:
            parsed = parse_request(head, max_fields=self._max_fields)
        except RequestError as error:
            return self.unreadable(principal, error)
        try:
            asked = recognise(parsed.method, parsed.target)
        except RequestError as error:
            return self._plan(principal, parsed, None, _refused(error))
        presented = presented_key(parsed.value(b"api-key"), parsed.value(b"authorization"))
        return self._plan(principal, parsed, asked, ended or judge(principal, self._keys, presented, asked))

    def unreadable(self, principal: Principal, error: RequestError) -> Plan:
        """What was sent has no readable head, and so no end."""
        decision = _refused(error)
        caller = _caller(principal, decision)
        return Plan("unreadable", principal.role, decision, _prepared(caller, decision))

    def _plan(self, principal: Principal, head: RequestHead, asked: Recognised | None, decision: Decision) -> Plan:
        operation = asked.operation if asked is not None else None
        api = asked.target.path if asked is not None else head.target.partition("?")[0]
        tracing = tracing_id_of({name.decode(): value.decode("latin-1") for name, value in head.fields})
        upstream = b""
        if decision is ALLOWED and asked is not None:
            upstream = restate_request(
                head, str(asked.target), upstream_host=self._upstream_host, upstream_key=self._upstream_key
            )
        return Plan(
            operation=operation.name if operation is not None else "unknown",
            role=principal.role,
            decision=decision,
            audit=_prepared(
                _caller(principal, decision),
                decision,
                method=operation.name if operation is not None else None,
                api=api if self._log_api or not decision.allowed else None,
                collection=asked.collection if asked is not None else None,
                tracing_id=tracing,
            ),
            framed=True,
            length=head.length,
            close=head.close,
            to_head=head.method == "HEAD",
            expects_continue=head.expects_continue,
            limit=self._upload_limit if operation is not None and operation.upload else self._body_limit,
            resend=operation is not None and operation.reads,
            upstream=upstream,
        )


def _refused(error: RequestError) -> Decision:
    return Decision(allowed=False, reason=error.reason, status=error.status, text=str(error), form=error.form)


def _caller(principal: Principal, decision: Decision) -> Caller:
    """Without a certificate, it was a key that let a request through."""
    identity = principal.identity
    if identity is None:
        return Caller("ApiKey" if decision.allowed else "None")
    return Caller("Certificate", principal.role, principal.rule, identity.name, identity.sha256)


def _prepared(
    caller: Caller,
    decision: Decision,
    *,
    method: str | None = None,
    api: str | None = None,
    collection: str | None = None,
    tracing_id: str | None = None,
) -> Prepared:
    return prepare(
        method=method,
        api=api,
        caller=caller,
        collection=collection,
        tracing_id=tracing_id,
        allowed=decision.allowed,
        error=None if decision.allowed else _error(decision),
        reason=decision.reason,
    )


def _error(decision: Decision) -> str:
    """Qdrant prefixes what its authentication says with the name of the error."""
    return f"Unauthorized: {decision.text}" if decision.status == 401 else decision.text or decision.reason  # noqa: PLR2004
