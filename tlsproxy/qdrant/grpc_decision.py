"""A gRPC call, and who sends it → the decision: by its method where that is enough, else by its message too.

The counterpart of :mod:`tlsproxy.qdrant.rest_decision`. A message is scanned as it arrives and is not buffered: a
:class:`CollectionFinder` finds the collections in it. Only if the caller is confined to some of the points is it read
whole, and rewritten.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tlsproxy.authz.access import ALLOWED, UNREAD, Condition, Decision, Grants, Scope
from tlsproxy.authz.admission import Admission
from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.answer_statistics import AnswerReducer
from tlsproxy.qdrant.grpc_listings import listing_of_call
from tlsproxy.qdrant.grpc_nesting import NESTING
from tlsproxy.qdrant.grpc_schema import COLLECTION, INNER, OTHER, REQUESTS, SHAPES
from tlsproxy.qdrant.grpc_tenancy import confined as confined_message
from tlsproxy.qdrant.grpc_tenancy import is_confinable_call
from tlsproxy.qdrant.operations import GRPC, MAX_NAME_BYTES, Operation
from tlsproxy.qdrant.rest_decision import NOT_CONFINED, UNKNOWN_OPERATION, BodyFacts, HeadDecision, decide_all
from tlsproxy.qdrant.rest_tenancy import touches_no_points
from tlsproxy.qdrant.scoring import Facts
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import ProtobufError, Scanner

MAX_NAMES: Final = 1000
"""Different collections in one message."""
NAME_MEMORY: Final = 700
"""Bytes of memory that one of them takes: a text of 255 bytes at most, in a tuple in a dict."""
MAX_FIELDS: Final = 2_000_000
"""Fields in one message that is followed, without those of what is skipped: about a microsecond each."""

_ANY: Final = "*"
_METHODS: Final = {operation.path: operation for operation in GRPC}


def operation_of(path: str) -> Operation | None:
    """By the ``:path`` of a call, which is exactly its method's or nobody's, as in Qdrant."""
    return _METHODS.get(path)


def decide_call(admitted: Admission | Decision, operation: Operation | None) -> HeadDecision:
    """What the method decides. :data:`UNREAD` where the message has a say, which :func:`decide_message` then hears.

    ``operation`` is None for what has no row in the table.
    """
    if operation is not None and operation.requirement.scope is Scope.NONE:
        return HeadDecision(ALLOWED)
    if isinstance(admitted, Decision):
        return HeadDecision(admitted)
    if operation is None:
        return HeadDecision(UNKNOWN_OPERATION)
    rights, confinable = admitted.rights, is_confinable_call(operation)
    listing = listing_of_call(operation, rights)
    shown = AnswerReducer(operation) if confinable and any(one.conditions for one in rights) else listing
    if operation.requirement.scope is Scope.COLLECTION and any(one.limited for one in rights):
        return HeadDecision(UNREAD, shown)  # a refusal too: it names the collection
    decision = decide_all(
        rights,
        operation,
        None,
        reduced=listing is not None,
        confined=confinable or touches_no_points(operation),
    )
    if not decision.allowed:
        return HeadDecision(decision)
    if confinable and any(one.conditions for one in rights):
        return HeadDecision(UNREAD, shown)
    return HeadDecision(ALLOWED, listing)


def decide_at_best(admission: Admission, operation: Operation) -> Decision:
    """As if every grant were for whatever collection the message turns out to name: what this refuses, no message could
    save.
    """
    granted = tuple(
        replace(one, grants=Grants(*(replace(grant, collection=_ANY) for grant in one.grants)))
        for one in admission.rights
    )
    return decide_all(
        granted, operation, _ANY, confined=is_confinable_call(operation) or touches_no_points(operation), reduced=True
    )


class CollectionFinder:
    """Follows one message, which comes in pieces of any size, and finds the collections that it names."""

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
        """Bytes that the names take, at most."""
        return NAME_MEMORY * len(self._scanner.found)

    @property
    def collection(self) -> str | None:
        """The message's own, as soon as that is known: clients write it first."""
        return next((name for kind, name in self._scanner.found if kind == COLLECTION), None)

    def named(self) -> tuple[str, tuple[str, ...]]:
        """The message is whole: (its collection, further ones). Raises :class:`BadRequest`.

        Qdrant goes by a batch's own collection, whatever the requests in it say. One that says otherwise is refused,
        lest another version be of another opinion.
        """
        try:
            self._scanner.close()
        except ProtobufError as error:
            raise _malformed(error) from None
        found = self._scanner.found
        collection, *_ = [name for kind, name in found if kind == COLLECTION]
        if not collection:
            raise BadRequest("Malformed message: no collection is named")
        if len(found) == 1:
            return collection, ()
        if any(kind == INNER and name not in {"", collection} for kind, name in found):
            raise BadRequest("Malformed message: a request of a batch names another collection than the batch")
        others = tuple(name for kind, name in found if kind == OTHER)
        if "" in others:
            raise BadRequest("Malformed message: a lookup names no collection")
        return collection, others


def collection_finder(operation: Operation) -> CollectionFinder:
    """Of an operation on a collection: others have no message that has a say."""
    return CollectionFinder(REQUESTS[operation.path])


def decide_message(
    admission: Admission, operation: Operation, collection: str, named: tuple[str, ...], *, confined: bool
) -> Decision:
    """Decision of method and message together. ``confined``: :func:`confine_message` made what goes upstream."""
    return decide_all(
        admission.rights,
        operation,
        collection,
        named=named,
        reduced=operation.requirement.listing and listing_of_call(operation, admission.rights) is not None,
        confined=confined or touches_no_points(operation),
    )


def decide_call_again(admission: Admission, operation: Operation, body: BodyFacts) -> Decision:
    """Decision of these rights on a call under way, whose message was decided on by other rights."""
    collection, *named = body.named
    confinable = is_confinable_call(operation)
    if confinable and not body.suits(admission.conditions):
        return NOT_CONFINED
    return decide_message(admission, operation, collection, tuple(named), confined=confinable)


def confine_message(
    operation: Operation, message: bytes, conditions: tuple[Condition, ...], facts: Facts | None = None
) -> Steps[bytes]:
    """The message to send in place of this whole one, in which a :class:`CollectionFinder` found the collections.

    Raises :class:`BadRequest`, :class:`Unconfined`, and :class:`FactsNeeded` where those of its collection have a say.
    """
    try:
        return (yield from confined_message(operation, message, conditions, facts))
    except ProtobufError as error:
        raise _malformed(error) from None


def _malformed(error: ProtobufError) -> BadRequest:
    return BadRequest(f"Malformed message: {error}")
