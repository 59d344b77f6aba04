"""Reads in a REST body, confined to a tenant's points, and the points that they name as examples.

Every level at which points are selected gets the caller's confinements: `{"filter": F}` becomes
`{"filter": {"must": [tenant = "a", F]}}`. Counts are exact, since estimates are made over all points
(:mod:`tlsproxy.qdrant.answer_statistics`). A query by a point's id takes that point's vector: the upstream is asked
first whether the point is the caller's (:mod:`tlsproxy.qdrant.tenant_examples`). Where serde would read an array as a
struct, only the documented type is accepted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from tlsproxy.authz.access import Confinements
from tlsproxy.errors import BadRequest, Unconfined
from tlsproxy.qdrant import tenant_texts
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.point_ids import point_id_of
from tlsproxy.qdrant.rest_collections import (
    INTEGERS,
    are_numbers,
    are_vectors,
    expect_object,
    prefetches_of,
    requests_of,
    wrong_type,
)
from tlsproxy.qdrant.scoring import Facts, Scored, check_matrix, is_rescored, needs_corpus
from tlsproxy.qdrant.tenant_examples import Examples, Place, place
from tlsproxy.qdrant.tenant_filters import check_count, narrowed
from tlsproxy.wire.cooperative import Pace, Steps

_REQUEST: Final = 10
"""Units of work of a request or a prefetch, beside its vectors."""
_QUERIES_OF_NO_POINT: Final = frozenset({"fusion", "rrf", "order_by", "sample", "formula", "defaults"})
_BY_EXAMPLES: Final = {
    "recommend": {"positive", "negative", "strategy"},
    "discover": {"target", "context"},
    "context": {"positive", "negative"},
    "relevance_feedback": {"target", "feedback", "strategy"},
}
"""Queries that are made of examples, and their members; those of a context are of its pairs."""
_INFERENCE: Final = frozenset({"text", "image", "object", "model", "options"})

Request = dict[str, Any]


def confine_read(
    operation: Operation, collection: str, body: Any, confinements: Confinements, facts: Facts | None
) -> Steps[Examples]:
    """Confines each request of a body, and returns the points that they are made of.

    Raises :class:`Unconfined`, :class:`BadRequest`, and :class:`FactsNeeded` where it depends on the facts.
    """
    examples, pace, count = Examples(), Pace(), 0
    pending = yield from requests_of(operation, body, pace)
    while pending:
        if pace.is_step(_REQUEST):
            yield None
        request = pending.pop()
        count += 1
        check_count(count, confinements)
        if request.get("with_lookup") is not None:
            raise Unconfined(tenant_texts.LOOKS_UP.format("with_lookup"))
        using = _text(request.get("using"), "using")
        vectors = _Vectors(examples, collection, request.get("lookup_from"), pace)
        if operation.path in _SEARCHED:
            scored, using = yield from _scored_of_search(request.get("vector"), pace)
        elif operation.path in _RECOMMENDED:
            scored = yield from vectors.of_lists(request)
        elif operation.path in _DISCOVERED:
            scored = yield from vectors.of_discovery(request)
        else:
            scored = yield from vectors.of_query(request.get("query"))
        if operation.path in _MATRICES:
            check_matrix(using, facts)
        corpus = needs_corpus(scored, using, facts)
        _params(request, confinements, exact=operation.path in _GROUPED, corpus=corpus, rescored=is_rescored(scored))
        if operation.path in _COUNTED:
            request["exact"] = True
        _filter(request, "filter", confinements)
        pending += yield from prefetches_of(request, pace)
    return examples


def _filter(request: dict[str, Any], name: str, confinements: Confinements) -> None:
    """Adds the confinements; the caller's own filter becomes one more condition."""
    own = request.get(name)
    request[name] = narrowed(None if own is None else expect_object(own, name), confinements)


