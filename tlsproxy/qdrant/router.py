"""REST routing: a request → its operation and the collection in its path.

Routes are matched on decoded segments, literals before parameters, as in Qdrant's own router. With another method a
route does not exist, as in Qdrant: the response is 404, never 405, and HEAD is not GET.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.errors import AmbiguousPath, BadRequest
from tlsproxy.memo import Memo
from tlsproxy.qdrant.operations import MAX_NAME_BYTES, OWN, REST, Operation
from tlsproxy.wire.target import RequestTarget, parse_target

MEMO: Final = 1024
MEMO_TARGET: Final = 512
"""A longer target is not remembered: the memo's size in memory is bounded by the product."""
_COLLECTION: Final = "{collection_name}"
_FILES: Final = frozenset({"{snapshot_name}", "{snapshot}"})
"""Parameters that Qdrant joins to the path of a directory."""
_ELSEWHERE: Final = re.compile(r"[/\\].*|(?:.*[/\\])?\.\.?(?:[/\\].*)?", re.DOTALL)
"""A file's name that leads out of its directory, as `..%2Fother%2Fx.snapshot` and `%2Fetc%2Fpasswd` do."""


@dataclass(slots=True, init=False)
class Recognised:
    """A routed request. ``operation`` is None without a row in the table."""

    target: RequestTarget
    operation: Operation | None
    collection: str | None

    def __init__(self, target: RequestTarget, operation: Operation | None, collection: str | None) -> None:
        self.target = target
        self.operation = operation
        self.collection = collection


@dataclass(slots=True)
class _Node:
    """One level of the routes of one method."""

    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    names_collection: bool = False
    names_file: bool = False
    operation: Operation | None = None
    tail: Operation | None = None


def _roots(operations: Iterable[Operation]) -> dict[str, _Node]:
    roots: dict[str, _Node] = {}
    for operation in operations:
        node = roots.setdefault(operation.method, _Node())
        for segment in operation.path.split("/")[1:]:
            if segment == "{tail...}":
                node.tail = operation
            elif segment.startswith("{"):
                node.names_collection |= segment == _COLLECTION
                node.names_file |= segment in _FILES
                node.parameter = node.parameter or _Node()
                node = node.parameter
            elif segment:
                node = node.literals.setdefault(segment, _Node())
        if node.tail is not operation:
            node.operation = operation
    return roots


class Routes:
    """The routes of these operations, and requests as they were routed lately: most are of few methods and targets."""

    __slots__ = ("_known", "_roots")

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._roots = _roots(operations)
        self._known = Memo[tuple[str, str], Recognised](MEMO)

    def recognise(self, method: str, target: str) -> Recognised:
        """As :func:`recognise`."""
        key = method, target
        known = self._known.get(key)
        if known is None:
            known = self._routed(method, target)
            if len(target) <= MEMO_TARGET:
                self._known.remember(key, known)
        return known

    def _routed(self, method: str, target: str) -> Recognised:
        parsed = parse_target(target)
        root = self._roots.get(method)
        found = _match(root, parsed.segments, 0, None) if root is not None else None
        if found is None:
            return Recognised(parsed, None, None)
        operation, collection = found
        if collection is not None and len(collection.encode()) > MAX_NAME_BYTES:
            raise BadRequest(f"A collection name has at most {MAX_NAME_BYTES} bytes")
        return Recognised(parsed, operation, collection)


def _match(
    node: _Node, segments: tuple[str, ...], index: int, collection: str | None
) -> tuple[Operation, str | None] | None:
    """Tries the literal branch, then the parameter's: `/collections/aliases/points` is about a collection `aliases`."""
    if index == len(segments):
        operation = node.operation or node.tail
        return (operation, collection) if operation is not None else None
    segment = segments[index]
    literal = node.literals.get(segment)
    if literal is not None and (found := _match(literal, segments, index + 1, collection)) is not None:
        return found
    if node.parameter is not None:
        if node.names_file:
            _check_file(segment)
        name = segment if node.names_collection else collection
        if (found := _match(node.parameter, segments, index + 1, name)) is not None:
            return found
    if node.tail is None:
        return None
    for segment in segments[index:]:
        _check_file(segment)
    return node.tail, collection


def _check_file(name: str) -> None:
    if _ELSEWHERE.fullmatch(name) is not None:
        raise AmbiguousPath("A file's name leads out of its directory")


_ROUTES: Final = Routes((*REST, *OWN))


def recognise(method: str, target: str) -> Recognised:
    """Routes a request. Raises :class:`BadRequest` for an invalid target or name, :class:`AmbiguousPath` among them."""
    return _ROUTES.recognise(method, target)
