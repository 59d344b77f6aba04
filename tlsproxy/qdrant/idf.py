"""Inverse document frequencies (IDF): which queries are scored by them, and over which points a tenant's are counted.

A sparse vector with the modifier `idf` (BM25's, for one) and a text query (since Qdrant 1.20) are scored by how many
points there are, and how many of them have a word: in the whole collection, unless `params.idf.corpus` names a filter
(since 1.19). An older Qdrant ignores that member in silence, and on a vector without the modifier it is an error. So
what such a query becomes depends on :class:`Facts` that the upstream has to be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

import orjson

from tlsproxy.errors import Unconfined

CORPUS: Final = (1, 19)
TEXT: Final = (1, 20)
"""The releases of Qdrant that first have the parameter, and the query."""

_NO_CORPUS: Final = (
    "Sparse and inferred queries cannot be confined to a tenant by this upstream: Qdrant {}.{} or later is needed"
)
_NO_TEXT: Final = "Text queries need Qdrant {}.{} or later as the upstream"
MATRIX: Final = "A matrix over a sparse vector with IDF cannot be confined to a tenant"


class Words(Enum):
    """How a query's scores may depend on how rare words are."""

    NONE = "none"
    SPARSE = "sparse"
    """A sparse vector, or what a model may make one of: where the vector has the modifier."""
    TEXT = "text"


class FactsNeeded(Exception):
    """A body whose confined form depends on facts that are not known, or may be out of date."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the upstream said of itself and of one collection. None is what it did not say intelligibly.

    ``vectors`` are the sparse vectors with the modifier. ``fresh``: asked for the request at hand.
    """

    release: tuple[int, int] | None = None
    vectors: frozenset[str] | None = None
    fresh: bool = True

    def remembered(self) -> Facts:
        return replace(self, fresh=False)


def needs_corpus(words: Words, using: str, facts: Facts | None) -> bool:
    """Whether a query of the vector ``using`` must name the points that are counted.

    That a vector has the modifier is believed though it may be out of date, for all that is wrong then is an error of
    Qdrant's; that it has none is not. Raises :class:`FactsNeeded`, :class:`Unconfined`.
    """
    if words is Words.NONE:
        return False
    if facts is None:
        raise FactsNeeded
    if words is Words.TEXT:
        _require(TEXT, facts, _NO_TEXT)
        return True
    if facts.vectors is not None and using not in facts.vectors:
        if not facts.fresh:
            raise FactsNeeded
        return False
    _require(CORPUS, facts, _NO_CORPUS)
    return True


def check_matrix(using: str, facts: Facts | None) -> None:
    """A matrix has no parameters that could name a corpus. Raises :class:`FactsNeeded`, :class:`Unconfined`."""
    if facts is None or not facts.fresh:
        raise FactsNeeded
    if facts.vectors is None or using in facts.vectors:
        raise Unconfined(MATRIX)


def _require(release: tuple[int, int], facts: Facts, text: str) -> None:
    if facts.release is None or facts.release < release:
        raise Unconfined(text.format(*release))


def release_in(answer: bytes) -> tuple[int, int] | None:
    """Of Qdrant's answer to `GET /`; None for anything else."""
    match _parsed(answer):
        case {"version": str(version)}:
            major, _, rest = version.partition(".")
            minor = rest.partition(".")[0]
            if major.isdecimal() and minor.isdecimal() and len(version) <= _LONGEST_VERSION:
                return int(major), int(minor)
    return None


def vectors_in(answer: bytes) -> frozenset[str] | None:
    """The sparse vectors with the modifier, of Qdrant's answer to `GET /collections/{name}`; None for anything else."""
    match _parsed(answer):
        case {"result": {"config": {"params": dict(params)}}}:
            sparse = params.get("sparse_vectors") or {}
            if isinstance(sparse, dict):
                return frozenset(name for name, vector in sparse.items() if not _is_plain(vector))
    return None


_LONGEST_VERSION: Final = 64


def _is_plain(vector: Any) -> bool:
    """One modifier that is not known here may count words as well."""
    return isinstance(vector, Mapping) and vector.get("modifier") in {None, "none"}


def _parsed(answer: bytes) -> Any:
    try:
        return orjson.loads(answer)
    except ValueError:
        return None
