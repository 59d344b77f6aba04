"""Query policy: bounds of a role's queries, and parts of points that are hidden from it.

Several policies are merged to the stricter of each part. Hidden keys are compared as paths: `a.b`, `a[].b` and
`"a"."b"` are one, and Qdrant's filters through a nested object meet it too, since arrays have no step of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Final, TypeAlias

KeyPath: TypeAlias = tuple[str, ...]
"""Keys of nested objects, from the outermost; steps into arrays are left out."""
KeyTree: TypeAlias = "dict[str, KeyTree | None]"
"""Hidden keys by their first one; None where the path ends."""

MAX_PATH: Final = 1024
"""Characters of a path."""
# Qdrant's plain keys have letters, digits, "_" and "-". More is read here, which it refuses.
_KEY: Final = r'(?:"([^"\\]*)"|([^.\[\]"]+))(?:\[[0-9]*\])*'
_FIRST: Final = re.compile(_KEY)
_NEXT: Final = re.compile(rf"\.{_KEY}")


def parse_key_path(text: str) -> KeyPath:
    """The keys of a payload path as Qdrant reads it. Raises ValueError."""
    path, found = [], _FIRST.match(text) if len(text) <= MAX_PATH else None
    end = 0
    while found is not None:
        quoted, plain = found.groups()
        path.append(plain if quoted is None else quoted)
        end = found.end()
        found = _NEXT.match(text, end)
    if not path or end < len(text):
        raise ValueError('a payload path is expected, such as salary, contact.email, people[].name or "a key".b')
    return tuple(path)


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    """Whether they are the same, or one is below the other."""
    return all(mine == yours for mine, yours in zip(one, other, strict=False))


@dataclass(frozen=True, slots=True)
class HiddenKeys:
    """Paths of a payload that are hidden, each with all below it; none is below another."""

    paths: frozenset[KeyPath] = frozenset()
    tree: KeyTree = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tree: KeyTree = {}
        for *above, last in self.paths:
            node: KeyTree = tree
            for key in above:
                below = node.get(key)
                if below is None:
                    node[key] = below = {}
                node = below
            node[last] = None
        object.__setattr__(self, "tree", tree)

    def __bool__(self) -> bool:
        return bool(self.paths)

    def __str__(self) -> str:
        return ", ".join(sorted(map(spelled, self.paths)))

    def touch(self, path: KeyPath) -> bool:
        """Whether the path is hidden, or below or above one that is."""
        return any(_overlap(hidden, path) for hidden in self.paths)

    def cover(self, path: KeyPath) -> bool:
        """Whether the path is hidden, or below one that is."""
        return any(len(hidden) <= len(path) and _overlap(hidden, path) for hidden in self.paths)


def hidden_keys(paths: Iterable[KeyPath]) -> HiddenKeys:
    """These paths, without those below another."""
    kept: set[KeyPath] = set()
    for path in sorted(paths, key=len):
        if not any(path[: len(above)] == above for above in kept):
            kept.add(path)
    return HiddenKeys(frozenset(kept))


_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")


def spelled(path: KeyPath) -> str:
    """The path as Qdrant writes it."""
    return ".".join(key if _PLAIN.fullmatch(key) is not None else f'"{key}"' for key in path)


@dataclass(frozen=True, slots=True)
class QueryPolicy:
    """``timeout`` is in whole seconds, as Qdrant takes it; None is for no bound."""

    max_limit: int | None = None
    max_offset: int | None = None
    max_prefetch: int | None = None
    forbids_exact: bool = False
    timeout: int | None = None
    hides_vectors: bool = False
    hidden: HiddenKeys = HiddenKeys()
    _given: bool = field(init=False, repr=False, compare=False)
    """Whether it has any part, which every request and message of its callers asks."""

    def __post_init__(self) -> None:
        given = any(getattr(self, part.name) != part.default for part in fields(self) if part.init)
        object.__setattr__(self, "_given", given)

    def __bool__(self) -> bool:
        return self._given

    @property
    def hides(self) -> bool:
        """Whether it takes anything out of answers."""
        return self.hides_vectors or bool(self.hidden)

    def merged(self, other: QueryPolicy) -> QueryPolicy:
        """The stricter of both in each part."""
        if not other:
            return self
        return QueryPolicy(
            max_limit=_least(self.max_limit, other.max_limit),
            max_offset=_least(self.max_offset, other.max_offset),
            max_prefetch=_least(self.max_prefetch, other.max_prefetch),
            forbids_exact=self.forbids_exact or other.forbids_exact,
            timeout=_least(self.timeout, other.timeout),
            hides_vectors=self.hides_vectors or other.hides_vectors,
            hidden=hidden_keys(self.hidden.paths | other.hidden.paths),
        )

    def meets(self, other: QueryPolicy) -> bool:
        """Whether it is as strict as the other in each part, so that what it has passed, the other passes too."""
        return self.merged(other) == self

    def __str__(self) -> str:
        """Spelled as in the configuration: `max_limit 100, exact forbid, payload hide salary`."""
        parts = [
            f"{name} {value}"
            for name, value in (
                ("max_limit", self.max_limit),
                ("max_offset", self.max_offset),
                ("max_prefetch", self.max_prefetch),
                ("exact", "forbid" if self.forbids_exact else None),
                ("timeout", self.timeout),
                ("vectors", "hide" if self.hides_vectors else None),
                ("payload", f"hide {self.hidden}" if self.hidden else None),
            )
            if value is not None
        ]
        return ", ".join(parts)


NO_POLICY: Final = QueryPolicy()


def merged(policies: Iterable[QueryPolicy]) -> QueryPolicy:
    """The stricter of all in each part."""
    return reduce(QueryPolicy.merged, policies, NO_POLICY)


def _least(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)
