"""Checks of the members of REST requests under a query policy.

A check completes the request where Qdrant's default would be too much, and takes hidden parts out of it. The tables are
in :mod:`tlsproxy.qdrant.rest_query_policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from tlsproxy.authz.query_policy import KeyPath, QueryPolicy, parse_key_path, spelled
from tlsproxy.errors import BadRequest
from tlsproxy.qdrant.query_policy import DEFAULT_LIMIT, check_key, check_limit, exact_refused, unknown_refused
from tlsproxy.qdrant.rest_collections import are_numbers, are_vectors, expect_object, prefetches_of, wrong_type
from tlsproxy.qdrant.rest_filters import Filters
from tlsproxy.wire.cooperative import Pace, Steps

Request = dict[str, Any]
Check = Callable[["Reading", Request, str], Steps[None]]
"""Checks one member of a request. Raises :class:`tlsproxy.errors.PolicyRefused` and :class:`BadRequest`."""
Members = Mapping[str, Check]
"""All members of one kind of request."""

MEMBERS: Final = 10
"""Units of work of the members of an object."""
KEY: Final = 5
"""Cost of a payload key, in units of work."""

_ALIASES: Final = {"top": "limit", "with_vectors": "with_vector"}


@dataclass(frozen=True, slots=True)
class Reading:
    """Requests that are read under one policy."""

    policy: QueryPolicy
    filters: Filters

    @property
    def pace(self) -> Pace:
        return self.filters.pace

    def request(self, request: Request, members: Mapping[str, Check]) -> Steps[None]:
        """A query, with its prefetches."""
        yield from self.members(request, members)
        pending, count = (yield from prefetches_of(request, self.pace)), 0
        while pending:
            prefetch = pending.pop()
            count += 1
            check_limit(count, self.policy.max_prefetch, "prefetch")
            yield from self.members(prefetch, _PREFETCH)
            pending += yield from prefetches_of(prefetch, self.pace)

    def members(self, request: Request, members: Mapping[str, Check]) -> Steps[None]:
        if self.pace.is_step(MEMBERS):
            yield None
        for alias, name in _ALIASES.items():
            if alias in request and name in members and alias not in members:
                if name in request:
                    raise BadRequest(f"Format error in JSON body: duplicate field `{name}`")
                request[name] = request.pop(alias)
        for name in request:
            if name not in members:
                raise unknown_refused(name)
        for name, check in members.items():
            yield from check(self, request, name)

    def check_path(self, value: Any, where: str) -> None:
        if self.policy.hidden:
            check_key(key_path(value, where), self.policy)


def key_path(value: Any, where: str) -> KeyPath:
    try:
        return parse_key_path(_text(value, where))
    except ValueError:
        raise BadRequest(f"Format error in JSON body: {where} is not a payload path") from None


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(where, "a string")
    return value


def expect_array(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong_type(where, "an array")
    return value


def _number(value: Any, where: str) -> int:
    if type(value) is not int or value < 0:
        raise wrong_type(where, "a whole number")
    return value


# Members of requests


def free(_reading: Reading, _request: Request, _name: str) -> Steps[None]:
    """Names no key, and is bounded by nothing."""
    yield from ()


def of_filter(reading: Reading, request: Request, name: str) -> Steps[None]:
    yield from reading.filters.checking(request.get(name), name)


def of_key(reading: Reading, request: Request, name: str) -> Steps[None]:
    yield from ()
    if request.get(name) is not None:
        reading.check_path(request[name], name)


def of_limit(default: int | None) -> Check:
    """A limit; ``default`` is Qdrant's, None where it must be given."""

    def check(reading: Reading, request: Request, name: str) -> Steps[None]:
        yield from ()
        _bounded(request, {name: default}, reading.policy.max_limit)

    return check


def of_product(**defaults: int | None) -> Check:
    """A limit that is the product of two members; their defaults are as in :func:`of_limit`."""

    def check(reading: Reading, request: Request, _name: str) -> Steps[None]:
        yield from ()
        _bounded(request, defaults, reading.policy.max_limit)

    return check


