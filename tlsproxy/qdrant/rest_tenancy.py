"""Confines a REST request to the points that meet the caller's payload conditions, or refuses it.

Reads and changes are confined by tables of the operations that can be (:mod:`tlsproxy.qdrant.rest_tenant_reads`,
:mod:`tlsproxy.qdrant.rest_tenant_changes`); one without a row is refused to such a caller. With the condition
`tenant = "a"` they get it as a filter; new points get it as payload, and Qdrant's `update_filter` (since 1.16) stops an
upsert over an existing point of another tenant. A retrieval by ids becomes a scroll
(:mod:`tlsproxy.qdrant.rest_retrieval`). Requests are refused that would change the conditions' own keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tlsproxy.authz.access import Confinements
from tlsproxy.errors import Unconfined
from tlsproxy.qdrant import tenant_texts
from tlsproxy.qdrant.descriptions import is_described
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.rest_answers import ResultChange
from tlsproxy.qdrant.rest_collections import expect_object
from tlsproxy.qdrant.rest_retrieval import scroll_of, scroll_of_one
from tlsproxy.qdrant.rest_tenant_changes import ROUTES
from tlsproxy.qdrant.rest_tenant_reads import READS, confine_read
from tlsproxy.qdrant.router import Recognised
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.qdrant.tenant_examples import Question
from tlsproxy.wire.cooperative import Pace, Steps
from tlsproxy.wire.target import RequestTarget

# Responses with names of collections and aliases only, which are decided on by grants.
_NO_POINTS: Final = frozenset({"collection_exists", "list_collections", "list_aliases", "list_collection_aliases"})

_POINTS: Final = "/collections/{collection_name}/points"
_POINT: Final = ("GET", f"{_POINTS}/{{id}}")
_RETRIEVAL: Final = ("POST", _POINTS)
_CLEARING: Final = ("POST", f"{_POINTS}/payload/clear")


@dataclass(frozen=True, slots=True)
class Confined:
    """The request to send instead: by this ``method`` to this path below the collection's ``points``, where that is
    another than the client's, with this ``body``.

    ``answered``: makes the result of its answer one to the client's request; it takes ``answered_memory`` bytes until
    then. ``questions``: to be asked first.
    """

    body: Any
    method: str = ""
    path: str = ""
    answered: ResultChange | None = None
    answered_memory: int = 0
    questions: tuple[Question, ...] = ()

    def target(self, asked: RequestTarget) -> RequestTarget:
        """The target to send it to."""
        if not self.method:
            return asked
        segments = (*asked.segments[:3], *self.path.split("/"))
        beginning = "/".join(asked.path.split("/")[:4])
        return RequestTarget(segments, f"{beginning}/{self.path}", asked.query)


def touches_no_points(operation: Operation) -> bool:
    """Whether it is about no points, so that conditions do not apply: its answer has names alone, or is described."""
    return operation.name in _NO_POINTS or is_described(operation)


def is_confinable(operation: Operation) -> bool:
    """Whether :func:`confine` has a row for it."""
    route = operation.method, operation.path
    return operation.path in READS or route in ROUTES or route in {_POINT, _RETRIEVAL}


def has_body(operation: Operation) -> bool:
    """Whether a body is a part of the request that is confined."""
    return operation.method != "GET"


def confine(asked: Recognised, body: Any, confinements: Confinements, facts: Facts | None = None) -> Steps[Confined]:
    """Confines a request, and may change its ``body``.

    Raises :class:`Unconfined`, :class:`BadRequest`, and :class:`FactsNeeded` where it depends on the facts.
    """
    operation, collection = asked.operation, asked.collection
    if operation is None or collection is None:
        raise Unconfined(tenant_texts.NOT_CONFINED)
    route = operation.method, operation.path
    if route == _POINT:
        scroll, answered = scroll_of_one(asked.target.segments[-1], confinements)
        return Confined(scroll, "POST", "scroll", answered)
    if route == _RETRIEVAL:
        scroll, in_order = yield from scroll_of(body, confinements)
        return Confined(scroll, "POST", "scroll", in_order, in_order.memory)
    change = ROUTES.get(route)
    if change is not None:
        yield from change(expect_object(body, "the body"), confinements, Pace())
        return Confined(body, "PUT", "payload") if route == _CLEARING else Confined(body)
    if operation.path not in READS:
        raise Unconfined(tenant_texts.NOT_CONFINED)
    examples = yield from confine_read(operation, collection, body, confinements, facts)
    return Confined(body, questions=examples.questions(confinements))
