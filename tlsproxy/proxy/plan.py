"""A request head → everything that is known of its request before its first body byte: the decision above all.

A plan is a pure function of the head's bytes, the principal and the generation, and clients repeat themselves: a small
memo per generation answers a head that was seen before (0.8 µs instead of a parse and a decision).

Where the body has a say the head's plan is a refusal that keeps what it was made of (``unread``), and
:meth:`Plans.read` makes the plan of head and body in its place. Both are decided in :mod:`tlsproxy.qdrant.judge`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from tlsproxy.authz.access import ALLOWED, UNREAD, Decision, Rights
from tlsproxy.authz.audit import Caller, Prepared, prepare, tracing_id_of
from tlsproxy.authz.credentials import presented_key
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import RequestError
from tlsproxy.qdrant.judge import Judgement, judge, judge_body
from tlsproxy.qdrant.listings import Listing
from tlsproxy.qdrant.rest import Recognised, recognise
from tlsproxy.tls.generation import Generation
from tlsproxy.wire.content import decoded
from tlsproxy.wire.http1 import RequestHead, parse_request, restate_request

MEMO_PLANS: Final = 2048
MEMO_HEAD: Final = 4096
"""A longer head is not remembered: the memo's size in memory is bounded by the product."""

UNLIMITED: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Unread:
    """A request whose body must be read before it is decided: by whom, what, and with which rights."""

    principal: Principal
    head: RequestHead
    asked: Recognised
    rights: Rights


@dataclass(frozen=True, slots=True)
class Plan:
    """``upstream`` is the head to send, short of the connection's own lines; empty where the request is refused.

    ``length`` as in :class:`RequestHead`; ``framed`` says whether the end of the request is known at all. ``limit`` is
    of the body, in bytes. ``resend`` says that the request may be sent again if a connection was lost under it.
    ``unread``: not decided yet. ``listing``: the response is reduced to what the caller may know.
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
    unread: Unread | None = None
    listing: Listing | None = None


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
            if (plan.decision.allowed or plan.unread is not None) and len(head) <= MEMO_HEAD:
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
            return self._plan(principal, parsed, None, Judgement(_refused(error)))
        presented = presented_key(parsed.value(b"api-key"), parsed.value(b"authorization"))
        judgement = Judgement(ended) if ended is not None else judge(principal, self._keys, presented, asked)
        return self._plan(principal, parsed, asked, judgement)

    def read(self, unread: Unread, content: bytes) -> tuple[Plan, bytes]:
        """The plan of a request whose body is here, and the body to send: this one, or this one confined."""
        head, coding = unread.head, unread.head.value(b"content-encoding")
        try:
            decision, changed = judge_body(unread.rights, unread.asked, decoded(content, coding, self._body_limit))
        except RequestError as error:
            decision, changed = _refused(error), None
        if changed is not None:
            head, content = _without(head, b"content-encoding"), changed
        return self._plan(unread.principal, _whole(head, len(content)), unread.asked, Judgement(decision)), content

    def unreadable(self, principal: Principal, error: RequestError) -> Plan:
        """What was sent has no readable head, and so no end."""
        decision = _refused(error)
        caller = _caller(principal, decision)
        return Plan("unreadable", principal.role, decision, _prepared(caller, decision))

    def _plan(self, principal: Principal, head: RequestHead, asked: Recognised | None, judgement: Judgement) -> Plan:
        decision, listing = judgement.decision, judgement.listing
        operation = asked.operation if asked is not None else None
        api = asked.target.path if asked is not None else head.target.partition("?")[0]
        tracing = tracing_id_of({name.decode(): value.decode("latin-1") for name, value in head.fields})
        upstream = b""
        if decision is ALLOWED and asked is not None:
            upstream = restate_request(
                head if listing is None else _without(head, b"accept-encoding"),  # it will be read
                str(asked.target),
                upstream_host=self._upstream_host,
                upstream_key=self._upstream_key,
            )
        unread = None
        if decision is UNREAD and asked is not None:
            unread = Unread(principal, head, asked, judgement.rights)
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
            unread=unread,
            listing=listing,
        )


def _without(head: RequestHead, *names: bytes) -> RequestHead:
    return replace(head, fields=tuple(field for field in head.fields if field[0] not in names))


def _whole(head: RequestHead, size: int) -> RequestHead:
    """The same request with its body here: a length in place of chunks, and nobody who waits to be told to send."""
    head = _without(head, b"content-length", b"expect")
    return replace(head, fields=(*head.fields, (b"content-length", b"%d" % size)), length=size, expects_continue=False)


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
