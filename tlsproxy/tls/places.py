"""Which directories to watch for a set of files: all in which a change could lead a path to other bytes.

A path leads to its file through links, in its last part (certbot's live/, Kubernetes' ..data) or before it, and each is
an entry of some directory that can be replaced there. It reads no content and opens no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_LINKS: Final = 40
"""As many as Linux follows (path_resolution(7))."""


@dataclass(frozen=True, slots=True)
class Places:
    """``directories`` that exist, each with device and inode: one that was recreated must be watched anew.

    ``entries`` are the paths in them that matter, the directories themselves included.
    """

    directories: Mapping[Path, tuple[int, int]]
    entries: frozenset[str]


def places_of(paths: Iterable[Path]) -> Places:
    entries = {entry for path in paths for entry in _entries(path.absolute())}
    directories = {}
    for directory in {entry.parent for entry in entries}:
        try:
            status = directory.stat()
        except OSError:
            continue  # it is not there now, or not for us; a reading of the file says so where it matters
        directories[directory] = (status.st_dev, status.st_ino)
    return Places(directories, frozenset(map(str, entries | directories.keys())))


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
        if not step.is_symlink():
            current = step
            continue
        yield step
        links += 1
        if links > MAX_LINKS:
            return
        try:
            target = step.readlink()
        except OSError:
            return  # replaced at this moment; the next pass finds where it leads
        if target.is_absolute():
            current = Path(target.anchor)
        todo.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    yield current
