"""Pieces of a configuration: the files that its `include` names, merged into one tree. Reads no file.

Sections merge key by key, and lists are joined in the order of the files. A value that is set twice is an error that
names both places, never a silent choice. The tree's positions are of the file that has the value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from tlsproxy.config.positions import MAX_VALUES, Position, Tree, read_tree
from tlsproxy.config.positions import Path as TreePath
from tlsproxy.config.problems import ConfigError, Problem

INCLUDE: Final = "include"
MAX_FILES: Final = 1000
MAX_TOTAL: Final = 4 << 20
"""Bytes of all files of a configuration together; of each alone `MAX_BYTES` of :mod:`tlsproxy.config.positions`."""

_WILDCARDS: Final = frozenset("*?[")
MAIN_ONLY: Final = {
    INCLUDE: "a piece includes no other: name all of them in the main file",
    "bundle": "a piece names no bundle: the main file does",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A file of the configuration beside the main one. Its relative paths are relative to its own directory."""

    path: Path
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pattern:
    """An entry of `include`, with its position: a file, or the files of a directory whose names match."""

    path: Path
    where: TreePath
    position: Position

    @property
    def is_glob(self) -> bool:
        return not _WILDCARDS.isdisjoint(self.path.name)

    def matches(self, name: str) -> bool:
        """A hidden file matches only a pattern that begins with a dot, as in a shell."""
        return fnmatchcase(name, self.path.name) and (self.path.name.startswith(".") or not name.startswith("."))

    def problem(self, text: str) -> Problem:
        return self.position.problem(self.where, text)


def packed(main: bytes, pieces: Sequence[Piece]) -> tuple[bytes, ...]:
    """The bytes of all files, and the paths of the pieces, for :func:`unpacked`."""
    return (main, *(part for piece in pieces for part in (os.fsencode(piece.path), piece.data)))


def unpacked(data: Sequence[bytes]) -> tuple[bytes, tuple[Piece, ...]]:
    main, *rest = data
    pieces = zip(rest[::2], rest[1::2], strict=True)
    return main, tuple(Piece(Path(os.fsdecode(path)), content) for path, content in pieces)


@lru_cache(maxsize=1)
def patterns(data: bytes, path: Path) -> tuple[Pattern, ...]:
    """The patterns of a main file's `include`. Without one that can be used, which :func:`merged` reports, none."""
    if not may_have(INCLUDE, data):
        return ()
    try:
        with read_tree(data, str(path)) as tree:
            entries = include_entries(tree.root.get(INCLUDE))
            if any(pattern_fault(entry) for _, entry in entries):
                return ()
            return tuple(Pattern(path.parent / entry, where, tree.position(where)) for where, entry in entries)
    except ConfigError:
        return ()


def may_have(key: str, data: bytes) -> bool:
    """Whether a file may have this key, else it need not be parsed for it. An escape may stand for any letter."""
    return key.encode() in data or b"\\" in data


def include_entries(given: Any) -> list[tuple[TreePath, str]]:
    """The entries of `include` with their paths; none if it is neither text nor a list of texts."""
    if isinstance(given, str):
        return [((INCLUDE,), given)]
    listed = list(given) if isinstance(given, list | tuple) else []
    if not all(isinstance(entry, str) for entry in listed):
        return []
    return [((INCLUDE, index), entry) for index, entry in enumerate(listed)]


def pattern_fault(text: str) -> str:
    """The reason why an entry of `include` cannot be used; "" for none."""
    if not text or "\0" in text or Path(text).name in ("", ".."):
        return "must be a path of a file, or of several as conf.d/*.yaml"
    if "://" in text:
        return "a URL is not included: `include` names files"
    if not _WILDCARDS.isdisjoint(str(Path(text).parent)):
        return "wildcards are for file names alone: name each directory in an entry of its own"
    return ""


def merged(data: bytes, path: Path, pieces: Sequence[Piece], disclosed: Callable[[TreePath], TreePath]) -> Tree:
    """The tree of the main file and its pieces. Raises ConfigError if one is not YAML, for all of them."""
    trees: list[Tree] = []
    unread: list[Problem] = []
    values = 0
    for name, content in ((path, data), *((piece.path, piece.data) for piece in pieces)):
        try:
            tree = read_tree(content, str(name), disclosed)
        except ConfigError as error:
            unread += error.problems
            continue
        trees.append(tree)
        values += tree.values
        if values > MAX_VALUES:
            raise ConfigError([Position(str(name), 1, 1).problem((), "too many values, all files together")])
    if unread:
        raise ConfigError(unread)
    main, *others = trees
    for other in others:
        _Merge(main, other, disclosed).run()
    return main


class _Merge:
    """One piece into the main tree. ``_taken`` has the paths that come from the piece, with the shift of list items."""

    def __init__(self, main: Tree, piece: Tree, disclosed: Callable[[TreePath], TreePath]) -> None:
        self._main = main
        self._piece = piece
        self._disclosed = disclosed
        self._taken: dict[TreePath, int] = {}

    def run(self) -> None:
        main, piece = self._main, self._piece
        main.problems += piece.problems
        for key, value in piece.root.items():
            former = main.root.get(key)
            if key in MAIN_ONLY:
                self._problem((key,), MAIN_ONLY[key])
            elif isinstance(former, dict) and isinstance(value, dict):
                for inner, item in value.items():
                    self._put(former, (key, inner), item)
            else:
                self._put(main.root, (key,), value)
        while piece.positions:  # let go one by one, as those of any tree
            path, where = piece.positions.popitem()
            for size in (1, 2):
                shift = self._taken.get(path[:size])
                if shift is None:
                    continue
                if not shift or len(path) > size:
                    main.positions[_shifted(path, size, shift)] = where
                break

    def _put(self, mapping: dict[str, Any], path: TreePath, value: Any) -> None:
        """Set the last key of ``path`` in ``mapping``, or add to the list there. null sets nothing that is set."""
        key = str(path[-1])
        former = mapping.get(key)
        if former is None:
            mapping[key] = value
            self._taken[path] = 0
        elif isinstance(former, list) and isinstance(value, list):
            mapping[key] = former + value
            self._taken[path] = len(former)
        elif value is not None:
            first = self._main.positions[path]
            self._problem(path, f"set twice: the first is in {first.file}:{first.line}:{first.column}")

    def _problem(self, path: TreePath, text: str) -> None:
        self._main.problems.append(self._piece.positions[path].problem(self._disclosed(path), text))


def _shifted(path: TreePath, size: int, shift: int) -> TreePath:
    if not shift:
        return path
    return (*path[:size], int(path[size]) + shift, *path[size + 1 :])
