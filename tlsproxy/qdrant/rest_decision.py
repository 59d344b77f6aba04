"""A recognised request, and who sends it → the decision. The order of the checks is Qdrant's: who you are, then whether
there is such a route, then whether you may (401 or 403, then 404, then 403).
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import orjson

from tlsproxy.authz.access import ALLOWED, UNREAD, Condition, Decision, Rights, Scope, decide, forbidden
from tlsproxy.authz.admission import Admission
from tlsproxy.errors import Form
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.rest_collections import named_collections
from tlsproxy.qdrant.rest_listings import Reducer, listing_of
from tlsproxy.qdrant.rest_tenancy import confine, is_confinable, touches_no_points
from tlsproxy.qdrant.router import Recognised
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.strict_json import reading_json

UNKNOWN_OPERATION: Final = Decision(
    allowed=False, reason="unknown_operation", status=HTTPStatus.NOT_FOUND, form=Form.EMPTY
)
"""There is no such route, or method."""


@dataclass(frozen=True, slots=True)
class HeadDecision:
    """``decision`` is :data:`UNREAD` where the body has a say, which :func:`deciding_body` then hears.

    ``listing`` is how the answer must be reduced before the caller may see it, None where it may be seen as it is.
    """

    decision: Decision
    listing: Reducer | None = None


UNREDUCED: Final = forbidden("unfiltered_listing", "Global access is required for this listing")
"""An answer is on its way that is not reduced to what its caller may know now."""
NOT_CONFINED: Final = forbidden("not_confined", "The request is not confined to the points that its caller may use now")


@dataclass(frozen=True, slots=True)
class BodyFacts:
    """Facts of a body at its decision: the collections that it names beside that of its request's head, and the
    conditions that it was confined to.
    """

    named: tuple[str, ...]
    conditions: tuple[Condition, ...]

    def suits(self, conditions: tuple[Condition, ...]) -> bool:
        """Whether it is confined to these points, or fewer."""
        return set(conditions) <= set(self.conditions)


def decide_request(admitted: Admission | Decision, request: Recognised) -> HeadDecision:
    """What the head decides. Allowed only if all rights of the caller allow it; otherwise in the words of the first
    that does not.
    """
    operation = request.operation
    if operation is not None and operation.requirement.scope is Scope.NONE:
        return HeadDecision(ALLOWED)
    if isinstance(admitted, Decision):
        return HeadDecision(admitted)
    if operation is None:
        return HeadDecision(UNKNOWN_OPERATION)
    listing, confinable = listing_of(operation, admitted.rights), is_confinable(operation)
    decision = decide_all(
        admitted.rights,
        operation,
        request.collection,
        reduced=listing is not None,
        confined=confinable or touches_no_points(operation),
    )
    if not decision.allowed:
        return HeadDecision(decision)
    names_others = operation.names_others and any(rights.limited for rights in admitted.rights)
    if names_others or (confinable and any(rights.conditions for rights in admitted.rights)):
        return HeadDecision(UNREAD)
    return HeadDecision(ALLOWED, listing)


def deciding_body(
    admitted: Admission, request: Recognised, content: Content, facts: Facts | None = None, held: int = 0
) -> Steps[tuple[Decision, bytes | None, BodyFacts]]:
    """Decision of head and body together, where the head alone left it open; the body to send in place of this one;
    and the facts of the body that decided.

    A new body of None means this one, to the byte. A body that is read for its names alone may be given as its outline.
    ``held`` are bytes in use beside the body that came.

    Raises :class:`BadRequest`, :class:`Unconfined`, and :class:`FactsNeeded` where the collection's facts have a say.
    """
    operation = request.operation
    if operation is None:
        return UNREAD, None, BodyFacts((), ())
    conditions = admitted.conditions
    body = yield from reading_json(content, held)
    named = named_collections(operation, body) if operation.names_others else ()
    changed = None
    if conditions:
        confined = confine(operation, body, conditions, facts)
        yield None
        changed = orjson.dumps(confined)
    decision = decide_all(admitted.rights, operation, request.collection, named=named, confined=changed is not None)
    return decision, changed, BodyFacts(named, conditions)


def decide_again(admitted: Admission, request: Recognised, body: BodyFacts) -> Decision:
    """Decision of these rights on a request under way, whose body was decided on by other rights."""
    operation = request.operation
    if operation is None:
        return UNKNOWN_OPERATION
    confinable = is_confinable(operation)
    if confinable and not body.suits(admitted.conditions):
        return NOT_CONFINED
    confined = confinable or touches_no_points(operation)
    return decide_all(admitted.rights, operation, request.collection, named=body.named, confined=confined)


def decide_all(
    rights: tuple[Rights, ...],
    operation: Operation,
    collection: str | None,
    *,
    named: tuple[str, ...] = (),
    reduced: bool = False,
    confined: bool,
) -> Decision:
    """All of them must allow; the first that does not says why."""
    decision = forbidden("no_rights", "Global access is required", operation.form)
    for each in rights:
        decision = decide(
            each,
            operation.requirement,
            collection,
            named=named,
            reduced=reduced,
            confined=confined,
            form=operation.form,
        )
        if not decision.allowed:
            break
    return decision
