"""The configuration as files: the main one, those of its `include`, and the bundle that its `bundle` keeps.

All of one moment: a set whose links, directories or contents change while it is read is not used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from tlsproxy.config.bundle import MAX_BUNDLE, Bundle, opened
from tlsproxy.config.loader import bundle_settings
from tlsproxy.config.pieces import MAX_TOTAL, Piece, patterns
from tlsproxy.config.positions import MAX_BYTES
from tlsproxy.config.problems import ConfigError
from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot.include import expanded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tlsproxy.config.pieces import Pattern

KEY_LIMIT: Final = 64 << 10
_AT_ONCE: Final = 16
"""Files of `include` that are read before their size together is looked at."""


class Access(Protocol):
    """Reading with a deadline. Both give a result or an error for each path."""

    @property
    def timeout(self) -> float: ...
    def contents(self, paths: Iterable[Path], limit: int) -> Mapping[Path, bytes | MaterialError]: ...
    def targets(self, paths: Iterable[Path]) -> Mapping[Path, Path | MaterialError]: ...


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """``beside`` are all files but the main one, ``held`` those in the bundle, by the path that the configuration has.

    Files in ``directories`` may become pieces.
    """

    main: bytes = field(repr=False)
    pieces: tuple[Piece, ...] = field(default=(), repr=False)
    beside: Mapping[Path, bytes] = field(default_factory=dict, repr=False)
    directories: frozenset[Path] = frozenset()
    bundle: Bundle | None = None
    cache: Path | None = None

    def holds(self, path: Path) -> bool:
        """Whether a path is relative to the bundle, also one that would lead out of it."""
        return self.cache is not None and self.cache in path.parents

    def held(self, path: Path) -> bytes | MaterialError:
        """A file in the bundle, which has no directories."""
        if self.bundle is None or path.parent != self.cache or path.name not in self.bundle.files:
            version = "" if self.bundle is None else f"version {self.bundle.version} of "
            return MaterialError(str(path), f"is not in {version}the bundle: sign it with this file")
        return self.bundle.files[path.name]


def directories_of(data: bytes, config_path: Path) -> frozenset[Path]:
    """Directories in which files of `include` may appear."""
    return frozenset(entry.path.parent for entry in patterns(data, config_path) if entry.is_glob)


def config_files(
    data: bytes, config_path: Path, environ: Mapping[str, str], access: Access, candidate: bytes | None = None
) -> ConfigFiles:
    """All files of the configuration whose main one has these bytes; ``candidate`` takes the place of its bundle.

    Raises ConfigError or MaterialError.
    """
    pieces = _included(patterns(data, config_path), access)
    beside = {piece.path: piece.data for piece in pieces}
    directories, settings = directories_of(data, config_path), bundle_settings(data, config_path, environ)
    if settings is None:
        return ConfigFiles(data, pieces, beside, directories)
    cache = settings.cache
    beside |= _sound(access.contents(settings.keys, KEY_LIMIT))
    if candidate is None:
        kept = access.contents([cache], MAX_BUNDLE)[cache]
        if isinstance(kept, MaterialError):
            raise MaterialError(
                str(cache), f"there is no bundle that was fetched ({kept.text}); `run` and a reload fetch it", kept.kind
            )
        beside[cache] = kept
    keys = [(str(path), beside[path]) for path in settings.keys]
    bundle = opened(str(cache), beside[cache] if candidate is None else candidate, keys)
    return ConfigFiles(data, (*pieces, *bundle.pieces(cache)), beside, directories, bundle, cache)


def _included(entries: Sequence[Pattern], access: Access) -> tuple[Piece, ...]:
    paths = expanded(entries, access.timeout)
    targets = access.targets(paths)
    named = {entry.path: entry for entry in entries}
    for path, target in targets.items():
        if isinstance(target, MaterialError):
            if path in named and target.kind is FailureKind.INPUT:
                raise ConfigError([named[path].problem(str(target))])
            raise target
    pieces: list[Piece] = []
    for start in range(0, len(paths), _AT_ONCE):
        read = _sound(access.contents(paths[start : start + _AT_ONCE], MAX_BYTES))
        pieces += [Piece(path, read[path]) for path in paths[start : start + _AT_ONCE]]
        if sum(len(piece.data) for piece in pieces) > MAX_TOTAL:
            raise ConfigError([entries[0].problem(f"the files have more than {MAX_TOTAL >> 20} MiB together")])
    if access.targets(paths) != targets or expanded(entries, access.timeout) != paths:
        where = str(entries[0].position.file)
        text = "files of `include` changed while they were read; trying again later"
        raise MaterialError(where, text, FailureKind.ENVIRONMENT)
    return tuple(pieces)


def _sound(read: Mapping[Path, bytes | MaterialError]) -> dict[Path, bytes]:
    """All contents. Raises the first error."""
    sound = {}
    for path, content in read.items():
        if isinstance(content, MaterialError):
            raise content
        sound[path] = content
    return sound
