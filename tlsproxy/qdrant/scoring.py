"""Scores that depend on other tenants' points: by document frequencies, and by codes of quantization.

Inverse document frequencies: queries of a sparse vector with the modifier `idf` (BM25, for example) and text queries
(since Qdrant 1.20) are scored by the number of points, and of points with a word, in the whole collection, unless
`params.idf.corpus` is a filter (since 1.19). An older Qdrant silently ignores that member, and for a vector without the
modifier it is an error. So the confined form of a query depends on :class:`Facts` that the upstream is asked for.

Quantization: codes are computed from the range, or the clusters, of all vectors of a segment, so that scores by codes
tell of these; with `params.quantization.rescore` scores are computed from the vectors themselves. There is no such
parameter for the weights of a sparse index of datatype `uint8`, which are coded by the range of each dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

import orjson

from tlsproxy.errors import Unconfined
from tlsproxy.qdrant.releases import release_of, version_in

CORPUS: Final = (1, 19)
TEXT: Final = (1, 20)
"""The first releases of Qdrant with the parameter, and with the query."""

_NO_CORPUS: Final = (
    "Sparse and inferred queries cannot be confined to a tenant by this upstream: Qdrant {}.{} or later is needed"
)
_NO_TEXT: Final = "Text queries need Qdrant {}.{} or later as the upstream"
CODED: Final = "A query of a sparse vector whose index is of datatype uint8 cannot be confined to a tenant"
MATRIX: Final = "A matrix over a quantized vector, or a sparse one with IDF, cannot be confined to a tenant"


class Scored(Enum):
    """The kinds of queries, by the source of their scores."""

    NOTHING = "nothing"
    """No vector, or the scores of prefetches."""
    DENSE = "dense"
    SPARSE = "sparse"
    INFERRED = "inferred"
    """A vector that a model makes: dense or sparse."""
    TEXT = "text"


class FactsNeeded(Exception):
    """The confined form of a body depends on facts that are missing, or may be outdated."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of the upstream and of one collection; None for a part that is missing or not understood.

    ``weighted``: the sparse vectors with the modifier; ``coded``: those with coded weights; ``quantized``: the dense
    vectors with quantization. ``fresh``: fetched for the present request.
    """

    release: tuple[int, int] | None = None
    weighted: frozenset[str] | None = None
    quantized: frozenset[str] | None = None
    coded: frozenset[str] = frozenset()
    fresh: bool = True

    def remembered(self) -> Facts:
        return replace(self, fresh=False)


def needs_corpus(scored: Scored, using: str, facts: Facts | None) -> bool:
    """Whether a query of the vector ``using`` needs a corpus, the filter of the points that are counted.

    Facts that are not fresh suffice for a yes: if it is outdated, Qdrant answers with an error. They do not suffice for
    a no. Raises :class:`FactsNeeded`, :class:`Unconfined`.
    """
    if scored in {Scored.NOTHING, Scored.DENSE}:
        return False
    if facts is None:
        raise FactsNeeded
    if scored is Scored.TEXT:
        _require(TEXT, facts, _NO_TEXT)
        return True
    if using in facts.coded:
        raise Unconfined(CODED)
    if facts.weighted is not None and using not in facts.weighted:
        if not facts.fresh:
            raise FactsNeeded
        return False
    _require(CORPUS, facts, _NO_CORPUS)
    return True


def check_matrix(using: str, facts: Facts | None) -> None:
    """Checks a matrix, which has no parameters to confine. Raises :class:`FactsNeeded`, :class:`Unconfined`."""
    if facts is None or not facts.fresh:
        raise FactsNeeded
    if facts.weighted is None or facts.quantized is None or using in facts.weighted | facts.quantized | facts.coded:
        raise Unconfined(MATRIX)


def is_rescored(scored: Scored) -> bool:
    """Whether quantized vectors may be used for its scores."""
    return scored in {Scored.DENSE, Scored.INFERRED}


def _require(release: tuple[int, int], facts: Facts, text: str) -> None:
    if facts.release is None or facts.release < release:
        raise Unconfined(text.format(*release))


def release_in(answer: bytes) -> tuple[int, int] | None:
    """The release in Qdrant's answer to `GET /`; None for anything else."""
    return release_of(version_in(answer))


def described(release: tuple[int, int] | None, answer: bytes) -> Facts:
    """The facts in Qdrant's answer to `GET /collections/{name}`."""
    match _parsed(answer):
        case {"result": {"config": {"params": dict(params)} as config}}:
            sparse = params.get("sparse_vectors")
            return Facts(release, _weighted(sparse), _quantized(config, params.get("vectors")), coded=_coded(sparse))
    return Facts(release)


def _weighted(sparse: Any) -> frozenset[str] | None:
    """The vectors with a modifier; an unknown one may count words too."""
    if not isinstance(sparse, dict):
        return frozenset() if sparse is None else None
    return frozenset(
        name
        for name, vector in sparse.items()
        if not isinstance(vector, dict) or vector.get("modifier") not in {None, "none"}
    )


def _coded(sparse: Any) -> frozenset[str]:
    """The vectors with coded weights; an unknown datatype may be a code too."""
    vectors = sparse.items() if isinstance(sparse, dict) else ()
    return frozenset(name for name, vector in vectors if not _is_plain(vector))


def _is_plain(vector: Any) -> bool:
    index = vector.get("index") if isinstance(vector, dict) else None
    return not isinstance(index, dict) or index.get("datatype") in {None, "float32", "float16"}


def _quantized(config: dict[str, Any], dense: Any) -> frozenset[str] | None:
    """The vectors with quantization, of their own or by the collection; an unknown configuration counts as one."""
    if not isinstance(dense, dict):
        return frozenset() if dense is None else None
    named = {"": dense} if "size" in dense and not isinstance(dense["size"], dict) else dense
    by_collection = config.get("quantization_config") is not None
    return frozenset(
        name
        for name, vector in named.items()
        if by_collection or not isinstance(vector, dict) or vector.get("quantization_config") is not None
    )


def _parsed(answer: bytes) -> Any:
    try:
        return orjson.loads(answer)
    except ValueError:
        return None