def _params(request: dict[str, Any], confinements: Confinements, *, exact: bool, corpus: bool, rescored: bool) -> None:
    """Removes the influence of other tenants' points: which segments are indexed and the codes of quantized vectors
    depend on all points, and words must be counted over the caller's own.
    """
    if request.get("params") is None:
        if not (exact or corpus or rescored):
            return
        request["params"] = {}
    params = expect_object(request["params"], "params")
    params.pop("indexed_only", None)
    if exact:
        params["exact"] = True
    if rescored or params.get("quantization") is not None:
        quantization = params.get("quantization")
        params["quantization"] = {} if quantization is None else expect_object(quantization, "params.quantization")
        params["quantization"]["rescore"] = True
    idf = params.get("idf")
    if corpus or idf is not None:
        params["idf"] = {} if idf is None or idf == "global" else expect_object(idf, "params.idf")
        _filter(params["idf"], "corpus", confinements)


class _Vectors:
    """The vectors of one request: their kind, and the points that they are taken from."""

    __slots__ = ("_collection", "_examples", "_pace", "_place", "_shard_key")

    def __init__(self, examples: Examples, collection: str, lookup: Any, pace: Pace) -> None:
        """``lookup``: the request's `lookup_from`, another place of the points. Raises :class:`BadRequest`."""
        located = {} if lookup is None else expect_object(lookup, "lookup_from")
        self._examples = examples
        self._pace = pace
        self._collection = collection if lookup is None else _name(located.get("collection"), "lookup_from.collection")
        self._shard_key = located.get("shard_key")
        self._place: Place | None = None

    def of_query(self, query: Any) -> Steps[Scored]:
        """The kind of a query. Raises :class:`Unconfined` for a form that is not known, :class:`BadRequest`."""
        if query is None:
            return Scored.NOTHING
        if not isinstance(query, dict):
            return (yield from self._of_vector(query))
        if query and query.keys() <= _QUERIES_OF_NO_POINT:
            return Scored.NOTHING
        if query.keys() == {"text"} and isinstance(query["text"], str | dict):
            return Scored.TEXT
        if "nearest" in query and query.keys() <= {"nearest", "mmr"}:
            return (yield from self._of_vector(query["nearest"]))
        kind = next(iter(query)) if len(query) == 1 else ""
        if kind not in _BY_EXAMPLES:
            return (yield from self._of_vector(query))
        if kind == "context":
            return (yield from self._of_pairs(query[kind]))
        asked = _with_members(query[kind], kind, _BY_EXAMPLES[kind])
        if kind == "recommend":
            return (yield from self.of_lists(asked))
        return (yield from self.of_discovery(asked) if kind == "discover" else self._of_feedback(asked))

    def of_lists(self, request: Request) -> Steps[Scored]:
        """The kind of a recommendation."""
        return (
            yield from self._of_all(
                vector for name in ("positive", "negative") for vector in _array(request.get(name), name)
            )
        )

    def of_discovery(self, request: Request) -> Steps[Scored]:
        target = request.get("target")
        scored = Scored.NOTHING if target is None else (yield from self._of_vector(target))
        return _together({scored, (yield from self._of_pairs(request.get("context")))})

    def _of_pairs(self, context: Any) -> Steps[Scored]:
        """A context: pairs, of which a single one may come without an array."""
        pairs = [context] if isinstance(context, dict) else _array(context, "context")
        known = _BY_EXAMPLES["context"]
        for pair in pairs:
            if self._pace.is_step():
                yield None
            _with_members(pair, "context", known)
        return (yield from self._of_all(vector for pair in pairs for vector in pair.values()))

    def _of_feedback(self, asked: Request) -> Steps[Scored]:
        scored = yield from self._of_vector(asked.get("target"))
        items, known = _array(asked.get("feedback"), "feedback"), {"example", "score"}
        examples = (_with_members(item, "feedback", known).get("example") for item in items)
        return _together({scored, (yield from self._of_all(examples))})

    def _of_all(self, vectors: Iterable[Any]) -> Steps[Scored]:
        found = set()
        for vector in vectors:
            found.add((yield from self._of_vector(vector)))
        return _together(found)

    def _of_vector(self, value: Any) -> Steps[Scored]:
        """The kind of a vector: dense, multiple or sparse; a document that a model makes one of, which may be sparse;
        or that of a point, which may be any.

        `[[1, 2], [0.1, 0.2]]` are two dense vectors, or to serde a sparse one as (indices, values): it counts as both.
        """
        pace = self._pace
        if pace.is_step():
            yield None
        if isinstance(value, dict):
            if value.keys() == {"indices", "values"} and (yield from are_vectors(list(value.values()), pace)):
                return Scored.SPARSE
            if "model" in value and value.keys() <= _INFERENCE:
                return Scored.INFERRED
        elif isinstance(value, list):
            if (yield from are_numbers(value, pace)):
                return Scored.DENSE
            if (yield from are_vectors(value, pace)):
                sparse = len(value) == len(("indices", "values"))
                positional = sparse and (yield from are_numbers(value[0], pace, INTEGERS))
                return Scored.INFERRED if positional else Scored.DENSE
        elif (example := point_id_of(value)) is not None:
            self._place = self._place or place(self._collection, self._shard_key)
            self._examples.add(self._place, example)
            return Scored.INFERRED
        raise Unconfined(tenant_texts.UNUSUAL)


