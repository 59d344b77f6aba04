"""Expansion of `include`: patterns to the paths of files, in order. No file is opened.

A directory must exist, so that a misspelt one is no configuration without its pieces; that none of its files match is
no error.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tlsproxy.config.pieces import MAX_FILES
from tlsproxy.config.problems import ConfigError
from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot import bounded_io
from tlsproxy.snapshot.bounded_io import Unanswered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tlsproxy.config.pieces import Pattern
    from tlsproxy.config.problems import Problem

_TOO_MANY: Final = f"more than {MAX_FILES} files are included: join some of them"
_ITSELF: Final = "is this file itself: give the pieces a directory of their own, as conf.d/*.yaml"


def expanded(patterns: Sequence[Pattern], timeout: float) -> tuple[Path, ...]:
    """The files of all patterns, each once. Blocks for ``timeout`` seconds if a file system does not answer.

    Raises ConfigError, or MaterialError for a directory that cannot be read now.
    """
    globs = {pattern.path: partial(_names, pattern) for pattern in patterns if pattern.is_glob}
    found = bounded_io.outcomes(globs, timeout)
    problems: list[Problem] = []
    paths: dict[Path, None] = {}
    for pattern in patterns:
        names = found[pattern.path] if pattern.is_glob else [pattern.path.name]
        if isinstance(names, Unanswered):
            raise MaterialError(str(pattern.path.parent), f"its file system gives {names}", names.kind)
        if isinstance(names, OSError):
            if not isinstance(names, FileNotFoundError | NotADirectoryError):
                text = f"cannot be listed: {names.strerror}"
                raise MaterialError(str(pattern.path.parent), text, FailureKind.ENVIRONMENT)
            problems.append(
                pattern.problem(f"there is no directory {pattern.path.parent}: create it or correct the entry")
            )
            continue
        for name in names:
            path = pattern.path.parent / name
            if path.absolute() == Path(pattern.position.file).absolute():
                problems.append(pattern.problem(_ITSELF))
            paths[path] = None
    if len(paths) > MAX_FILES:
        problems.append(patterns[0].problem(_TOO_MANY))
    if problems:
        raise ConfigError(problems)
    return tuple(paths)


def _names(pattern: Pattern) -> list[str] | OSError:
    try:
        return sorted(_matching(pattern), key=os.fsencode)
    except OSError as error:
        return error


def _matching(pattern: Pattern) -> Iterator[str]:
    """Names that match, and one more than may be. A directory is none of them."""
    count = 0
    with os.scandir(pattern.path.parent) as entries:
        for entry in entries:
            if pattern.matches(entry.name) and not Path(entry.path).is_dir():
                yield entry.name
                count += 1
                if count > MAX_FILES:
                    return
