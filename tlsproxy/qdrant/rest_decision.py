"""The decision on a REST request: by its head where that is enough, else by its body too.

The order of the checks is Qdrant's: authentication (401 or 403), the route (404), authorization (403).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

import orjson

from tlsproxy.authz.access import (
    ALLOWED,
    ANY_COLLECTION,
    NO_NAMES,
    UNREAD,
    BodyNames,
    Confinements,
    Decision,
    Rights,
    Scope,
    decide,
    forbidden,
    is_within,
    without_public,
)
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.query_policy import NO_POLICY, QueryPolicy
from tlsproxy.errors import Form, RequestError
from tlsproxy.qdrant.descriptions import describing, is_described
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.query_policy import NOT_UNDER_POLICY, Treatment, concerning, treatment
from tlsproxy.qdrant.rest_answers import ChangedAnswer
from tlsproxy.qdrant.rest_collections import body_names
from tlsproxy.qdrant.rest_hidden import stripping_of
from tlsproxy.qdrant.rest_listings import Reducer, listing_of
from tlsproxy.qdrant.rest_query_policy import is_read_under, reading_under, target_under
from tlsproxy.qdrant.rest_tenancy import Confined, confine, has_body, is_confinable, touches_no_points
from tlsproxy.qdrant.router import Recognised
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.strict_json import reading_json
from tlsproxy.wire.target import RequestTarget

UNKNOWN_OPERATION: Final = Decision(
    allowed=False, reason="unknown_operation", status=HTTPStatus.NOT_FOUND, form=Form.EMPTY
)
"""There is no such route, or method."""
GRPC_OVER_HTTP_1: Final = Decision(
    allowed=False,
    reason="grpc_over_http_1",
    status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    text="gRPC is served over HTTP/2 alone: let the client offer ALPN h2 and not http/1.1, or use a port of gRPC; "
    "gRPC-Web is not served",
)


@dataclass(slots=True)
class HeadDecision:
    """``decision`` is :data:`UNREAD` where it depends on the body (:func:`deciding_body`).

    ``listing`` reduces the response to what the caller may see; None where it may see all of it. ``target``: to send in
    place of the client's.
    """

    decision: Decision
    listing: Reducer | None = None
    target: RequestTarget | None = None


UNREDUCED: Final = forbidden("unfiltered_listing", "Global access is required for this listing")
"""The refusal of a response in progress that is not reduced to the caller's present rights."""
_NO_RIGHTS: Final = forbidden("no_rights", "Global access is required")
UNDER_POLICY: Final = forbidden("query_policy", NOT_UNDER_POLICY)
BEYOND_POLICY: Final = forbidden("query_policy", "The request is beyond what its caller's query policy allows now")
NOT_CONFINED: Final = forbidden("not_confined", "The request is not confined to the points that its caller may use now")


@dataclass(slots=True)
class BodyFacts:
    """Facts of a body that was decided on: the names in it, the confinements that it was written anew for, and the
    query policy.

    ``collection`` is that of a gRPC message; REST has it in the path.
    """

    names: BodyNames
    confinements: Confinements
    collection: str | None = None
    queries: QueryPolicy = NO_POLICY

    def suits(self, present: Confinements) -> bool:
        """Whether it is confined to the points of these, or fewer."""
        return is_within(self.confinements, present)


def decide_request(admitted: Admission | Decision, request: Recognised) -> HeadDecision:
    """Decides by the head. All rights of the caller must allow it; the first that does not gives the reason."""
    operation = request.operation
    if operation is not None and operation.requirement.scope is Scope.NONE:
        return HeadDecision(ALLOWED)
    if isinstance(admitted, Decision):
        return HeadDecision(admitted)
    if operation is None:
        return HeadDecision(UNKNOWN_OPERATION)
    listing, confinable = listing_of(operation, admitted.rights), is_confinable(operation)
    rights, names = at_best(admitted.rights) if operation.names_changed else (admitted.rights, NO_NAMES)
    decision = decide_all(
        rights,
        operation,
        request.collection,
        names=names,
        reduced=listing is not None,
        confined=confinable or touches_no_points(operation),
    )
    if not decision.allowed:
        return HeadDecision(decision)
    policy = concerning(admitted.queries, operation)
    if treatment(operation, policy) is Treatment.REFUSED:
        return HeadDecision(replace(UNDER_POLICY, form=operation.form))
    try:
        target = target_under(operation, request.target, policy) if policy else None
    except RequestError as error:
        return HeadDecision(
            Decision(allowed=False, reason=error.reason, status=error.status, text=str(error), form=operation.form)
        )
    if needs_names(rights, operation) or (confinable and admitted.confinements) or is_read_under(operation, policy):
        return HeadDecision(UNREAD, target=target)
    return HeadDecision(ALLOWED, listing or _reduction(operation, admitted, policy), target)