def _bounded(request: Request, defaults: Mapping[str, int | None], bound: int | None) -> None:
    """Checks the product of these members. Those that are absent get their default, or as much as the bound leaves."""
    if bound is None:
        return
    given = {name: _number(request[name], name) for name in defaults if request.get(name) is not None}
    product = prod(max(1, value) for value in given.values())
    check_limit(product, bound, next(iter(defaults)) if len(defaults) == 1 else "limit")
    for name, default in defaults.items():
        if name not in given and default is not None:
            request[name] = value = min(default, bound // product)
            product *= value


def of_offset(reading: Reading, request: Request, name: str) -> Steps[None]:
    yield from ()
    if reading.policy.max_offset is not None and request.get(name) is not None:
        check_limit(_number(request[name], name), reading.policy.max_offset, name)


def of_ids(reading: Reading, request: Request, name: str) -> Steps[None]:
    yield from ()
    check_limit(len(expect_array(request.get(name), name)), reading.policy.max_limit, name)


def of_exact(*, default: bool) -> Check:
    """`exact`; ``default`` is Qdrant's."""

    def check(reading: Reading, request: Request, name: str) -> Steps[None]:
        yield from ()
        if not reading.policy.forbids_exact:
            return
        if request.get(name) is None:
            if default:
                request[name] = False
        elif request[name] is not False:
            raise exact_refused()

    return check


def of_params(reading: Reading, request: Request, name: str) -> Steps[None]:
    if request.get(name) is None:
        return
    yield from reading.members(expect_object(request[name], name), _PARAMS)


def _idf(reading: Reading, request: Request, name: str) -> Steps[None]:
    """`global`, or a corpus by a filter."""
    if request.get(name) is None or isinstance(request[name], str):
        return
    yield from reading.members(expect_object(request[name], name), {"corpus": of_filter})


def of_with_vector(reading: Reading, request: Request, name: str) -> Steps[None]:
    yield from ()
    if reading.policy.hides_vectors:
        request[name] = False


def of_with_payload(*, default: bool) -> Check:
    """`with_payload`; ``default`` is Qdrant's."""

    def check(reading: Reading, request: Request, name: str) -> Steps[None]:
        if reading.policy.hidden:
            value = request.get(name)
            shown = yield from _shown(reading, default if value is None else value, name)
            if value is not None or default:
                request[name] = shown

    return check


def _shown(reading: Reading, value: Any, name: str) -> Steps[Any]:
    """A selection of the payload without hidden keys."""
    excluded = [spelled(path) for path in sorted(reading.policy.hidden.paths)]
    match value:
        case bool():
            return {"exclude": excluded} if value else False
        case list():
            return (yield from _included(reading, value, name))
        case {"include": list(paths), **others} if not others:
            return {"include": (yield from _included(reading, paths, name))}
        case {"exclude": list(paths), **others} if not others:
            return {"exclude": [*paths, *excluded]}
    raise wrong_type(name, "true, false, a list of keys, or one of include and exclude")


def _included(reading: Reading, paths: list[Any], name: str) -> Steps[list[Any]]:
    included, hidden = [], reading.policy.hidden
    for path in paths:
        if reading.pace.is_step(KEY):
            yield None
        if not hidden.cover(key_path(path, name)):
            included.append(path)
    return included


def of_with_lookup(reading: Reading, request: Request, name: str) -> Steps[None]:
    lookup = request.get(name)
    if lookup is None:
        return
    if isinstance(lookup, str):
        lookup = {"collection": lookup}
    request[name] = expect_object(lookup, name)
    if "with_vector" in lookup and "with_vectors" not in lookup:
        lookup["with_vectors"] = lookup.pop("with_vector")
    yield from reading.members(lookup, _LOOKUP)


def of_order_by(reading: Reading, request: Request, name: str) -> Steps[None]:
    yield from ()
    order = request.get(name)
    if order is not None:
        reading.check_path(order if isinstance(order, str) else expect_object(order, name).get("key"), f"{name}.key")


_QUERIES: Final = frozenset(
    {
        *("nearest", "mmr", "recommend", "discover", "context", "order_by", "fusion", "rrf", "formula", "defaults"),
        *("sample", "relevance_feedback", "indices", "values", "text", "image", "object", "model", "options"),
    }
)
"""Members of all forms of a query: vectors, texts to infer one from, and Qdrant's kinds of query."""


def of_query(reading: Reading, request: Request, name: str) -> Steps[None]:
    """A query may order by a key, compute a formula of keys, or rank by the text of one, which `using` names then."""
    query = request.get(name)
    if isinstance(query, list):
        # serde would read ["salary"] and [["salary", "asc", null]] as {"order_by": …}
        if not ((yield from are_numbers(query, reading.pace)) or (yield from are_vectors(query, reading.pace))):
            raise wrong_type(name, "a vector")
        return
    if not isinstance(query, dict):
        return
    for member in query:
        if member not in _QUERIES:
            raise unknown_refused(f"{name}.{member}")
    mmr = query.get("mmr")
    if mmr is not None:
        yield from reading.members(expect_object(mmr, "mmr"), _MMR)
    yield from of_order_by(reading, query, "order_by")
    if "text" in query and not isinstance(query.get("model"), str) and request.get("using") is not None:
        reading.check_path(request["using"], "using")
    if query.get("formula") is not None:
        yield from reading.filters.checking_formula(query["formula"], query.get("defaults"))


# Objects within requests

_PARAMS: Final[Members] = {
    "exact": of_exact(default=False),
    "idf": _idf,
    **dict.fromkeys(("hnsw_ef", "quantization", "indexed_only", "acorn"), free),
}
_MMR: Final[Members] = {"candidates_limit": of_limit(None), "diversity": free}
_LOOKUP: Final[Members] = {
    "collection": free,
    "with_payload": of_with_payload(default=True),
    "with_vectors": of_with_vector,
}
_PREFETCH: Final[Members] = {
    "query": of_query,
    "filter": of_filter,
    "params": of_params,
    "limit": of_limit(DEFAULT_LIMIT),
    **dict.fromkeys(("prefetch", "using", "score_threshold", "lookup_from"), free),
}
