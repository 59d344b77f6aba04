"""A recognised request, and who sends it → the decision. The order of the checks is Qdrant's: who you are, then whether
there is such a route, then whether you may (401 or 403, then 404, then 403).
"""

from __future__ import annotations

from http import HTTPStatus

from tlsproxy.authz.access import ALLOWED, Decision, Rights, Scope, decide, forbidden
from tlsproxy.authz.admission import Admission
from tlsproxy.errors import Form
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.rest import Recognised


def judge(admitted: Admission | Decision, asked: Recognised) -> Decision:
    """Allowed only if all rights of the caller allow it; otherwise in the words of the first that does not."""
    operation = asked.operation
    if operation is not None and operation.requirement.scope is Scope.NONE:
        return ALLOWED
    if isinstance(admitted, Decision):
        return admitted
    if operation is None:
        return Decision(allowed=False, reason="unknown_operation", status=HTTPStatus.NOT_FOUND, form=Form.EMPTY)
    decision = forbidden("no_rights", "Global access is required", operation.form)
    for rights in admitted.rights:
        decision = _judge(rights, operation, asked.collection)
        if not decision.allowed:
            break
    return decision


def _judge(rights: Rights, operation: Operation, collection: str | None) -> Decision:
    if operation.filtered and rights.limited:
        return forbidden("unfiltered_listing", "Global access is required for this listing", operation.form)
    return decide(
        rights,
        operation.requirement,
        collection,
        names_others=operation.names_others,
        form=operation.form,
    )