def _reduction(operation: Operation, admitted: Admission, policy: QueryPolicy) -> Reducer | None:
    stripping = stripping_of(operation, policy)
    if not (admitted.confinements and is_described(operation)):
        return stripping
    return ChangedAnswer((describing, *(stripping.changes if stripping is not None else ())))


def at_best(rights: tuple[Rights, ...]) -> tuple[tuple[Rights, ...], BodyNames]:
    """Rights, and names of a body, by which a refusal holds for any body that names what it changes."""
    return tuple(one.at_best() for one in rights), BodyNames(change=(ANY_COLLECTION,))


def permits(rights: Rights, operation: Operation) -> bool:
    """Whether rights permit an operation on collections that they cover, in a way that confines and reduces it."""
    (best,), names = at_best((rights,))
    collection = None if operation.names_changed else ANY_COLLECTION
    return decide_all((best,), operation, collection, names=names, reduced=True, confined=True).allowed


def needs_names(rights: tuple[Rights, ...], operation: Operation) -> bool:
    """Whether the decision may depend on names in the body."""
    if operation.carries:
        filters = [each for one in rights for each in (one.operations, *(grant.operations for grant in one.grants))]
        return any(each.refused(operation.carries) for each in filters)
    return (operation.names_others or operation.names_changed) and any(one.limited for one in rights)


@dataclass(slots=True)
class BodyDecision:
    """``body`` is to be sent instead of the one that was read; None: that one, unchanged. ``reducer`` reduces the
    answer, which is passed on as it is without one. ``confined``: the request was confined to the caller's points.
    """

    decision: Decision
    facts: BodyFacts | None = None
    body: bytes | None = None
    reducer: Reducer | None = None
    confined: Confined | None = None


def deciding_body(
    admitted: Admission, request: Recognised, content: Content, facts: Facts | None = None, memory: int = 0
) -> Steps[BodyDecision]:
    """Decides by head and body, where the head left it open: by rights, then the query policy, then the confinement.

    If only its names are needed, ``content`` may be the skeleton
    (:mod:`tlsproxy.wire.json_skeleton`). ``memory``: bytes in use beside the content.

    Raises :class:`BadRequest`, :class:`PolicyRefused`, :class:`Unconfined`, and :class:`FactsNeeded` where it depends
    on the facts.
    """
    operation = request.operation
    if operation is None:
        return BodyDecision(UNREAD)
    confinements = admitted.confinements
    body = (yield from reading_json(content, memory)) if has_body(operation) else None
    names = yield from body_names(operation, body)
    decision = decide_all(admitted.rights, operation, request.collection, names=names, confined=bool(confinements))
    if not decision.allowed:
        return BodyDecision(decision)
    policy = concerning(admitted.queries, operation)
    if is_read_under(operation, policy):
        yield from reading_under(operation, body, policy)
    confined = (yield from confine(request, body, confinements, facts)) if confinements else None
    changed = None
    if confined is not None or is_read_under(operation, policy):
        yield None
        changed = orjson.dumps(body if confined is None else confined.body)
    held = confinements if operation.reads else without_public(confinements)
    reducer = stripping_of(operation, policy)
    if confined is not None and confined.answered is not None:
        changes = (confined.answered, *(reducer.changes if reducer is not None else ()))
        reducer = ChangedAnswer(changes, confined.answered_memory)
    return BodyDecision(decision, BodyFacts(names, held), changed, reducer, confined)


def decide_again(admitted: Admission, request: Recognised, body: BodyFacts) -> Decision:
    """Decides with present rights on a request in progress, whose body was decided on with earlier ones."""
    operation = request.operation
    if operation is None:
        return UNKNOWN_OPERATION
    confinable = is_confinable(operation)
    if confinable and not body.suits(admitted.confinements):
        return NOT_CONFINED
    confined = confinable or touches_no_points(operation)
    return decide_all(admitted.rights, operation, request.collection, names=body.names, confined=confined)


def decide_all(
    rights: tuple[Rights, ...],
    operation: Operation,
    collection: str | None,
    *,
    names: BodyNames = NO_NAMES,
    reduced: bool = False,
    confined: bool,
) -> Decision:
    """Decides with all rights: each must allow, the first that does not gives the reason."""
    decision = _NO_RIGHTS
    for each in rights:
        decision = decide(
            each, operation.requirement, operation.name, collection, names=names, reduced=reduced, confined=confined
        )
        if not decision.allowed:
            break
    return decision if decision.allowed else replace(decision, form=operation.form)
