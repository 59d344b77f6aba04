"""Retrieval of points by their ids, as a scroll that is confined to the caller's points, and its answer as retrieval's.

Qdrant's retrieval takes no filter, so a confined one goes upstream as a scroll: in one request, so that no point
changes hands between a question and its answer. Retrieval answers in the order of the ids, with each point once, and
without payloads where there is no selector of them (but with everything for one point by a GET).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tlsproxy.authz.access import Confinements
from tlsproxy.errors import BadRequest, PointMissing
from tlsproxy.qdrant.point_ids import PointId, point_id_in, point_id_in_path
from tlsproxy.qdrant.rest_collections import expect_object
from tlsproxy.qdrant.rest_tenant_changes import point_ids
from tlsproxy.qdrant.tenant_filters import narrowed
from tlsproxy.wire.cooperative import Pace, Steps

STEP: Final = 1000
"""Points per step, at a few microseconds each."""
IDS_AT_ONCE: Final = 10_000
"""Ids per step, compared in C."""
ID_MEMORY: Final = 100
"""Bytes of an id: a UUID's text, and its place in a tuple."""
_KEPT: Final = ("with_payload", "with_vector", "with_vectors", "shard_key")
"""Members of the request that a scroll has too; it has others that a retrieval ignores."""

NO_ID: Final = 'Wrong input: Can not recognize "{}" as point id'
MISSING: Final = "Not found: Point with id {} does not exists!"


@dataclass(frozen=True, slots=True)
class RetrievedPoints:
    """Makes the result of a scroll that of a retrieval of these ids."""

    ids: tuple[PointId, ...]

    @property
    def memory(self) -> int:
        """Bytes that the ids take."""
        return ID_MEMORY * len(self.ids)

    def __call__(self, result: Any) -> Steps[list[Any]]:
        """Raises ValueError if it is no result of a scroll."""
        found = {}
        for count, point in enumerate(_points(result), start=1):
            if not count % STEP:
                yield None
            found[point_id_in(point)] = point
        return [found.pop(one) for one in self.ids if one in found]


@dataclass(frozen=True, slots=True)
class RetrievedPoint:
    """Makes the result of a scroll that of a retrieval of one point."""

    id: PointId

    def __call__(self, result: Any) -> Steps[Any]:
        """Raises ValueError as above, and :class:`PointMissing`."""
        yield None
        for point in _points(result):
            if point_id_in(point) == self.id:
                return point
        raise PointMissing(MISSING.format(self.id))


def _points(result: Any) -> list[Any]:
    points = result.get("points") if isinstance(result, dict) else None
    if not isinstance(points, list):
        raise ValueError("not the result of a scroll")  # noqa: TRY004 - wrong as a whole
    return points


def scroll_of(body: Any, confinements: Confinements) -> Steps[tuple[dict[str, Any], RetrievedPoints]]:
    """The scroll in place of a retrieval, and what makes its answer one. Raises :class:`BadRequest`."""
    asked = expect_object(body, "the body")
    ids, found = (yield from point_ids(asked.get("ids"), "ids", Pace())), dict[PointId, None]()
    for begin in range(0, len(ids), IDS_AT_ONCE):
        found.update(dict.fromkeys(ids[begin : begin + IDS_AT_ONCE]))
        yield None
    scroll: dict[str, Any] = {name: asked[name] for name in _KEPT if name in asked}
    if scroll.get("with_payload") is None:
        scroll["with_payload"] = False
    return _confined(scroll, list(found), confinements), RetrievedPoints(tuple(found))


def scroll_of_one(segment: str, confinements: Confinements) -> tuple[dict[str, Any], RetrievedPoint]:
    """The same for the id in a path. Raises :class:`BadRequest`."""
    found = point_id_in_path(segment)
    if found is None:
        raise BadRequest(NO_ID.format(segment))
    scroll: dict[str, Any] = {"with_payload": True, "with_vector": True}
    return _confined(scroll, [found], confinements), RetrievedPoint(found)


def _confined(scroll: dict[str, Any], ids: list[PointId], confinements: Confinements) -> dict[str, Any]:
    """A scroll of at least one point, since one of none is an error."""
    return scroll | {"filter": narrowed({"has_id": ids}, confinements), "limit": max(1, len(ids))}
