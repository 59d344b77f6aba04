"""The decision on a gRPC call: by its method where that is enough, else by its message too.

The counterpart of :mod:`tlsproxy.qdrant.rest_decision`. A message is scanned as it arrives and is not buffered: a
:class:`CollectionFinder` finds the collections in it. Only if the caller is confined to some of the points is it read
whole, and rewritten; or if a query policy concerns it.
"""

from __future__ import annotations

from typing import Final

from tlsproxy.authz.access import ALLOWED, ANY_COLLECTION, NO_NAMES, UNREAD, BodyNames, Confinements, Decision, Scope
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.query_policy import QueryPolicy
from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.answer_statistics import AnswerReducer
from tlsproxy.qdrant.composed_reducer import composed
from tlsproxy.qdrant.descriptions import DescriptionReducer, is_described
from tlsproxy.qdrant.grpc_answers import stripper_of
from tlsproxy.qdrant.grpc_listings import listing_of_call
from tlsproxy.qdrant.grpc_nesting import NESTING
from tlsproxy.qdrant.grpc_query_policy import is_possible_under, policy_of_message, under_policy
from tlsproxy.qdrant.grpc_schema import CHANGED, COLLECTION, INNER, OTHER, REQUESTS, SHAPES
from tlsproxy.qdrant.grpc_tenancy import ConfinedMessage, is_confinable_call
from tlsproxy.qdrant.grpc_tenancy import confined as confined_message
from tlsproxy.qdrant.operations import BATCHED, GRPC, MAX_NAME_BYTES, Operation
from tlsproxy.qdrant.rest_decision import (
    BEYOND_POLICY,
    NOT_CONFINED,
    UNDER_POLICY,
    UNKNOWN_OPERATION,
    BodyFacts,
    HeadDecision,
    at_best,
    decide_all,
    needs_names,
)
from tlsproxy.qdrant.rest_listings import Reducer
from tlsproxy.qdrant.rest_tenancy import touches_no_points
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import ProtobufError, Scanner

MAX_NAMES: Final = 1000
"""Different collections in one message."""
NAME_MEMORY: Final = 700
"""Bytes of memory per name: a string of at most 255 bytes, in a tuple in a dict."""
MAX_FIELDS: Final = 2_000_000
"""Fields that are scanned in one message, without those within skipped fields: about a microsecond each."""

_METHODS: Final = {operation.path: operation for operation in GRPC}


def operation_of(path: str) -> Operation | None:
    """The operation of a ``:path``, which must be exactly the method's, as in Qdrant."""
    return _METHODS.get(path)


def decide_call(admitted: Admission | Decision, operation: Operation | None) -> HeadDecision:
    """Decides by the method; :data:`UNREAD` where the decision depends on the message (:func:`decide_message`).

    ``operation`` is None for a method without a row in the table.
    """
    if operation is not None and operation.requirement.scope is Scope.NONE:
        return HeadDecision(ALLOWED)
    if isinstance(admitted, Decision):
        return HeadDecision(admitted)
    if operation is None:
        return HeadDecision(UNKNOWN_OPERATION)
    rights, confinable, queries = admitted.rights, is_confinable_call(operation), admitted.queries
    confined = confinable and bool(admitted.confinements)
    listing = listing_of_call(operation, rights)
    statistics: Reducer | None = AnswerReducer(operation) if confined else None
    if admitted.confinements and is_described(operation):
        statistics = DescriptionReducer()
    shown = composed(listing, statistics, stripper_of(operation, queries))
    possible = is_possible_under(queries, operation)
    limited = any(one.limited for one in rights)
    if limited and operation.requirement.grantable:
        best = decide_at_best(admitted, operation)
        if best.allowed and operation.names_changed and not possible:
            return HeadDecision(UNDER_POLICY)
        return HeadDecision(UNREAD if best.allowed else best)
    if limited and operation.requirement.scope is Scope.COLLECTION:
        return HeadDecision(UNREAD, shown)  # refusals by rights or policy too: they name the collection
    decision = decide_all(
        rights,
        operation,
        None,
        reduced=listing is not None,
        confined=confinable or touches_no_points(operation),
    )
    if not decision.allowed:
        return HeadDecision(decision)
    if not possible:
        return HeadDecision(UNDER_POLICY)
    read = needs_names(rights, operation) or confined or bool(policy_of_message(queries, operation))
    return HeadDecision(UNREAD if read else ALLOWED, shown)


