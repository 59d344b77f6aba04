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
from tlsproxy.qdrant.rest_tenancy import confine, is_confinable, tells_no_points
from tlsproxy.qdrant.router import Recognised
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.strict_json import reading_json

NOWHERE: Final = Decision(allowed=False, reason="unknown_operation", status=HTTPStatus.NOT_FOUND, form=Form.EMPTY)
"""There is no such route, or method."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """``decision`` is :data:`UNREAD` where the body has a say, which :func:`judging_body` then hears.

    ``listing`` is how the answer must be reduced before the caller may see it, None where it may be seen as it is.
    """

    decision: Decision
    listing: Reducer | None = None


UNREDUCED: Final = forbidden("unfiltered_listing", "Global access is required for this listing")
"""An answer is on its way that is not reduced to what its caller may know now."""
NOT_CONFINED: Final = forbidden("not_confined", "The request is not confined to the points that its caller may use now")


@dataclass(frozen=True, slots=True)
class Heard:
    """Facts of a body at its decision: the collections that it names beside that of its request's head, and the
    conditions that it was confined to.
    """

    named: tuple[str, ...]
    conditions: tuple[Condition, ...]

    def suits(self, conditions: tuple[Condition, ...]) -> bool:
        """Whether it is confined to these points, or fewer."""
        return set(conditions) <= set(self.conditions)


def judge(admitted: Admission | Decision, asked: Recognised) -> Judgement:
    """What the head decides. Allowed only if all rights of the caller allow it; otherwise in the words of the first
    that does not.
    """
    operation = asked.operation
    if operation is not None and operation.requirement.scope is Scope.NONE:
        return Judgement(ALLOWED)
    if isinstance(admitted, Decision):
        return Judgement(admitted)
    if operation is None:
        return Judgement(NOWHERE)
    listing, confinable = listing_of(operation, admitted.rights), is_confinable(operation)
    decision = decide_all(
        admitted.rights,
        operation,
        asked.collection,
        reduced=listing is not None,
        confined=confinable or tells_no_points(operation),
    )
    if not decision.allowed:
        return Judgement(decision)
    names_others = operation.names_others and any(rights.limited for rights in admitted.rights)
    if names_others or (confinable and any(rights.conditions for rights in admitted.rights)):
        return Judgement(UNREAD)
    return Judgement(ALLOWED, listing)


def judging_body(
    admitted: Admission, asked: Recognised, content: Content, facts: Facts | None = None, held: int = 0
) -> Steps[tuple[Decision, bytes | None, Heard]]:
    """Decision of head and body together, where the head alone left it open; the body to send in place of this one;
    and the facts of the body that decided.

    A new body of None means this one, to the byte. A body that is read for its names alone may be given as its outline.
    ``held`` are bytes in use beside the body that came.

    Raises :class:`BadRequest`, :class:`Unconfined`, and :class:`FactsNeeded` where the collection's facts have a say.
    """
    operation = asked.operation
    if operation is None:
        return UNREAD, None, Heard((), ())
    conditions = admitted.conditions
    body = yield from reading_json(content, held)
    named = named_collections(operation, body) if operation.names_others else ()
    changed = None
    if conditions:
        confined = confine(operation, body, conditions, facts)
        yield None
        changed = orjson.dumps(confined)
    decision = decide_all(admitted.rights, operation, asked.collection, named=named, confined=changed is not None)
    return decision, changed, Heard(named, conditions)


def judge_heard(admitted: Admission, asked: Recognised, heard: Heard) -> Decision:
    """Decision of these rights on a request under way, whose body was decided on by other rights."""
    operation = asked.operation
    if operation is None:
        return NOWHERE
    confinable = is_confinable(operation)
    if confinable and not heard.suits(admitted.conditions):
        return NOT_CONFINED
    confined = confinable or tells_no_points(operation)
    return decide_all(admitted.rights, operation, asked.collection, named=heard.named, confined=confined)


def decide_all(
    held: tuple[Rights, ...],
    operation: Operation,
    collection: str | None,
    *,
    named: tuple[str, ...] = (),
    reduced: bool = False,
    confined: bool,
) -> Decision:
    """All of them must allow; the first that does not says why."""
    decision = forbidden("no_rights", "Global access is required", operation.form)
    for rights in held:
        decision = decide(
            rights,
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
