"""Which directories to watch for a set of files: all in which a change could lead a path to other bytes.

A path leads to its file through links, in its last part (certbot's live/, Kubernetes' ..data) or before it, and each is
an entry of some directory that can be replaced there. It reads no content and opens no file.
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
"""As many as Linux follows (path_resolution(7))."""


@dataclass(frozen=True, slots=True)
class WatchPaths:
    """``directories`` that exist, each with device and inode: one that was recreated must be watched anew.

    ``entries`` are the paths in them that matter, the directories themselves included.
    """

    directories: Mapping[Path, tuple[int, int]]
    entries: frozenset[str]


def places_of(paths: Iterable[Path], timeout: float) -> WatchPaths:
    """Blocks for ``timeout`` seconds where a file system does not answer, and has no places of a path on it then."""
    calls = {path: partial(_places, path.absolute()) for path in paths}
    directories: dict[Path, tuple[int, int]] = {}
    entries: set[str] = set()
    for found in bounded_io.outcomes(calls, timeout).values():
        if isinstance(found, WatchPaths):
            directories |= found.directories
            entries |= found.entries
    return WatchPaths(directories, frozenset(entries))


def _places(path: Path) -> WatchPaths:
    entries, directories = set(_entries(path)), {}
    for entry in list(entries):
        # Where a directory is not there the one above it has its entry: it may come back.
        for directory in entry.parents:
            entries.add(directory)
            try:
                status = directory.stat()
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                directories[directory] = (status.st_dev, status.st_ino)
                break
    return WatchPaths(directories, frozenset(map(str, entries)))


def _entries(path: Path) -> Iterator[Path]:
    """Each link on the way to the file, and the file, by paths that have no link before their last part."""
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
        except OSError:  # not for us, or replaced at this moment; the next pass finds where it leads
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
