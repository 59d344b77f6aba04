"""Many globs at once: which of them match a value, without trying each.

A configuration may have thousands of rules and grants, and nearly all of them are exact or differ in how they begin. So
exact ones are looked up, and of globs only those are tried that begin as the value does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from tlsproxy.authz.globs import glob_matches, literal_beginning

T = TypeVar("T")


class Patterns(Generic[T]):
    """What patterns stand for, by what they match."""

    __slots__ = ("_begun", "_exact", "_lengths")

    def __init__(self, patterns: Iterable[tuple[str, T]]) -> None:
        self._exact: dict[str, list[T]] = {}
        self._begun: dict[str, list[tuple[str, T]]] = {}
        for pattern, item in patterns:
            beginning = literal_beginning(pattern)
            if beginning == pattern:
                self._exact.setdefault(pattern, []).append(item)
            else:
                self._begun.setdefault(beginning, []).append((pattern, item))
        self._lengths = sorted({len(beginning) for beginning in self._begun})

    def matching(self, value: str) -> list[T]:
        """In no order, the item of every pattern of which :func:`tlsproxy.authz.globs.glob_matches` says so."""
        found = list(self._exact.get(value, ()))
        for length in self._lengths:
            if length > len(value):
                break
            for pattern, item in self._begun.get(value[:length], ()):
                if glob_matches(pattern, value):
                    found.append(item)
        return found
