"""Rewrites a gRPC message under a query policy, or refuses it.

The rules are those of :mod:`tlsproxy.qdrant.rest_query_policy`, for the message of the method that corresponds to a
route. Without a ``with_payload`` a gRPC method returns none, but for a scroll and a lookup, which return all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from tlsproxy.authz.query_policy import NO_POLICY, HiddenKeys, KeyPath, QueryPolicy, spelled
from tlsproxy.errors import BadRequest, PolicyRefused
from tlsproxy.qdrant.grpc_answers import ANSWERS
from tlsproxy.qdrant.grpc_payload_keys import check_exact, check_path, checking, checking_payload, entry_of, key_path
from tlsproxy.qdrant.grpc_rewrite import MAX_FIELDS, Reading
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.query_policy import (
    DEFAULT_GROUP_SIZE,
    DEFAULT_LIMIT,
    DEFAULT_PER_SAMPLE,
    NOT_UNDER_POLICY,
    Treatment,
    check_key,
    check_limit,
    concerning,
    treatment,
)
from tlsproxy.wire.cooperative import Pace, Steps
from tlsproxy.wire.protobuf import Field, delimited, integer


class PolicyState:
    """The state of rewriting one message. ``prefetches``: of the query that is being read, nested ones included."""

    __slots__ = ("policy", "prefetches", "reading")

    def __init__(self, policy: QueryPolicy, reading: Reading) -> None:
        self.policy = policy
        self.reading = reading
        self.prefetches = 0


Within = Callable[[bytes, PolicyState], Steps[bytes]]


@dataclass(frozen=True, slots=True)
class Number:
    """A field with a number, and what Qdrant takes where it is absent; 0 where it must be there."""

    field: int = 0
    default: int = 0


_NONE: Final = Number()
NOT_OF_A_BATCH: Final = "An operation of this batch is not available under your role's query policy"
_KEY: Final = 5
"""Cost of a payload key, in units of work."""
_TEXT: Final = 12
"""Field of Query: a query by the text index of a payload key (since Qdrant 1.20)."""


class _Found:
    """``numbers``: of a message's fields that are looked at. ``entries``: keys of its payload, ``below`` a path."""

    __slots__ = ("below", "each", "entries", "ids", "limit", "numbers", "query", "using")

    def __init__(self) -> None:
        self.numbers: set[int] = set()
        self.limit: int | None = None
        self.each: int | None = None
        self.ids = 0
        self.entries: list[str] = []
        self.below: KeyPath = ()
        self.query = self.using = b""


