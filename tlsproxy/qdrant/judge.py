"""A recognised request, and who sends it → the decision. The order of the checks is Qdrant's: who you are, then whether
there is such a route, then whether you may (401 or 403, then 404, then 403).
"""

from __future__ import annotations

from http import HTTPStatus

from tlsproxy.authz.access import ALLOWED, Decision, Rights, Scope, decide, forbidden
from tlsproxy.authz.credentials import Keys
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import Form
from tlsproxy.qdrant.rest import Recognised


def judge(principal: Principal, keys: Keys, presented: str | None, asked: Recognised) -> Decision:
    """``presented`` is the API key or bearer token of the request, None where it has none.

    Where no key is configured none is looked at, as in Qdrant. A key narrows what a certificate's role gives, and
    stands alone only where there is no certificate.
    """
    operation = asked.operation
    if operation is not None and operation.requirement.scope is Scope.NONE:
        return ALLOWED
    outcome = _rights(principal, keys, presented)
    if isinstance(outcome, Decision):
        return outcome
    if operation is None:
        return Decision(allowed=False, reason="unknown_operation", status=HTTPStatus.NOT_FOUND, form=Form.EMPTY)
    if operation.filtered and outcome.limited:
        return forbidden("unfiltered_listing", "Global access is required for this listing", operation.form)
    return decide(
        outcome,
        operation.requirement,
        asked.collection,
        names_others=operation.names_others,
        form=operation.form,
    )


def _rights(principal: Principal, keys: Keys, presented: str | None) -> Rights | Decision:
    if principal.refusal is not None:
        return principal.refusal
    key = keys.rights_of(presented) if keys and presented is not None else None
    if keys and presented is not None and key is None:
        return _unauthenticated("invalid_key", "Invalid API key or JWT")
    if principal.identity is None:
        if key is None:
            return _unauthenticated("no_credential", "Must provide an API key or an Authorization bearer token")
        return key
    if key is None or key.everywhere is None:
        return principal.rights
    return principal.rights.narrowed_to(key.everywhere)


def _unauthenticated(reason: str, text: str) -> Decision:
    return Decision(allowed=False, reason=reason, status=HTTPStatus.UNAUTHORIZED, text=text, form=Form.BARE)
