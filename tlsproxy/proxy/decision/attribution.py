"""Attribution of a request of either protocol: its caller, its account, and the text of its refusal."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Final

from tlsproxy.audit.line import Caller, Prepared, prepare
from tlsproxy.authz.access import Decision
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.keys import NEVER
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import (
    BadRequest,
    BodyTooLarge,
    CodingRefused,
    Form,
    PolicyRefused,
    RequestError,
    Unconfined,
)
from tlsproxy.proxy.limits.fair_shares import Account

STORAGE_ERROR: Final = "token_storage_error"
"""Reason of a refusal that the upstream gave to a subrequest that a token requires."""

CONTENT_REFUSALS: Final = BadRequest, BodyTooLarge, CodingRefused, PolicyRefused, Unconfined
"""Errors that are the decision, a refusal, where a body or message has a say in it."""


def refusal_of(error: RequestError) -> Decision:
    return Decision(allowed=False, reason=error.reason, status=error.status, text=str(error), form=error.form)


def caller_of(principal: Principal, admission: Admission | None) -> Caller:
    """Caller as admitted; ``admission`` is None if it was not, or not yet."""
    identity, credential = principal.identity, admission.credential if admission is not None else None
    of_token = credential.rule if credential is not None else None
    auth_type = credential.kind if credential is not None else "Certificate" if identity is not None else "None"
    return Caller(
        auth_type,
        principal.role if admission is None else admission.role,
        principal.rule if admission is None else admission.rule,
        identity.name if identity is not None else "",
        identity.sha256 if identity is not None else "",
        identity.ca_sha256 if identity is not None else "",
        subject=credential.subject if credential is not None else "",
        key=credential.name if credential is not None else "",
        key_rights=credential.gives if credential is not None else "",
        token_rule=of_token.name if of_token is not None else "",
        token_role=of_token.role if of_token is not None else "",
        token_groups=credential.groups if credential is not None else (),
    )


def expiry(admission: Admission | None, decision: Decision, presented: str | None) -> float:
    """End of the decision's validity, in seconds since the epoch. A bad key or token may be good a moment later."""
    if admission is not None:
        return admission.expires
    return NEVER if decision.allowed or presented is None else 0.0


def account_of(account: Account, caller: Caller) -> Account:
    """Account of a request on a connection of this ``account``: its certificate, else key or token, else address."""
    if account[0] == "address" and (caller.key or caller.subject):
        return "key", caller.auth_type, caller.key, caller.subject
    return account


def prepared(
    caller: Caller,
    decision: Decision,
    *,
    method: str | None = None,
    api: str | None = None,
    collection: str | None = None,
    probe: bool = False,
) -> Prepared:
    """``probe``: an operation that has no line where it is allowed."""
    line = prepare(
        method=method,
        api=api,
        caller=caller,
        collection=collection,
        allowed=decision.allowed,
        error=None if decision.allowed else error_of(decision),
        reason=decision.reason,
    )
    return replace(line, probe=True) if probe and decision.allowed else line


def error_of(decision: Decision) -> str:
    """Text of a refusal in the audit line. Qdrant prefixes authentication errors with their name."""
    if decision.form is Form.BARE:
        return f"{'Unauthorized' if decision.status == HTTPStatus.UNAUTHORIZED else 'Forbidden'}: {decision.text}"
    if decision.reason == STORAGE_ERROR:
        return f"Storage error: {decision.text}"
    return decision.text or decision.reason