@dataclass(frozen=True, slots=True)
class Row:
    """How one message is rewritten. The members are numbers of its fields.

    ``limit``: of points, groups or values; ``each``: a number that it is multiplied by. ``ids``: a repeated field that
    counts as a limit. ``exact``: a flag, which is true by default where it is ``counted`` by. ``payload`` and
    ``vectors``: selectors; ``shows``: without one, the payload is returned. ``within``: requests within, ``checked``:
    other messages in which keys or flags may stand, by their names. ``keys``: payload paths. ``entries``: a payload to
    set, ``below`` a path; ``written``: one of a point. ``using``: a vector's name, or a payload path where the
    ``query`` is by text.
    """

    message: str
    limit: Number = _NONE
    each: Number = _NONE
    ids: int = 0
    offset: int = 0
    timeout: int = 0
    exact: int = 0
    counted: bool = False
    payload: int = 0
    shows: bool = False
    vectors: int = 0
    within: Mapping[int, Within] = field(default_factory=dict)
    checked: Mapping[int, str] = field(default_factory=dict)
    keys: frozenset[int] = frozenset()
    entries: int = 0
    below: int = 0
    written: int = 0
    query: int = 0
    using: int = 0
    looked_at: frozenset[int] = field(init=False)
    """Others are kept as they are, and most are of these."""

    def __post_init__(self) -> None:
        single = (self.limit.field, self.each.field, self.ids, self.offset, self.timeout, self.exact, self.payload)
        more = (self.vectors, self.entries, self.below, self.written, self.query, self.using)
        object.__setattr__(self, "looked_at", frozenset((*single, *more, *self.within, *self.checked, *self.keys)))

    def rewritten(self, content: bytes, state: PolicyState) -> Steps[bytes]:
        """The new message. Raises :class:`PolicyRefused`, :class:`BadRequest`, :class:`ProtobufError`."""
        found = _Found()
        return (
            yield from state.reading.rewritten(
                self.message,
                content,
                lambda one: self._take(one, found, state),
                lambda: self._added(found, state),
            )
        )

    def _take(self, one: Field, found: _Found, state: PolicyState) -> bytes | Steps[bytes]:
        """The field's replacement; nothing for a selector of hidden vectors."""
        number, policy = one.number, state.policy
        if number not in self.looked_at:
            return one.raw
        found.numbers.add(number)
        if number in self.within:
            return self._nested(one, state)
        if number == self.query:
            found.query = one.content()
        if number in self.checked:
            return _kept(one, checking(self.checked[number], one.content(), policy, state.reading))
        if number == self.written:
            return _kept(one, checking_payload(one.content(), policy, state.reading))
        if number == self.payload and policy.hidden:
            return _payload_selector(one, state)
        if number == self.vectors and policy.hides_vectors:
            return b""
        self._take_key(one, found, state)
        self._take_number(one, found, policy)
        return one.raw

    def _take_key(self, one: Field, found: _Found, state: PolicyState) -> None:
        if one.number == self.entries:
            found.entries.append(entry_of(one.content(), state.reading)[0])
        elif one.number == self.below and state.policy.hidden:
            found.below = key_path(one.content())
            check_key(found.below, state.policy)
        elif one.number == self.using:
            found.using = one.content()
        elif one.number in self.keys:
            check_path(one.content(), (), state.policy)

    def _take_number(self, one: Field, found: _Found, policy: QueryPolicy) -> None:
        if one.number == self.limit.field:
            found.limit = one.integer()
        elif one.number == self.each.field:
            found.each = one.integer()
        elif one.number == self.ids:
            found.ids += 1
        elif one.number == self.offset:
            check_limit(one.integer(), policy.max_offset, "offset")
        elif one.number == self.timeout:
            if policy.timeout is not None and not one.integer():
                raise BadRequest("Malformed message: timeout must be one whole number of seconds")
            check_limit(one.integer(), policy.timeout, "timeout")
        elif one.number == self.exact:
            check_exact(one, policy)

    def _nested(self, one: Field, state: PolicyState) -> Steps[bytes]:
        return delimited(one.number, (yield from self.within[one.number](one.content(), state)))

    def _added(self, found: _Found, state: PolicyState) -> Steps[bytes]:
        policy, pace = state.policy, Pace()
        for key in found.entries:
            if pace.is_step(_KEY):
                yield None
            check_key((*found.below, key), policy)
        if found.using and any(one.number == _TEXT for one in state.reading.fields_of("Query", found.query)):
            check_path(found.using, (), policy)
        return self._defaults(found, policy)

    def _defaults(self, found: _Found, policy: QueryPolicy) -> bytes:
        """Fields in place of absent ones. Raises :class:`PolicyRefused` for too many ids, or too high a limit."""
        added = b""
        if policy.max_limit is not None:
            check_limit(found.ids, policy.max_limit, "ids")
            added = self._limits(found, policy.max_limit)
        if self.timeout and self.timeout not in found.numbers and policy.timeout is not None:
            added += integer(self.timeout, policy.timeout)
        if self.counted and self.exact not in found.numbers and policy.forbids_exact:
            added += integer(self.exact, 0)
        if self.payload and self.shows and self.payload not in found.numbers and policy.hidden:
            added += delimited(self.payload, _all_but_hidden(policy))
        if self.vectors and policy.hides_vectors:
            added += delimited(self.vectors, integer(1, 0))
        return added

    def _limits(self, found: _Found, bound: int) -> bytes:
        """Checks the limit, and writes what is absent: what Qdrant would take, or as much as there may be."""
        if not self.limit.field:
            return b""
        limit, each = limits(found.limit, found.each, self.limit.default, self.each.default, bound)
        added = b""
        if found.limit is None and self.limit.default:
            added = integer(self.limit.field, limit)
        if found.each is None and self.each.default:
            added += integer(self.each.field, each)
        return added


