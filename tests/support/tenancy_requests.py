"""Random tenants, points and requests, and an upstream in memory that is asked as by REST.

The points of an upstream are Qdrant's own to find (its client library in local mode); whose they are is found by
:mod:`support.tenancy_oracle`.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import strategies as st
from pydantic import TypeAdapter
from qdrant_client import models as m

from tlsproxy.authz.access import Condition, Confinement, Confinements
from tlsproxy.demo.engine import EngineError, Local, refusals
from tlsproxy.demo.rest import plain
from tlsproxy.demo.rest_routes import ROUTES

Points = dict[int, dict[str, Any]]
"""Id → payload."""
KEYS: Final = ("t", "n.t", "l[].t", "u")
VALUES: Final = ("a", "b", 1, True)
IDS: Final = tuple(range(1, 8))
MARK_ROOTS: Final = frozenset("tnlu")

_scalars = st.sampled_from(VALUES)
_leaves = st.just("a") | _scalars | st.lists(st.sampled_from((*VALUES, None)), max_size=2)
_payloads = st.fixed_dictionaries(
    {"c": st.sampled_from(["x", "y"]), "t": _leaves},
    optional={
        "u": _leaves,
        "n": st.fixed_dictionaries({}, optional={"t": _leaves}),
        "l": st.lists(st.fixed_dictionaries({}, optional={"t": _leaves}), max_size=2),
        "public": st.booleans(),
    },
)
_vectors = st.sampled_from([[1.0, 0.0], [0.3, -1.7], [-0.9, 0.2]])
VECTORS: Final = {one: [math.cos(one), math.sin(one * one)] for one in range(10)}
points = st.lists(_payloads, min_size=2, max_size=len(IDS)).map(lambda each: dict(enumerate(each, start=1)))

_conditions = st.builds(
    Condition, st.sampled_from(("t", *KEYS)), st.lists(_scalars, min_size=1, max_size=2, unique_by=repr).map(tuple)
)
_public = st.just(()) | st.just((Condition("public", (True,)),))
confinements: st.SearchStrategy[Confinements] = st.lists(
    st.builds(Confinement, st.lists(_conditions, min_size=1, max_size=2).map(tuple), _public), min_size=1, max_size=2
).map(tuple)
"""Of one role, or of two."""

_ids = st.lists(st.sampled_from((*IDS, 99)), max_size=4, unique=True)
"""Of one that is there twice Qdrant answers with one, and local mode with two."""
_field = st.fixed_dictionaries({"key": st.just("c"), "match": st.sampled_from([{"value": "x"}, {"any": ["x", "y"]}])})
_filters = st.fixed_dictionaries(
    {},
    optional={
        "must": st.lists(_field | st.fixed_dictionaries({"has_id": _ids}), min_size=1, max_size=2),
        "should": st.lists(st.fixed_dictionaries({"has_id": _ids}), min_size=1, max_size=2),
        "must_not": st.lists(_field | st.just({"key": "t", "match": {"value": "b"}}), min_size=1, max_size=1),
    },
)
_ALL = st.just(9)
"""A limit that cuts nothing: equal scores come in any order."""
_filtered = {"filter": _filters | st.none()}
_page = {**_filtered, "with_payload": st.booleans(), "with_vector": st.booleans(), "limit": _ALL}
_example = st.sampled_from((*IDS, 99)) | _vectors
_pairs = st.lists(st.fixed_dictionaries({"positive": _example, "negative": _example}), min_size=1, max_size=2)
_examples = {"positive": st.lists(_example, min_size=1, max_size=2), "negative": st.lists(_example, max_size=1)}
_queries = (
    _example
    | st.fixed_dictionaries({"nearest": _example})
    | st.fixed_dictionaries({"recommend": st.fixed_dictionaries(_examples)})
    | st.fixed_dictionaries(
        {"recommend": st.fixed_dictionaries({**_examples, "strategy": st.sampled_from(["best_score", "sum_scores"])})}
    )
    | st.fixed_dictionaries({"discover": st.fixed_dictionaries({"target": _example, "context": _pairs})})
    | st.fixed_dictionaries({"context": _pairs})
)
_lookup = {"lookup_from": st.just({"collection": "docs"})}
_query = st.fixed_dictionaries({}, optional={"query": _queries, **_page, **_lookup})
_nested = st.fixed_dictionaries(
    {
        "prefetch": st.lists(st.fixed_dictionaries({"query": _queries}, optional=_filtered), min_size=1, max_size=2),
        "query": _vectors | st.just({"fusion": "rrf"}),
    },
    optional=_page,
)
_groups = {"group_by": st.just("c"), "limit": _ALL, "group_size": _ALL}
_recommend = st.fixed_dictionaries({**_examples, "limit": _ALL}, optional=_filtered)
_discover = st.fixed_dictionaries({"target": _example, "context": _pairs, "limit": _ALL})


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: Any = None


def _of(method: str, path: str, bodies: st.SearchStrategy[Any]) -> st.SearchStrategy[Request]:
    return st.builds(Request, st.just(method), st.just(path), bodies)


def _batch(bodies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"searches": st.lists(bodies, min_size=1, max_size=3)})


_selector = {"with_payload": st.sampled_from([True, False, ["c"], None]), "with_vector": st.booleans()}
READS: st.SearchStrategy[Request] = st.one_of(
    st.builds(Request, st.just("GET"), st.sampled_from((*IDS, 99)).map("points/{}".format)),
    _of("POST", "points", st.fixed_dictionaries({"ids": _ids}, optional=_selector)),
    _of("POST", "points/scroll", st.fixed_dictionaries({}, optional=_page | {"limit": st.integers(1, 9)})),
    _of("POST", "points/count", st.fixed_dictionaries({}, optional=_filtered)),
    _of("POST", "facet", st.fixed_dictionaries({"key": st.sampled_from(["c", "t"])}, optional=_filtered)),
    _of("POST", "points/query", _query | _nested),
    _of("POST", "points/query/batch", _batch(_query | _nested)),
    _of("POST", "points/query/groups", st.fixed_dictionaries({"query": _queries, **_groups}, optional=_filtered)),
    _of("POST", "points/search", st.fixed_dictionaries({"vector": _vectors, "limit": _ALL})),
    _of("POST", "points/recommend", _recommend),
    _of("POST", "points/recommend/batch", _batch(_recommend)),
    _of("POST", "points/discover", _discover),
    _of("POST", "points/discover/batch", _batch(_discover)),
    _of("POST", "points/search/matrix/pairs", st.fixed_dictionaries({"sample": st.just(9)}, optional=_filtered)),
)

_selected = st.fixed_dictionaries({"points": _ids}) | st.fixed_dictionaries({"filter": _filters})
_fields = st.dictionaries(st.sampled_from(["c", "d", "t", "n", "l", "u"]), _leaves, max_size=2)


def _with(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(_selected, st.fixed_dictionaries(members)).map(lambda each: each[0] | each[1])


_point = st.fixed_dictionaries(
    {"id": st.sampled_from((*IDS, 8, 9)), "vector": _vectors}, optional={"payload": _payloads | _fields}
)
_CHANGES: Final[dict[str, tuple[str, str, st.SearchStrategy[Any]]]] = {
    "upsert": ("PUT", "points", st.fixed_dictionaries({"points": st.lists(_point, min_size=1, max_size=2)})),
    "delete": ("POST", "points/delete", _selected),
    "set_payload": ("POST", "points/payload", _with(payload=_fields)),
    "overwrite_payload": ("PUT", "points/payload", _with(payload=_fields)),
    "delete_payload": ("POST", "points/payload/delete", _with(keys=st.lists(st.sampled_from("cdtnlu"), max_size=2))),
    "clear_payload": ("POST", "points/payload/clear", _selected),
    "delete_vectors": ("POST", "points/vectors/delete", _with(vector=st.just([""]))),
}
CHANGES: st.SearchStrategy[Request] = st.one_of(
    *(_of(method, path, bodies) for method, path, bodies in _CHANGES.values()),
    _of(
        "POST",
        "points/batch",
        st.fixed_dictionaries(
            {
                "operations": st.lists(
                    st.one_of(*(st.fixed_dictionaries({name: bodies}) for name, (_, _, bodies) in _CHANGES.items())),
                    min_size=1,
                    max_size=3,
                )
            }
        ),
    ),
)


@dataclass(frozen=True)
class Answer:
    """``result`` of status 200, else the text of the error."""

    status: int
    result: Any


class Upstream:
    """Qdrant's local mode with these points in the collection `docs`, by the routes of the embedded upstream."""

    def __init__(self, found: Points) -> None:
        self.local = Local(":memory:")
        self.local.create_collection("docs", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
        if found:
            each = [m.PointStruct(id=one, vector=VECTORS[one], payload=found[one]) for one in found]
            self.local.upsert("docs", copy.deepcopy(each))

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """``path``: below the collection."""
        for pattern, route in _PATTERNS:
            match = pattern.fullmatch(f"/collections/docs/{path}")
            if match is not None and route.method == method:
                try:
                    with refusals():
                        parsed = TypeAdapter(route.body).validate_python(body) if route.body is not None else None
                        found = getattr(self.local, route.call)(**match.groupdict(), **route.arguments(parsed))
                        return Answer(200, plain(route.result(found)))
                except EngineError as error:
                    return Answer(int(error.status), str(error))
        raise AssertionError(f"the embedded upstream has no {method} {path}")

    def points(self) -> dict[int, Any]:
        page = self.ask("POST", "points/scroll", {"limit": 100, "with_vector": True}).result["points"]
        return {point["id"]: point for point in page}


_PATTERNS: Final = [(re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path)), route) for route in ROUTES]


def of_own(body: dict[str, Any]) -> dict[str, Any]:
    """The same change by filters, as the local mode takes no id of a point that is missing."""
    changed = copy.deepcopy(body)
    for operation in changed.get("operations", [{"": changed}]):
        for each in operation.values():
            chosen = each.get("points")
            if isinstance(chosen, list) and not any(isinstance(one, dict) for one in chosen):
                each["filter"] = {"must": [{"has_id": each.pop("points")}]}
    return changed


def unmarked(found: dict[int, Any]) -> dict[int, Any]:
    """Without the marks, which the gateway adds and keeps."""
    return {
        one: point | {"payload": {key: value for key, value in point["payload"].items() if key not in MARK_ROOTS}}
        for one, point in found.items()
    }
