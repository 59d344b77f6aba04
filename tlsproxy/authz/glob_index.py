"""An index of globs: finds those that match a value without trying each.

A configuration may have thousands of rules and grants, nearly all exact or with different beginnings or ends. Exact
ones are looked up, and only globs with the value's beginning or end are tried: for `team-a.docs`, `team-a.*` is, and
`team-b.*` is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Final, Generic, TypeAlias, TypeVar

from tlsproxy.authz.globs import SEPARATORS, glob_matches, literal_beginning, literal_ending

EXACT: Final = "is"
BEGINS: Final = "begins with"
ENDS: Final = "ends with"

Trait: TypeAlias = tuple[str, str]
T = TypeVar("T")


def trait_of(pattern: str) -> Trait:
    """A necessary condition of a match: the value is this text, or begins or ends with it, whichever text is longer."""
    beginning = literal_beginning(pattern)
    if beginning == pattern:
        return EXACT, pattern
    ending = literal_ending(pattern)
    return (BEGINS, beginning) if len(beginning) >= len(ending) else (ENDS, ending)


class Patterns(Generic[T]):
    """Items by pattern."""

    __slots__ = ("_by_trait", "_lengths", "_separators")

    def __init__(self, patterns: Iterable[tuple[str, T]], separators: AbstractSet[str] = SEPARATORS) -> None:
        self._separators = separators
        self._by_trait: dict[Trait, list[tuple[str, T]]] = {}
        for pattern, item in patterns:
            self._by_trait.setdefault(trait_of(pattern), []).append((pattern, item))
        self._lengths = sorted({(len(text), kind) for kind, text in self._by_trait if kind != EXACT})

    def parts(self) -> Iterable[object]:
        """Its objects, to be freed one by one."""
        return self._by_trait.items()

    def matching(self, value: str) -> list[T]:
        """The items of all patterns that match the value (:func:`tlsproxy.authz.globs.glob_matches`), in no order."""
        items = [item for _, item in self._by_trait.get((EXACT, value), ())]
        for length, kind in self._lengths:
            if length > len(value):
                break
            text = value[:length] if kind == BEGINS else value[len(value) - length :]
            for pattern, item in self._by_trait.get((kind, text), ()):
                if glob_matches(pattern, value, self._separators):
                    items.append(item)
        return items
