"""A recognised request, and who sends it → the decision. The order of the checks is Qdrant's: who you are, then whether
there is such a route, then whether you may (401 or 403, then 404, then 403).
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

import orjson

from tlsproxy.authz.access import ALLOWED, NO_RIGHTS, UNREAD, Decision, Rights, Scope, decide
from tlsproxy.authz.credentials import Keys
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import Form
from tlsproxy.qdrant.bodies import named_collections
from tlsproxy.qdrant.listings import Listing, listing_of
from tlsproxy.qdrant.rest import Recognised
from tlsproxy.qdrant.tenancy import confine, is_confinable, tells_no_points
from tlsproxy.wire.strictjson import read_json


@dataclass(frozen=True, slots=True)
class Judgement:
    """``decision`` is :data:`UNREAD` where the body has a say: then ``rights`` are what it is judged by.

    ``listing`` is how the answer must be reduced before the caller may see it, None where it may be seen as it is.
    """

    decision: Decision
    rights: Rights = NO_RIGHTS
    listing: Listing | None = None


def judge(principal: Principal, keys: Keys, presented: str | None, asked: Recognised) -> Judgement:
    """What the head of a request decides. ``presented`` is its API key or bearer token, None where it has none.

    Where no key is configured none is looked at, as in Qdrant. A key narrows what a certificate's role gives, and
    stands alone only where there is no certificate.
    """
    operation = asked.operation
    if operation is not None and operation.requirement.scope is Scope.NONE:
        return Judgement(ALLOWED)
    rights = _rights(principal, keys, presented)
    if isinstance(rights, Decision):
        return Judgement(rights)
    if operation is None:
        nowhere = Decision(allowed=False, reason="unknown_operation", status=HTTPStatus.NOT_FOUND, form=Form.EMPTY)
        return Judgement(nowhere)
    listing = listing_of(operation, rights)
    confinable = is_confinable(operation)
    decision = decide(
        rights,
        operation.requirement,
        asked.collection,
        reduced=listing is not None,
        confined=confinable or tells_no_points(operation),
        form=operation.form,
    )
    reads_body = (rights.limited and operation.names_others) or (bool(rights.conditions) and confinable)
    if decision.allowed and reads_body:
        decision = UNREAD
    return Judgement(decision, rights, listing if decision.allowed else None)


def judge_body(rights: Rights, asked: Recognised, content: bytes) -> tuple[Decision, bytes | None]:
    """What head and body decide together, where the head alone left it open, and the body to send in place of this one.

    None is this one, to the byte. Raises :class:`BadRequest`, :class:`Unconfined`.
    """
    operation = asked.operation
    if operation is None:
        return UNREAD, None
    body = read_json(content)
    named = named_collections(operation, body) if operation.names_others else ()
    changed = orjson.dumps(confine(operation, body, rights.conditions)) if rights.conditions else None
    decision = decide(
        rights,
        operation.requirement,
        asked.collection,
        named=named,
        confined=changed is not None,
        form=operation.form,
    )
    return decision, changed


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