def decide_at_best(admission: Admission, operation: Operation) -> Decision:
    """Decides as if every grant were for the collection that the message will name: a refusal holds for any message."""
    rights, names = at_best(admission.rights)
    return decide_all(
        rights,
        operation,
        None if operation.names_changed else ANY_COLLECTION,
        names=names,
        confined=is_confinable_call(operation) or touches_no_points(operation),
        reduced=True,
    )


class CollectionFinder:
    """Finds the collections that one message names; the message is fed in pieces of any size."""

    __slots__ = ("_scanner",)

    def __init__(self, message: str) -> None:
        self._scanner = Scanner(
            SHAPES, message, longest=MAX_NAME_BYTES, names=MAX_NAMES, fields=MAX_FIELDS, nesting=NESTING
        )

    def feed(self, data: bytes) -> None:
        """Raises :class:`BadRequest`."""
        try:
            self._scanner.feed(data)
        except ProtobufError as error:
            raise _malformed(error) from None

    @property
    def memory(self) -> int:
        """Most bytes that the names take."""
        return NAME_MEMORY * len(self._scanner.found)

    @property
    def collection(self) -> str | None:
        """The message's own collection, as soon as it has come: clients write it first."""
        return next((name for kind, name in self._scanner.found if kind == COLLECTION), None)

    def named(self) -> tuple[str | None, BodyNames]:
        """(the collection, all other names) of the message, which is complete. Raises :class:`BadRequest`.

        Actions on aliases are about no single collection.

        Qdrant uses a batch's own collection and ignores those of its requests. A batch in which they differ is refused,
        since another release may use them.
        """
        try:
            self._scanner.close()
        except ProtobufError as error:
            raise _malformed(error) from None
        found = self._scanner.found
        collection = self.collection
        if collection == "":
            raise BadRequest("Malformed message: no collection is named")
        if collection is not None and len(found) == 1:
            return collection, NO_NAMES
        if any(kind == INNER and name not in {"", collection} for kind, name in found):
            raise BadRequest("Malformed message: a request of a batch names another collection than the batch")
        others = tuple(name for kind, name in found if kind == OTHER)
        if "" in others:
            raise BadRequest("Malformed message: a lookup names no collection")
        changed = tuple(name for kind, name in found if kind == CHANGED)
        if "" in changed:
            raise BadRequest("Malformed message: an action lacks a name")
        batched = tuple(kind for kind, _ in found if kind in BATCHED)
        return collection, BodyNames(read=others, change=changed, operations=batched)


def collection_finder(operation: Operation) -> CollectionFinder:
    """The finder for an operation on a collection or on aliases; no other decision depends on the message."""
    return CollectionFinder(REQUESTS[operation.path])


def decide_message(
    admission: Admission, operation: Operation, collection: str | None, names: BodyNames, *, confined: bool
) -> Decision:
    """Decides by method and message together: by rights, then by the query policy, as REST does.

    ``confined``: the message was rewritten by :func:`confine_message`.
    """
    decision = decide_all(
        admission.rights,
        operation,
        collection,
        names=names,
        reduced=operation.requirement.listing and listing_of_call(operation, admission.rights) is not None,
        confined=confined or touches_no_points(operation),
    )
    return decision if not decision.allowed or is_possible_under(admission.queries, operation) else UNDER_POLICY


def decide_call_again(admission: Admission, operation: Operation, body: BodyFacts) -> Decision:
    """Decides with present rights on a call in progress, whose message was decided on with earlier ones."""
    confinable = is_confinable_call(operation)
    if confinable and not body.suits(admission.confinements):
        return NOT_CONFINED
    if not body.queries.meets(policy_of_message(admission.queries, operation)):
        return BEYOND_POLICY
    return decide_message(admission, operation, body.collection, body.names, confined=confinable)


def message_under_policy(operation: Operation, message: bytes, queries: QueryPolicy) -> Steps[bytes]:
    """The message to send instead of this whole one under a query policy: itself where there is none.

    Raises :class:`BadRequest`, :class:`PolicyRefused`.
    """
    if not queries:
        return message
    try:
        return (yield from under_policy(operation, message, queries))
    except ProtobufError as error:
        raise _malformed(error) from None


def confine_message(
    operation: Operation, collection: str, message: bytes, confinements: Confinements, facts: Facts | None = None
) -> Steps[ConfinedMessage]:
    """Confines this whole message about a collection.

    Raises :class:`BadRequest`, :class:`Unconfined`, and :class:`FactsNeeded` where it depends on the facts.
    """
    try:
        return (yield from confined_message(operation, collection, message, confinements, facts))
    except ProtobufError as error:
        raise _malformed(error) from None


def _malformed(error: ProtobufError) -> BadRequest:
    return BadRequest(f"Malformed message: {error}")