def limits(limit: int | None, each: int | None, default: int, default_each: int, bound: int) -> tuple[int, int]:
    """Both with the absent ones put in. Raises :class:`PolicyRefused` where their product is above the bound."""
    if each is None:
        each = max(1, min(default_each, bound if limit is None else bound // max(limit, 1)))
    if limit is None:
        limit = min(default, max(1, bound // max(each, 1)))
    check_limit(limit * max(1, each), bound, "limit")
    return limit, each


# Contents of fields


def _kept(one: Field, checking: Steps[None]) -> Steps[bytes]:
    yield from checking
    return one.raw


_ENABLE: Final = 1
_INCLUDE: Final = 2
_EXCLUDE: Final = 3
"""Fields of WithPayloadSelector."""


def _payload_selector(one: Field, state: PolicyState) -> Steps[bytes]:
    return delimited(one.number, (yield from _selection(one.content(), state)))


def _selection(content: bytes, state: PolicyState) -> Steps[bytes]:
    """WithPayloadSelector without the hidden keys. An empty one is left to Qdrant, which refuses it."""
    if not content:
        return content
    chosen = state.reading.alone("WithPayloadSelector", content)
    if chosen is None:
        raise BadRequest("Malformed message: a payload selector is one of three")
    policy = state.policy
    if chosen.number == _ENABLE:
        return _all_but_hidden(policy) if chosen.integer() else content
    if chosen.number == _EXCLUDE:
        return delimited(_EXCLUDE, chosen.content() + _hidden_paths(policy.hidden))
    included = bytearray()
    for path in state.reading.fields_of("PayloadIncludeSelector", chosen.content()):
        if state.reading.is_step():
            yield state.reading.memory
        if not policy.hidden.cover(key_path(path.content())):
            included += path.raw
    return delimited(_INCLUDE, included)


def _all_but_hidden(policy: QueryPolicy) -> bytes:
    return delimited(_EXCLUDE, _hidden_paths(policy.hidden))


@lru_cache(maxsize=64)
def _hidden_paths(hidden: HiddenKeys) -> bytes:
    """Memoized: a role has the same for all of its queries."""
    return b"".join(delimited(1, spelled(path).encode()) for path in sorted(hidden.paths))


# Rows


def _prefetch(content: bytes, state: PolicyState) -> Steps[bytes]:
    state.prefetches += 1
    check_limit(state.prefetches, state.policy.max_prefetch, "prefetch")
    return (yield from state.reading.deeper(_PREFETCH.rewritten(content, state)))


def _query_of_batch(content: bytes, state: PolicyState) -> Steps[bytes]:
    state.prefetches = 0
    return (yield from _QUERY.rewritten(content, state))


def _operation(content: bytes, state: PolicyState) -> Steps[bytes]:
    """PointsUpdateOperation."""
    chosen = state.reading.alone("PointsUpdateOperation", content)
    if chosen is None:
        raise BadRequest("Malformed message: an operation of a batch is one of several")
    if chosen.number in _SELECTIONS:
        yield from checking("PointsSelector", chosen.content(), state.policy, state.reading)
        return content
    row = _OPERATIONS.get(chosen.number)
    if row is None:
        raise PolicyRefused(NOT_OF_A_BATCH)
    return delimited(chosen.number, (yield from row.rewritten(chosen.content(), state)))


_FILTER: Final = "Filter"
_PARAMS: Final = "SearchParams"
_SELECTOR: Final = "PointsSelector"
_LIMIT: Final = DEFAULT_LIMIT

_LOOKUP: Final = Row("WithLookup", payload=2, shows=True, vectors=3).rewritten
_POINT: Final = Row("PointStruct", written=3).rewritten
_SEARCH: Final = Row(
    "SearchPoints", limit=Number(4), offset=9, timeout=13, payload=6, vectors=11, checked={3: _FILTER, 7: _PARAMS}
)
_RECOMMEND: Final = Row(
    "RecommendPoints", limit=Number(5), offset=10, timeout=19, payload=7, vectors=12, checked={4: _FILTER, 8: _PARAMS}
)
_DISCOVER: Final = Row(
    "DiscoverPoints", limit=Number(5), offset=8, timeout=13, payload=6, vectors=10, checked={4: _FILTER, 7: _PARAMS}
)
_PREFETCH: Final = Row(
    "PrefetchQuery", limit=Number(7, _LIMIT), query=2, using=3,
    checked={2: "Query", 4: _FILTER, 5: _PARAMS}, within={1: _prefetch},
)  # fmt: skip
_QUERY: Final = Row(
    "QueryPoints", limit=Number(8, _LIMIT), offset=9, timeout=15, payload=11, vectors=10, query=3, using=4,
    checked={3: "Query", 5: _FILTER, 6: _PARAMS}, within={2: _prefetch},
)  # fmt: skip
_MATRIX: Final = Row(
    "SearchMatrixPoints", limit=Number(3, _LIMIT), each=Number(4, DEFAULT_PER_SAMPLE), timeout=6, checked={2: _FILTER}
)
_BY_FILTER: Final = {3: _SELECTOR}

_SELECTIONS: Final = frozenset({2})
"""The operation of a batch that is a selector itself: delete_deprecated."""
_OPERATIONS: Final = {
    1: Row("PointsUpdateOperation.PointStructList", checked={3: _FILTER}, within={1: _POINT}),
    3: Row("PointsUpdateOperation.SetPayload", entries=1, below=4, checked={2: _SELECTOR}),
    5: Row("PointsUpdateOperation.DeletePayload", keys=frozenset({1}), checked={2: _SELECTOR}),
    7: Row("PointsUpdateOperation.UpdateVectors", checked={3: _FILTER}),
    8: Row("PointsUpdateOperation.DeleteVectors", checked={1: _SELECTOR}),
    9: Row("PointsUpdateOperation.DeletePoints", checked={1: _SELECTOR}),
}
"""The operations of a batch, but those that overwrite or clear a payload."""
ROWS: Final = {
    f"/qdrant.Points/{method}": row
    for method, row in {
        "Search": _SEARCH,
        "SearchBatch": Row("SearchBatchPoints", timeout=4, within={2: _SEARCH.rewritten}),
        "SearchGroups": Row(
            "SearchPointGroups", limit=Number(4), each=Number(11), timeout=14, payload=5, vectors=9,
            checked={3: _FILTER, 6: _PARAMS}, keys=frozenset({10}), within={13: _LOOKUP},
        ),
        "SearchMatrixPairs": _MATRIX,
        "SearchMatrixOffsets": _MATRIX,
        "Recommend": _RECOMMEND,
        "RecommendBatch": Row("RecommendBatchPoints", timeout=4, within={2: _RECOMMEND.rewritten}),
        "RecommendGroups": Row(
            "RecommendPointGroups", limit=Number(5), each=Number(13), timeout=20, payload=6, vectors=10,
            checked={4: _FILTER, 7: _PARAMS}, keys=frozenset({12}), within={15: _LOOKUP},
        ),
        "Discover": _DISCOVER,
        "DiscoverBatch": Row("DiscoverBatchPoints", timeout=4, within={2: _DISCOVER.rewritten}),
        "Query": _QUERY,
        "QueryBatch": Row("QueryBatchPoints", timeout=4, within={2: _query_of_batch}),
        "QueryGroups": Row(
            "QueryPointGroups", limit=Number(11, _LIMIT), each=Number(12, DEFAULT_GROUP_SIZE), timeout=16,
            payload=8, vectors=9, query=3, using=4, checked={3: "Query", 5: _FILTER, 6: _PARAMS}, keys=frozenset({13}),
            within={2: _prefetch, 15: _LOOKUP},
        ),
        "Get": Row("GetPoints", ids=2, timeout=8, payload=4, vectors=5),
        "Scroll": Row(
            "ScrollPoints", limit=Number(4, _LIMIT), timeout=11, payload=6, shows=True, vectors=7,
            checked={2: _FILTER, 10: "OrderBy"},
        ),
        "Count": Row("CountPoints", timeout=6, exact=3, counted=True, checked={2: _FILTER}),
        "Facet": Row(
            "FacetCounts", limit=Number(4, _LIMIT), timeout=6, exact=5, checked={3: _FILTER}, keys=frozenset({2})
        ),
        "Upsert": Row("UpsertPoints", checked={6: _FILTER}, within={3: _POINT}),
        "Delete": Row("DeletePoints", checked=_BY_FILTER),
        "UpdateVectors": Row("UpdatePointVectors", checked={6: _FILTER}),
        "DeleteVectors": Row("DeletePointVectors", checked=_BY_FILTER),
        "SetPayload": Row("SetPayloadPoints", entries=3, below=8, checked={5: _SELECTOR}),
        "DeletePayload": Row("DeletePayloadPoints", keys=frozenset({3}), checked={5: _SELECTOR}),
        "UpdateBatch": Row("UpdateBatchPoints", within={3: _operation}),
        "CreateFieldIndex": Row("CreateFieldIndexCollection", keys=frozenset({3})),
        "DeleteFieldIndex": Row("DeleteFieldIndexCollection", keys=frozenset({3})),
    }.items()
}  # fmt: skip
"""By the method's path."""


def is_possible_under(policy: QueryPolicy, operation: Operation) -> bool:
    """Whether an operation can be had under a policy: its message is read, and its answer stripped, as it must be."""
    match treatment(operation, policy):
        case Treatment.FREE:
            return True
        case Treatment.READ:
            return operation.path in ROWS
        case Treatment.STRIPPED:
            return operation.path in ANSWERS
        case Treatment.REFUSED:
            return False


def policy_of_message(policy: QueryPolicy, operation: Operation) -> QueryPolicy:
    """The policy under which the message of an operation is rewritten; none where it has nothing of the kind."""
    return concerning(policy, operation) if operation.path in ROWS else NO_POLICY


def under_policy(
    operation: Operation, message: bytes, policy: QueryPolicy, *, fields: int = MAX_FIELDS
) -> Steps[bytes]:
    """Rewrites a whole message of at most so many ``fields``.

    Raises :class:`PolicyRefused`, :class:`BadRequest`, :class:`ProtobufError`.
    """
    row = ROWS.get(operation.path)
    if row is None:
        raise PolicyRefused(NOT_UNDER_POLICY)
    return (yield from row.rewritten(message, PolicyState(policy, Reading(fields))))
