"""Points by whose vectors a tenant queries: examples, found to be the tenant's before the query is sent.

Qdrant takes the vector of a point that a query names by its id without a filter, so scores would tell of another
tenant's vector. So the upstream is asked first, once for each place (a collection, and the shard key of a lookup):
which of these points are the tenant's, and whether one of the ids is another's. The second matters where a collection
has shard keys, and so may have several points with one id, of which Qdrant takes any. One of them that is missing or
another's is answered as Qdrant does for a missing one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import orjson

from tlsproxy.authz.access import Confinements, Decision
from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.point_ids import PointId, point_id_in
from tlsproxy.qdrant.tenant_filters import narrowed

MOST_EXAMPLES: Final = 1000
"""Points of one request, in one place."""
MOST_PLACES: Final = 16

LONGEST_TEXT: Final = 1024
"""Characters of an error of the upstream that are handed on."""
_REFUSALS: Final = frozenset((400, 403, 404, 409, 429, 503, 507))
_TOO_MANY: Final = "A query confined to a tenant has at most {} points as examples, in {} collections"


@dataclass(frozen=True, slots=True)
class Question:
    """Whether these points of a collection are the tenant's. ``body`` is that of a batch of two queries."""

    collection: str
    ids: tuple[PointId, ...]
    body: bytes = field(repr=False)


Place = tuple[str, bytes]
"""A collection, and the shard key of a lookup as JSON."""


def place(collection: str, shard_key: Any) -> Place:
    """``shard_key``: in REST's form, which may be long, or None."""
    return collection, orjson.dumps(shard_key)


class Examples:
    """The examples of one request, as they are found in it."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: dict[Place, dict[PointId, None]] = {}

    def add(self, place: Place, example: PointId) -> None:
        """Raises :class:`BadRequest`."""
        ids = self._places.setdefault(place, {})
        ids[example] = None
        if len(ids) > MOST_EXAMPLES or len(self._places) > MOST_PLACES:
            raise BadRequest(_TOO_MANY.format(MOST_EXAMPLES, MOST_PLACES))

    def questions(self, confinements: Confinements) -> tuple[Question, ...]:
        return tuple(
            Question(collection, tuple(ids), _body(list(ids), orjson.loads(shard_key), confinements))
            for (collection, shard_key), ids in self._places.items()
        )


def _body(ids: list[PointId], shard_key: Any, confinements: Confinements) -> bytes:
    one_of = {"has_id": ids}
    own = narrowed(None, confinements)
    searches: list[dict[str, Any]] = [
        {"filter": {"must": [one_of, own]}, "limit": len(ids)},
        {"filter": {"must": [one_of], "must_not": [own]}, "limit": 1},
    ]
    for search in searches:
        search |= {"with_payload": False, "with_vector": False}
        if shard_key is not None:
            search["shard_key"] = shard_key
    return orjson.dumps({"searches": searches})


def refusal_in(answer: bytes, question: Question) -> Decision | None:
    """The refusal by the upstream's answer; None where all examples are the tenant's. Raises ValueError."""
    match orjson.loads(answer):
        case {"result": [{"points": list(own)}, {"points": list(others)}]}:
            foreign = {point_id_in(point) for point in others}
            found = {point_id_in(point) for point in own} - foreign
            missing = next((one for one in question.ids if one not in found), None)
            return None if missing is None else no_point(missing)
    raise ValueError("no answer to two queries")


def no_point(example: PointId) -> Decision:
    """As Qdrant refuses a query by a point that does not exist."""
    text = f"Not found: No point with id {example} found"
    return _refusal(HTTPStatus.NOT_FOUND, text)


def no_collection(name: str) -> Decision:
    """As Qdrant refuses a collection that does not exist."""
    return _refusal(HTTPStatus.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")


def refusal_by(status: int, answer: bytes) -> Decision:
    """The upstream's own refusal of a question: it would refuse the query too. Raises ValueError for an unusual one."""
    match orjson.loads(answer):
        case {"status": {"error": str(text)}} if status in _REFUSALS:
            return _refusal(status, text[:LONGEST_TEXT])
    raise ValueError("no refusal of Qdrant's")


def _refusal(status: int, text: str) -> Decision:
    return Decision(allowed=False, reason="point_missing", status=status, text=text)
