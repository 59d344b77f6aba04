"""Globs over names: collections in grants, certificate fields and claims in rules.

``*`` is any run of characters except ``/`` and ``.``, ``**`` any run at all, ``?`` one character except ``/`` and
``.``; everything else stands for itself, and case matters. So ``*`` alone matches the collection ``docs`` but not
``docs.v2`` (``**`` does), ``*.example.org`` covers one label as RFC 6125 §6.4.3 has it, and ``spiffe://a/*`` stops at
the next ``/``. In claims only ``/`` separates (``CLAIM_SEPARATORS``), for mail addresses and domains have dots:
``alice@*`` matches ``alice@example.org``.

A pattern is a nondeterministic automaton whose states are the bits of one integer, with one step for each character:
the time is linear in the value for any pattern. A backtracking regex of ``*-*-*-*`` is not, and a client chooses the
collection name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

LONGEST: Final = 1024
SEPARATORS: Final = frozenset("/.")
CLAIM_SEPARATORS: Final = frozenset("/")
_WILDCARDS: Final = frozenset("*?")


@dataclass(frozen=True, slots=True)
class _GlobAutomaton:
    """Bit i of the state: the first i single-character items matched. Masks: bits that a character keeps or moves."""

    accept: int
    literals: dict[str, int]
    any_one: int
    loops_within: int
    loops_across: int

    def matches(self, value: str, separators: AbstractSet[str]) -> bool:
        state = 1
        for character in value:
            if character in separators:
                moves, stays = 0, self.loops_across
            else:
                moves, stays = self.any_one, self.loops_within
            moves |= self.literals.get(character, 0)
            state = ((state & moves) << 1) | (state & stays)
            if not state:
                return False
        return bool(state & self.accept)


@lru_cache(maxsize=1024)
def _automaton(pattern: str) -> _GlobAutomaton:
    literals: dict[str, int] = {}
    any_one = within = across = 0
    bit = 1
    index = 0
    while index < len(pattern):
        character = pattern[index]
        if character == "*":
            within |= bit
            if pattern.startswith("**", index):
                across |= bit
                index += 1
        else:
            if character == "?":
                any_one |= bit
            else:
                literals[character] = literals.get(character, 0) | bit
            bit <<= 1
        index += 1
    return _GlobAutomaton(accept=bit, literals=literals, any_one=any_one, loops_within=within, loops_across=across)


def is_exact(pattern: str) -> bool:
    """Whether it has no wildcard, and so matches only itself."""
    return _WILDCARDS.isdisjoint(pattern)


def glob_matches(pattern: str, value: str, separators: AbstractSet[str] = SEPARATORS) -> bool:
    """Whether ``pattern`` matches the whole of ``value``."""
    if _WILDCARDS.isdisjoint(pattern):
        return pattern == value
    return _automaton(pattern).matches(value, separators)


def literal_beginning(pattern: str) -> str:
    """The pattern up to its first wildcard: the beginning of every match."""
    return next((pattern[:at] for at, character in enumerate(pattern) if character in _WILDCARDS), pattern)


def literal_ending(pattern: str) -> str:
    """The pattern behind its last wildcard: the end of every match."""
    return literal_beginning(pattern[::-1])[::-1]


def glob_error(pattern: str) -> str | None:
    """The reason why this is no valid pattern, or None."""
    if not pattern:
        return "an empty pattern matches nothing"
    if len(pattern) > LONGEST:
        return f"longer than {LONGEST} characters"
    if any(unicodedata.category(character) == "Cc" for character in pattern):
        return "holds a control character"
    if "***" in pattern:
        return "'***' is neither '*' (stops at separators) nor '**' (does not)"
    return None
