"""Retrieval of points by their ids, as a scroll that is confined to the caller's points, and its answer as retrieval's.

Qdrant's `Get` takes no filter, so a confined one goes upstream as `Scroll`: in one message, so that no point changes
hands between a question and its answer. `Get` answers in the order of the ids, with each point once, and without
payloads where there is no selector of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from tlsproxy.authz.access import Confinements
from tlsproxy.qdrant.grpc_conditions import narrowed
from tlsproxy.qdrant.grpc_rewrite import STEP, Reading
from tlsproxy.qdrant.point_ids import PointId, canonical_uuid
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.grpc import PREFIX
from tlsproxy.wire.protobuf import Field, ProtobufError, delimited, fields, integer

_IDS: Final = 2
_WITH_PAYLOAD: Final = 4
"""Fields of GetPoints."""
_ASKED: Final = {1: 1, 4: 6, 5: 7, 6: 8, 7: 9, 8: 11}
"""Fields of GetPoints → those of ScrollPoints, but for the ids."""
_FILTER: Final = 2
_LIMIT: Final = 4
_NO_PAYLOAD: Final = delimited(6, b"\x08\x00")
"""Further fields of ScrollPoints."""
_ANSWERED: Final = {3: 2, 4: 3}
"""Fields of ScrollResponse → those of GetResponse, but for the points: there is no next page."""
_SCROLLED: Final = 2
_RETRIEVED: Final = 1
"""The points in both."""
_ID: Final = 1
"""A field of RetrievedPoint."""
_ANSWER_MEMORY: Final = 3
"""Copies of an answer in memory: its points, those in order, and both as one."""


def point_id(content: bytes) -> PointId:
    """The id in a PointId. Raises :class:`ProtobufError`."""
    found = list(islice(fields(content), 2))
    if [one.number for one in found] == [1]:
        return found[0].integer()
    if [one.number for one in found] != [2]:
        raise ProtobufError("a point's id is a number or a UUID")
    canonical = canonical_uuid(found[0].content().decode(errors="replace"))
    if canonical is None:
        raise ProtobufError("a point's id is not a UUID")
    return canonical


def scrolled(content: bytes, confinements: Confinements, reading: Reading) -> Steps[bytes]:
    """ScrollPoints in place of GetPoints. Raises :class:`ProtobufError`."""
    ids: set[PointId] = set()
    encoded = bytearray()
    seen: set[int] = set()

    def take(one: Field) -> bytes:
        seen.add(one.number)
        if one.number != _IDS:
            return one.tagged(_ASKED[one.number])
        if (found := point_id(one.content())) not in ids:
            ids.add(found)
            encoded.extend(delimited(1, one.content()))
        return b""

    def added() -> Steps[bytes]:
        yield from ()
        filtered = delimited(_FILTER, narrowed(b"", confinements, ids=bytes(encoded)))
        limited = integer(_LIMIT, max(1, len(ids)))  # a scroll of none is an error
        return filtered + limited + (b"" if _WITH_PAYLOAD in seen else _NO_PAYLOAD)

    return (yield from reading.rewritten("GetPoints", content, take, added))


@dataclass(frozen=True, slots=True)
class RetrievedPoints:
    """Makes a GetResponse of the ScrollResponse to ``scroll``, a message of :func:`scrolled` with gRPC's prefix."""

    scroll: bytes = field(repr=False)

    @property
    def hides_errors(self) -> bool:
        return False

    def reducing(self, body: Content) -> Steps[bytes]:
        """Raises ValueError for a malformed one."""
        yield _ANSWER_MEMORY * len(body) + len(self.scroll)
        points: dict[PointId, bytes] = {}
        others: list[bytes] = []
        for count, one in enumerate(fields(bytes(body)), start=1):
            if not count % STEP:
                yield None
            if one.number == _SCROLLED:
                points[point_id(_first(_ID, one.content()))] = one.tagged(_RETRIEVED)
            elif one.number in _ANSWERED:
                others.append(one.tagged(_ANSWERED[one.number]))
        ordered: list[bytes] = []
        for count, one in enumerate(fields(_ids_of(self.scroll[PREFIX:])), start=1):
            if not count % STEP:
                yield None
            ordered.append(points.pop(point_id(one.content()), b""))
        return b"".join([*ordered, *others])


def _ids_of(scroll: bytes) -> bytes:
    """The ids in the first condition of a filter that :func:`scrolled` made."""
    return _first(3, _first(2, _first(_FILTER, scroll)))


def _first(number: int, message: bytes) -> bytes:
    """The content of the first such field of a message. Raises :class:`ProtobufError`."""
    for one in fields(message):
        if one.number == number:
            return one.content()
    raise ProtobufError(f"field {number} is missing")
