"""The configuration model of a role's query policy (:mod:`tlsproxy.config.model`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import Field, StrictInt

from tlsproxy.authz.query_policy import NO_POLICY, QueryPolicy, hidden_keys, parse_key_path
from tlsproxy.config.callers import Section
from tlsproxy.config.findings import Finding
from tlsproxy.config.limits import Count
from tlsproxy.config.positions import Path

AtMost = Annotated[StrictInt, Field(ge=0, le=10_000_000)]


class PayloadPolicy(Section):
    """Parts of a point's payload that are hidden."""

    hide: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    """Payload keys and paths, such as `salary`, `contact.email` or `people[].name`, each with all below it. They are
    taken out of every answer, and refused in filters, facets, groups, orders, formulas, indexes and changes."""


class Queries(Section):
    """Bounds of queries over REST and gRPC, in the manner of Qdrant's strict mode, and parts of points that are hidden.
    Larger values are refused (403, PERMISSION_DENIED).
    """

    max_limit: Count | None = None
    """Most points of an answer: `limit`, of groups `limit` × `group_size`, of a matrix `sample` × `limit`, ids of a
    retrieval; also of each prefetch. null for no bound."""
    max_offset: AtMost | None = None
    """Largest `offset` that a query skips. null for no bound."""
    max_prefetch: AtMost | None = None
    """Most prefetches of a query, nested ones included. null for no bound."""
    exact: Literal["allow", "forbid"] = "allow"
    """forbid: `exact: true` is refused, and counts are estimates."""
    timeout: Annotated[StrictInt, Field(ge=1, le=86400)] | None = None
    """Most seconds that Qdrant may take for a query, and what it gets where the client asks for none. null for no
    bound."""
    vectors: Literal["show", "hide"] = "show"
    """hide: vectors are taken out of every answer. Queries by vectors, and their scores, remain."""
    payload: PayloadPolicy = PayloadPolicy()
    """Parts of a point's payload that are hidden."""


def query_policy_of(queries: Queries) -> QueryPolicy:
    """The policy of a checked section."""
    policy = QueryPolicy(
        max_limit=queries.max_limit,
        max_offset=queries.max_offset,
        max_prefetch=queries.max_prefetch,
        forbids_exact=queries.exact == "forbid",
        timeout=queries.timeout,
        hides_vectors=queries.vectors == "hide",
        hidden=hidden_keys(map(parse_key_path, queries.payload.hide)),
    )
    return policy or NO_POLICY


_ELEMENT: Final = re.compile(r"\[[0-9]")
_QUOTED: Final = re.compile(r'"[^"]*"')


def query_findings(path: Path, queries: Queries) -> Iterator[Finding]:
    for index, text in enumerate(queries.payload.hide):
        where: Path = (*path, "payload", "hide", index)
        try:
            parse_key_path(text)
        except ValueError as mistake:
            yield Finding(where, str(mistake))
        else:
            if _ELEMENT.search(_QUOTED.sub("", text)) is not None:
                yield Finding(where, "one element of an array cannot be hidden alone: write [] for all of them")
