"""Where audit lines end up: Qdrant's rotating files, or the standard output. For one thread; blocks; raises OSError.

Files are named as Qdrant names its own (tracing_appender: `audit.YYYY-MM-DD.log`, hourly `audit.YYYY-MM-DD-HH.log`,
UTC), appended to on restart, and pruned to the newest `max_files` of exactly that pattern. As in Qdrant nothing is
synced to the disk: a line survives our crash, not that of the machine.

A file that somebody removed or renamed is noticed before each write, for the open descriptor would swallow lines for
ever. Nothing here retries, and nothing else in the directory is ever touched.
"""

from __future__ import annotations

import logging
import os
import re
import select
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

Rotation = Literal["daily", "hourly"]

_log = logging.getLogger(__name__)

_FORMAT: Final[dict[Rotation, str]] = {"daily": "audit.%Y-%m-%d.log", "hourly": "audit.%Y-%m-%d-%H.log"}
_PATTERN: Final[dict[Rotation, re.Pattern[str]]] = {
    "daily": re.compile(r"audit\.\d{4}-\d{2}-\d{2}\.log", re.ASCII),
    "hourly": re.compile(r"audit\.\d{4}-\d{2}-\d{2}-\d{2}\.log", re.ASCII),
}

_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""A symlink is not followed and a FIFO does not block: who can write to the directory must not choose the file."""

_STANDARD_OUTPUT: Final = 1


class Sink(Protocol):
    """What the writer thread appends to."""

    def ready(self, when: float) -> bool:
        """Makes it fit for a write at `when` (seconds since the epoch).

        True where what was written before stands elsewhere: a line that was begun there must be begun again.
        """

    def append(self, data: memoryview) -> int:
        """Writes a beginning of `data`, and returns how many bytes of it."""

    def close(self) -> None: ...


class AuditFiles:
    """The rotating files of one directory: 0600 in 0700.

    The directory is created once, before anything is written. One that vanishes later may be a disk that was
    unmounted, and one made in its place would be hidden as soon as it is back.
    """

    def __init__(self, directory: Path, rotation: Rotation, max_files: int) -> None:
        self._directory = directory
        self._rotation: Rotation = rotation
        self._max_files = max_files
        self._fd = -1
        self._path = directory
        self._begun = False

    def __repr__(self) -> str:
        return f"AuditFiles({self._path})"

    def ready(self, when: float) -> bool:
        path = self._directory / datetime.fromtimestamp(when, UTC).strftime(_FORMAT[self._rotation])
        if self._fd >= 0 and path == self._path and self._in_place():
            return False
        self.close()
        if not self._begun:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = _open(path)
        self._path = path
        self._begun = True
        self._prune()
        return True

    def append(self, data: memoryview) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _in_place(self) -> bool:
        try:
            named = self._path.lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._fd))

    def _prune(self) -> None:
        """A file that cannot be removed is told of and left: an old line too many is no reason to lose a new one.

        The current file stays even where a clock that was wrong once has left files with later names.
        """
        pattern = _PATTERN[self._rotation]
        try:
            names = {entry.name for entry in self._directory.iterdir() if pattern.fullmatch(entry.name)}
            others = sorted(names - {self._path.name})
            for name in others[: max(0, len(others) + 1 - self._max_files)]:
                (self._directory / name).unlink()
        except OSError as error:
            _log.warning("audit: old files in %s are not removed: %s", self._directory, error)


class StandardOutput:
    """For a service manager that collects lines itself. The descriptor is borrowed and never closed."""

    def __init__(self, fd: int = _STANDARD_OUTPUT) -> None:
        self._fd = fd

    def __repr__(self) -> str:
        return "StandardOutput()"

    def ready(self, when: float) -> bool:  # noqa: ARG002 - there is one, at any time
        return False

    def append(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            # A pipe that somebody set non-blocking is full: not a failure, but a slow reader.
            select.select([], [self._fd], [], 0.1)
            return 0

    def close(self) -> None:
        pass


def _open(path: Path) -> int:
    fd = os.open(path, _FLAGS, 0o600)
    try:
        _begin_line(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _begin_line(path: Path, fd: int) -> None:
    """A crash, or a full disk, may have left the file's last line unfinished: the next one must not be glued to it."""
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(f"{path} is not a regular file")
    if facts.st_size and os.pread(fd, 1, facts.st_size - 1) != b"\n":
        os.write(fd, b"\n")
