"""Many globs at once: which of them match a value, without trying each.

A configuration may have thousands of rules and grants, and nearly all of them are exact or differ in how they begin or
end. So exact ones are looked up, and of globs only those are tried that begin or end as the value does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeAlias, TypeVar

from tlsproxy.authz.globs import glob_matches, literal_beginning, literal_ending

EXACT: Final = "is"
BEGINS: Final = "begins with"
ENDS: Final = "ends with"

Trait: TypeAlias = tuple[str, str]
T = TypeVar("T")


def trait_of(pattern: str) -> Trait:
    """What every value has that matches: it is this text, or begins or ends with it, whichever tells more."""
    beginning = literal_beginning(pattern)
    if beginning == pattern:
        return EXACT, pattern
    ending = literal_ending(pattern)
    return (BEGINS, beginning) if len(beginning) >= len(ending) else (ENDS, ending)


class Patterns(Generic[T]):
    """What patterns stand for, by what they match."""

    __slots__ = ("_by_trait", "_lengths")

    def __init__(self, patterns: Iterable[tuple[str, T]]) -> None:
        self._by_trait: dict[Trait, list[tuple[str, T]]] = {}
        for pattern, item in patterns:
            self._by_trait.setdefault(trait_of(pattern), []).append((pattern, item))
        self._lengths = sorted({(len(text), kind) for kind, text in self._by_trait if kind != EXACT})

    def matching(self, value: str) -> list[T]:
        """In no order, the item of every pattern of which :func:`tlsproxy.authz.globs.glob_matches` says so."""
        found = [item for _, item in self._by_trait.get((EXACT, value), ())]
        for length, kind in self._lengths:
            if length > len(value):
                break
            text = value[:length] if kind == BEGINS else value[len(value) - length :]
            for pattern, item in self._by_trait.get((kind, text), ()):
                if glob_matches(pattern, value):
                    found.append(item)
        return found
