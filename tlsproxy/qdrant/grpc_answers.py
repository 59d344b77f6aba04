"""Answers over gRPC without the payload keys and vectors that a query policy hides.

A table of the messages of answers that have points, or name payload keys. A field without a row is removed, so that a
newer Qdrant shows too little rather than too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tlsproxy.authz.query_policy import KeyTree, QueryPolicy, parse_key_path
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.query_policy import Treatment, treatment
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import Field, delimited, entry, fields, known_fields

STEP: Final = 1000
"""Fields per step, at some microseconds each."""
GLANCE: Final = 4096
"""Bytes of a point that is looked at in one step."""
COPIES: Final = 4
"""Copies of an answer in memory: as it is read, one point of it, its parts, and what they make."""
MAX_NESTING: Final = 128
"""Most lists and objects of a payload within each other, as Qdrant takes."""


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """The fields of one message, by their numbers: those ``kept`` as they are, messages ``within`` by their names,
    entries of a ``payload``, ``vectors``, and entries of a ``schema`` by payload paths.
    """

    kept: frozenset[int] = frozenset()
    within: Mapping[int, str] = field(default_factory=dict)
    payload: int = 0
    vectors: int = 0
    schema: int = 0
    of_point: frozenset[int] = field(init=False)
    """All of them, if it is a point."""
    of_bare_point: frozenset[int] = field(init=False)
    """But for the vectors."""

    def __post_init__(self) -> None:
        bare = self.kept | {self.payload} if self.payload else frozenset[int]()
        object.__setattr__(self, "of_bare_point", bare)
        object.__setattr__(self, "of_point", bare | {self.vectors} if self.payload else bare)


PARTS: Final = {
    "RetrievedPoint": AnswerPart(frozenset({1, 5, 6}), payload=2, vectors=4),
    "ScoredPoint": AnswerPart(frozenset({1, 3, 5, 7, 8}), payload=2, vectors=6),
    "BatchResult": AnswerPart(within={1: "ScoredPoint"}),
    "GroupsResult": AnswerPart(within={1: "PointGroup"}),
    "PointGroup": AnswerPart(frozenset({1}), within={2: "ScoredPoint", 3: "RetrievedPoint"}),
    "CollectionInfo": AnswerPart(frozenset({1, 2, 3, 4, 7, *range(9, 14)}), schema=8),
}
"""By the message's name in Qdrant's .proto files."""


def _answer(result: str) -> AnswerPart:
    """A result, and the time: without the usage (3), which is of all that was read."""
    return AnswerPart(frozenset({2}), within={1: result})


ANSWERS: Final = {
    f"/qdrant.Points/{method}": answer
    for answer, methods in (
        (_answer("RetrievedPoint"), ("Get",)),
        (AnswerPart(frozenset({1, 3}), within={2: "RetrievedPoint"}), ("Scroll",)),
        (_answer("ScoredPoint"), ("Search", "Query", "Recommend", "Discover")),
        (_answer("BatchResult"), ("SearchBatch", "QueryBatch", "RecommendBatch", "DiscoverBatch")),
        (_answer("GroupsResult"), ("SearchGroups", "QueryGroups", "RecommendGroups")),
    )
    for method in methods
} | {"/qdrant.Collections/Get": AnswerPart(frozenset({2}), within={1: "CollectionInfo"})}
"""The answers that have points or payload keys, by the method's path."""

_SHOWN: Final[KeyTree] = {}
"""The keys below one that nothing hidden is below."""
_SCALARS: Final = frozenset(range(1, 6))
_STRUCT: Final = 6
_LIST: Final = 7
"""Fields of Value."""


@dataclass(frozen=True, slots=True)
class PointStripper:
    """Removes whatever the policy hides from one method's answer. Errors pass."""

    operation: Operation
    policy: QueryPolicy

    @property
    def hides_errors(self) -> bool:
        return False

    def reducing(self, body: Content) -> Steps[bytes]:
        """``body`` is one message. Raises ValueError if it is malformed, or nests too deeply."""
        yield COPIES * len(body)
        message = bytes(body)
        return (yield from _Stripping(self.policy, message).stripped(ANSWERS[self.operation.path], message))


def stripper_of(operation: Operation, policy: QueryPolicy) -> PointStripper | None:
    """The stripper for the answers of an operation; None where there is nothing to take out."""
    stripped = treatment(operation, policy) is Treatment.STRIPPED and operation.path in ANSWERS
    return PointStripper(operation, policy) if stripped else None


class _Deeper:
    """An entry of a payload or an object, below whose ``key`` some keys are hidden."""

    __slots__ = ("hidden", "key", "value")

    def __init__(self, key: bytes, value: bytes, hidden: KeyTree) -> None:
        self.key = key
        self.value = value
        self.hidden = hidden


