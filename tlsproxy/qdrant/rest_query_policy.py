"""A REST request under its caller's query policy: refused, or completed where Qdrant's default would be too much.

Tables have the members of each kind of request, and what each means to a policy. A member that is not there is refused:
it could be another name of one that is (`top` is `limit`, `with_vectors` is `with_vector`), or name a hidden key. Where
serde would read an array as a struct, or one of several forms, only the documented types are accepted.

The caller's own filter, formula and order are read here; conditions of the caller's role come later, and may be about
hidden keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl

from tlsproxy.authz.query_policy import QueryPolicy
from tlsproxy.errors import BadRequest, PolicyRefused
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.query_policy import (
    DEFAULT_GROUP_SIZE,
    DEFAULT_LIMIT,
    DEFAULT_PER_SAMPLE,
    NOT_UNDER_POLICY,
    Treatment,
    check_key,
    check_limit,
    treatment,
)
from tlsproxy.qdrant.rest_collections import expect_object, requests_of
from tlsproxy.qdrant.rest_filters import Filters
from tlsproxy.qdrant.rest_members import (
    KEY,
    Members,
    Reading,
    Request,
    expect_array,
    free,
    key_path,
    of_exact,
    of_filter,
    of_ids,
    of_key,
    of_limit,
    of_offset,
    of_order_by,
    of_params,
    of_product,
    of_query,
    of_with_lookup,
    of_with_payload,
    of_with_vector,
)
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.target import RequestTarget

_SECONDS: Final = re.compile(r"\+?[0-9]{1,20}", re.ASCII)
_MOST_PARAMETERS: Final = 100
_WITH_BODY: Final = frozenset(("POST", "PUT"))


def is_read_under(operation: Operation, policy: QueryPolicy) -> bool:
    """Whether the body of an operation is read for a policy, which does not refuse it."""
    return operation.method in _WITH_BODY and treatment(operation, policy, untimed=True) is not Treatment.FREE


def counts_numbers(operation: Operation) -> bool:
    """Whether the number of elements in an array of numbers has a say: that of ids in a retrieval."""
    return operation.name == "retrieve"


def target_under(operation: Operation, target: RequestTarget, policy: QueryPolicy) -> RequestTarget:
    """The target, with the `timeout` of a query, and no hidden key in its path. ``policy``: the parts that concern it.

    Raises :class:`PolicyRefused` and :class:`BadRequest`.
    """
    if operation.path.endswith("/{field_name}"):
        for key in target.segments[-1:]:  # none where any request of the operation is meant
            check_key(key_path(key, "field_name"), policy)
    if policy.timeout is None:
        return target
    try:
        given = parse_qsl(target.query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise BadRequest("Too many query parameters") from None
    values = [value for name, value in given if name == "timeout"]
    if not values:
        more = f"timeout={policy.timeout}"
        return replace(target, query=f"{target.query}&{more}" if target.query else more)
    if len(values) > 1 or _SECONDS.fullmatch(values[0]) is None or not int(values[0]):
        raise BadRequest("Query deserialize error: timeout must be one whole number of seconds")
    check_limit(int(values[0]), policy.timeout, "timeout")
    return target


def reading_under(operation: Operation, body: Any, policy: QueryPolicy) -> Steps[None]:
    """Checks a body, and changes it to one under the policy. Raises :class:`PolicyRefused` and :class:`BadRequest`."""
    reading = Reading(policy, Filters(policy))
    change = _CHANGES.get((operation.method, operation.path))
    if change is not None:
        yield from reading.members(expect_object(body, "the body"), change)
        return
    members = _REQUESTS.get(operation.path.replace(_SHARD, ""))
    if members is None:
        raise PolicyRefused(NOT_UNDER_POLICY)
    for request in (yield from requests_of(operation, body, reading.pace)):
        yield from reading.request(request, members)


# Changes


def _points(reading: Reading, request: Request, name: str) -> Steps[None]:
    """Points to write: objects, whose payloads have nothing hidden."""
    if request.get(name) is None:
        return
    for one in expect_array(request[name], name):
        if reading.pace.is_step():
            yield None
        yield from reading.filters.checking_payload(expect_object(one, name).get("payload"))


def _point_batch(reading: Reading, request: Request, name: str) -> Steps[None]:
    if request.get(name) is None:
        return
    batch = expect_object(request[name], name)
    for payload in expect_array(batch.get("payloads") or [], "payloads"):
        if reading.pace.is_step():
            yield None
        yield from reading.filters.checking_payload(payload)


def _set(reading: Reading, request: Request, name: str) -> Steps[None]:
    """The payload of a change, which replaces each key that it names: none is hidden, nor has hidden ones below it."""
    hidden, key = reading.policy.hidden, request.get("key")
    base = () if key is None else key_path(key, "key")
    if base:
        check_key(base, reading.policy)
    if hidden:
        for one in expect_object(request.get(name), name):
            if reading.pace.is_step(KEY):
                yield None
            check_key((*base, one), reading.policy)


def _keys(reading: Reading, request: Request, name: str) -> Steps[None]:
    for path in expect_array(request.get(name), name):
        if reading.pace.is_step(KEY):
            yield None
        reading.check_path(path, name)


def _operations(reading: Reading, request: Request, name: str) -> Steps[None]:
    for operation in expect_array(request.get(name), name):
        pairs = list(expect_object(operation, name).items())
        members = _OF_A_BATCH.get(pairs[0][0]) if len(pairs) == 1 else None
        if members is None:
            raise PolicyRefused("An operation of this batch is not available under your role's query policy")
        yield from reading.members(expect_object(pairs[0][1], pairs[0][0]), members)


_SELECTED: Final[Members] = {
    "shard_key": free,
    "with_payload": of_with_payload(default=False),
    "with_vector": of_with_vector,
}
_SCORED: Final[Members] = {**_SELECTED, "filter": of_filter, "params": of_params, "score_threshold": free}
_PAGE: Final[Members] = {"limit": of_limit(None), "offset": of_offset}
_GROUPS: Final[Members] = {
    "group_by": of_key,
    "limit": of_product(limit=None, group_size=None),
    "group_size": free,
    "with_lookup": of_with_lookup,
}
_EXAMPLES: Final = dict.fromkeys(("positive", "negative", "strategy", "using", "lookup_from"), free)
_QUERY: Final[Members] = {**_SCORED, "query": of_query, "using": free, "lookup_from": free, "prefetch": free}
_RECORDS: Final[Members] = {**_SELECTED, "with_payload": of_with_payload(default=True)}

_COLLECTION: Final = "/collections/{collection_name}"
_SHARD: Final = "/shards/{shard}"
_SEARCH: Final[Members] = {**_SCORED, **_PAGE, "vector": free}
_RECOMMEND: Final[Members] = {**_SCORED, **_PAGE, **_EXAMPLES}
_DISCOVER: Final[Members] = {
    **_SELECTED,
    **_PAGE,
    "filter": of_filter,
    "params": of_params,
    **dict.fromkeys(("target", "context", "using", "lookup_from"), free),
}
_QUERY_PAGE: Final[Members] = {**_QUERY, "limit": of_limit(DEFAULT_LIMIT), "offset": of_offset}
_MATRIX: Final[Members] = {
    "filter": of_filter,
    "limit": of_product(limit=DEFAULT_PER_SAMPLE, sample=DEFAULT_LIMIT),
    **dict.fromkeys(("sample", "using", "shard_key"), free),
}

_REQUESTS: Final[Mapping[str, Members]] = {
    f"{_COLLECTION}/{path}": members
    for path, members in {
        "points": {**_RECORDS, "ids": of_ids},
        "points/scroll": {
            **_RECORDS,
            "limit": of_limit(DEFAULT_LIMIT),
            "offset": free,  # a point's id
            "filter": of_filter,
            "order_by": of_order_by,
        },
        "points/count": {"filter": of_filter, "exact": of_exact(default=True), "shard_key": free},
        "facet": {
            "key": of_key,
            "limit": of_limit(DEFAULT_LIMIT),
            "filter": of_filter,
            "exact": of_exact(default=False),
            "shard_key": free,
        },
        "points/search": _SEARCH,
        "points/search/batch": _SEARCH,
        "points/search/groups": {**_SCORED, **_GROUPS, "vector": free},
        "points/search/matrix/pairs": _MATRIX,
        "points/search/matrix/offsets": _MATRIX,
        "points/recommend": _RECOMMEND,
        "points/recommend/batch": _RECOMMEND,
        "points/recommend/groups": {**_SCORED, **_GROUPS, **_EXAMPLES},
        "points/discover": _DISCOVER,
        "points/discover/batch": _DISCOVER,
        "points/query": _QUERY_PAGE,
        "points/query/batch": _QUERY_PAGE,
        "points/query/groups": {
            **_QUERY,
            **_GROUPS,
            "limit": of_product(group_size=DEFAULT_GROUP_SIZE, limit=DEFAULT_LIMIT),
        },
    }.items()
}
"""Members of each request for points, or of each in a batch, by path."""

_SELECTION: Final[Members] = {"points": free, "filter": of_filter, "shard_key": free}
_UPSERT: Final[Members] = {
    "points": _points,
    "batch": _point_batch,
    "shard_key": free,
    "update_filter": of_filter,
    "update_mode": free,
}
_UPDATE_VECTORS: Final[Members] = {"points": free, "shard_key": free, "update_filter": of_filter}
_DELETE_VECTORS: Final[Members] = {**_SELECTION, "vector": free, "vectors": free}
_SET_PAYLOAD: Final[Members] = {**_SELECTION, "payload": _set, "key": free}
_DELETE_PAYLOAD: Final[Members] = {**_SELECTION, "keys": _keys}
_OF_A_BATCH: Final[Mapping[str, Members]] = {
    "upsert": _UPSERT,
    "delete": _SELECTION,
    "update_vectors": _UPDATE_VECTORS,
    "delete_vectors": _DELETE_VECTORS,
    "set_payload": _SET_PAYLOAD,
    "delete_payload": _DELETE_PAYLOAD,
}
_CHANGES: Final[Mapping[tuple[str, str], Members]] = {
    ("PUT", f"{_COLLECTION}/points"): _UPSERT,
    ("POST", f"{_COLLECTION}/points/delete"): _SELECTION,
    ("PUT", f"{_COLLECTION}/points/vectors"): _UPDATE_VECTORS,
    ("POST", f"{_COLLECTION}/points/vectors/delete"): _DELETE_VECTORS,
    ("POST", f"{_COLLECTION}/points/payload"): _SET_PAYLOAD,
    ("POST", f"{_COLLECTION}/points/payload/delete"): _DELETE_PAYLOAD,
    ("POST", f"{_COLLECTION}/points/batch"): {"operations": _operations},
    ("PUT", f"{_COLLECTION}/index"): {"field_name": of_key, "field_schema": free, "field_type": free},
}
"""Members of each change, by method and path."""
