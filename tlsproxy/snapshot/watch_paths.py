"""Directories to watch for a set of files: all in which a change could give a path other content.

Links may be anywhere on the way, and each is a replaceable entry of a directory. For /etc/certs/live/tls.pem, where
`live` is a link to `v7`, these are /etc/certs (entry `live`) and /etc/certs/v7 (entry `tls.pem`). No file is opened.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tlsproxy.snapshot import bounded_io

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_LINKS: Final = 40
"""Linux's own limit (path_resolution(7))."""
_ANY: Final = "*"
"""Stands for any file of a directory."""


@dataclass(frozen=True, slots=True)
class WatchPaths:
    """Existing ``directories`` with device and inode, since a recreated one must be watched anew.

    ``entries`` are the relevant paths in them, the directories themselves included; in ``whole`` ones all are.
    """

    directories: Mapping[Path, tuple[int, int]]
    entries: frozenset[str]
    whole: frozenset[str] = frozenset()

    def matters(self, path: str) -> bool:
        return path in self.entries or str(Path(path).parent) in self.whole


def places_of(paths: Iterable[Path], timeout: float, whole: Iterable[Path] = ()) -> WatchPaths:
    """Directories and entries of all paths, and the ``whole`` directories.

    Blocks for ``timeout`` seconds if a file system does not answer, and leaves its paths out.
    """
    calls = {path: partial(_places, path.absolute()) for path in paths}
    calls |= {path / _ANY: partial(_places, path.absolute() / _ANY, whole=True) for path in whole}
    directories: dict[Path, tuple[int, int]] = {}
    entries: set[str] = set()
    entire: set[str] = set()
    for found in bounded_io.outcomes(calls, timeout).values():
        if isinstance(found, WatchPaths):
            directories |= found.directories
            entries |= found.entries
            entire |= found.whole
    return WatchPaths(directories, frozenset(entries), frozenset(entire))


def _places(path: Path, *, whole: bool = False) -> WatchPaths:
    steps = list(_entries(path))
    entries, directories = set(steps), {}
    for entry in steps:
        # The entry of a missing directory is watched in the one above: it may come back.
        for directory in entry.parents:
            entries.add(directory)
            try:
                status = directory.stat()
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                directories[directory] = (status.st_dev, status.st_ino)
                break
    return WatchPaths(directories, frozenset(map(str, entries)), frozenset([str(steps[-1].parent)] if whole else ()))


def _entries(path: Path) -> Iterator[Path]:
    """Each link on the way to the file, and the file; no path has a link before its last part."""
    current = Path(path.anchor)
    todo = list(reversed(path.parts[1:]))
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            current = current.parent
            continue
        step = current / part
        try:
            target = step.readlink() if step.is_symlink() else None
        except OSError:  # not readable, or being replaced: the next poll finds its target
            yield step
            return
        if target is None:
            current = step
            continue
        yield step
        links += 1
        if links > MAX_LINKS:
            return
        if target.is_absolute():
            current = Path(target.anchor)
        todo.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    yield current