def _entry(one: Field, tree: KeyTree) -> bytes | _Deeper:
    """An entry as it is shown: nothing where its key is hidden. One with a key or a value twice is hidden too: readers
    differ in which one counts.
    """
    content = one.content()
    key, value = entry(content) or _unusual_entry(content)
    if key is None:
        return b""
    hidden = tree.get(key.decode(), _SHOWN)
    if hidden is _SHOWN:
        return one.raw
    return b"" if hidden is None else _Deeper(key, value, hidden)


def _unusual_entry(content: bytes) -> tuple[bytes | None, bytes]:
    """Key and value, which are empty where they are absent; no key where one of them is there twice."""
    found = [(part.number, part.content()) for part in fields(content)]
    contents = dict(found)
    if len(contents) < len(found) or contents.keys() - {1, 2}:
        return None, b""
    return contents.get(1, b""), contents.get(2, b"")


class _Stripping:
    """One answer's stripping."""

    def __init__(self, policy: QueryPolicy, message: bytes) -> None:
        self._policy = policy
        self._read = 0
        self._next_step = STEP
        self._has_none = not any(key.encode() in message for key in policy.hidden.tree)
        """Whether no hidden key can be in it, nor one that they are below.

        A key stands in a message as its UTF-8, in one piece and without escapes, at any depth. Of JSON, where
        `\\u0073alary` is `salary`, bytes say no such thing: those answers are always parsed.
        """

    def _is_step(self, fields_read: int = 1) -> bool:
        self._read += fields_read
        if self._read < self._next_step:
            return False
        self._next_step = self._read + STEP
        return True

    def _unchanged(self, part: AnswerPart, content: bytes) -> int:
        """The number of fields of a point that is shown as it is; 0 where that is not certain at a glance."""
        if not self._has_none or len(content) > GLANCE:
            return 0
        return known_fields(content, part.of_bare_point if self._policy.hides_vectors else part.of_point)

    def stripped(self, part: AnswerPart, content: bytes) -> Steps[bytes]:
        shown: list[bytes] = []
        tree = self._policy.hidden.tree
        for one in fields(content):
            if self._is_step():
                yield None
            if one.number == part.payload:
                found = _entry(one, tree)
                shown.append(found if isinstance(found, bytes) else (yield from self._deeper(one.number, found, 0)))
            elif one.number in part.within:
                within = PARTS[part.within[one.number]]
                if fields_read := self._unchanged(within, one.content()):
                    shown.append(one.raw)
                    if self._is_step(fields_read):
                        yield None
                else:
                    shown.append(delimited(one.number, (yield from self.stripped(within, one.content()))))
            elif one.number == part.schema:
                shown += self._index(one)
            elif one.number in part.kept or (one.number == part.vectors and not self._policy.hides_vectors):
                shown.append(one.raw)
        return b"".join(shown)

    def _index(self, one: Field) -> list[bytes]:
        """An entry of a schema, or nothing."""
        keys = [part.content().decode() for part in fields(one.content()) if part.number == 1]
        try:
            hidden = any(self._policy.hidden.cover(parse_key_path(key)) for key in keys)
        except ValueError:
            return []
        return [] if hidden else [one.raw]

    def _deeper(self, number: int, found: _Deeper, depth: int) -> Steps[bytes]:
        """The entry without what is hidden below its key."""
        value = yield from self._value(found.value, found.hidden, depth + 1)
        return delimited(number, delimited(1, found.key) + delimited(2, value))

    def _value(self, content: bytes, tree: KeyTree, depth: int) -> Steps[bytes]:
        """A Value without the keys of the tree. A list has no key of its own: those of its objects count."""
        if depth > MAX_NESTING:
            raise ValueError("a payload is nested too deeply")
        shown = []
        for one in fields(content):
            if one.number in {_STRUCT, _LIST}:
                within = yield from self._items(one, tree, depth)
                shown.append(delimited(one.number, within))
            elif one.number in _SCALARS:
                shown.append(one.raw)
        return b"".join(shown)

    def _items(self, composite: Field, tree: KeyTree, depth: int) -> Steps[bytes]:
        """A Struct or a ListValue: entries or values in field 1."""
        shown: list[bytes] = []
        for one in fields(composite.content()):
            if self._is_step():
                yield None
            if one.number == 1 and composite.number == _STRUCT:
                found = _entry(one, tree)
                shown.append(found if isinstance(found, bytes) else (yield from self._deeper(1, found, depth)))
            elif one.number == 1:
                shown.append(delimited(1, (yield from self._value(one.content(), tree, depth + 1))))
        return b"".join(shown)