def _together(kinds: set[Scored]) -> Scored:
    """The kind of a query of several vectors, as far as it is known of all."""
    found = kinds - {Scored.NOTHING}
    if not found:
        return Scored.NOTHING
    return found.pop() if len(found) == 1 else Scored.INFERRED


def _scored_of_search(vector: Any, pace: Pace) -> Steps[tuple[Scored, str]]:
    """Kind and name of the older search's vector: a dense one, or one with its name. Raises :class:`BadRequest`."""
    if vector is None:
        return Scored.NOTHING, ""
    if (yield from are_numbers(vector, pace)):
        return Scored.DENSE, ""
    named = expect_object(vector, "vector")
    if isinstance(named.get("vector"), dict):
        return Scored.SPARSE, _text(named.get("name"), "vector.name")
    if not (yield from are_numbers(named.get("vector"), pace)):
        raise BadRequest("Format error in JSON body: vector.vector must be numbers, or indices and values")
    return Scored.DENSE, _text(named.get("name"), "vector.name")


def _with_members(value: Any, where: str, names: set[str]) -> Request:
    """An object with these members at most. Raises :class:`BadRequest`, and :class:`Unconfined` for another member."""
    if not expect_object(value, where).keys() <= names:
        raise Unconfined(tenant_texts.UNUSUAL)
    found: Request = value
    return found


def _text(value: Any, where: str) -> str:
    return "" if value is None else _name(value, where)


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(where, "a string")
    return value


def _array(value: Any, where: str) -> list[Any]:
    """A list; an absent one is empty."""
    if value is not None and not isinstance(value, list):
        raise wrong_type(where, "an array")
    return value or []


_COLLECTION: Final = "/collections/{collection_name}"
READS: Final = frozenset(
    f"{_COLLECTION}/{path}"
    for path in (
        "facet",
        "points/count",
        "points/discover",
        "points/discover/batch",
        "points/query",
        "points/query/batch",
        "points/query/groups",
        "points/recommend",
        "points/recommend/batch",
        "points/recommend/groups",
        "points/scroll",
        "points/search",
        "points/search/batch",
        "points/search/groups",
        "points/search/matrix/offsets",
        "points/search/matrix/pairs",
    )
)
_COUNTED: Final = frozenset({f"{_COLLECTION}/facet", f"{_COLLECTION}/points/count"})
"""Routes that answer with counts, or estimates."""
_GROUPED: Final = frozenset(f"{_COLLECTION}/points/{kind}/groups" for kind in ("query", "recommend", "search"))
_RECOMMENDED: Final = frozenset(f"{_COLLECTION}/points/recommend{path}" for path in ("", "/batch", "/groups"))
_DISCOVERED: Final = frozenset(f"{_COLLECTION}/points/discover{path}" for path in ("", "/batch"))
_SEARCHED: Final = frozenset(f"{_COLLECTION}/points/search{path}" for path in ("", "/batch", "/groups"))
"""Older routes that have ``vector`` instead of ``query`` and ``using``."""
_MATRICES: Final = frozenset(f"{_COLLECTION}/points/search/matrix/{path}" for path in ("offsets", "pairs"))
