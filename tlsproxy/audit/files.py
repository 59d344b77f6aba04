"""Where audit lines end up: Qdrant's rotating files, or the standard output. For one thread; blocks; raises OSError.

Files are named as Qdrant names its own (tracing_appender: `audit.YYYY-MM-DD.log`, hourly `audit.YYYY-MM-DD-HH.log`,
UTC), appended to on restart, and pruned to the newest `max_files` of exactly that pattern. As in Qdrant nothing is
synced to the disk: a line survives our crash, not that of the machine.

A file that somebody removed or renamed is noticed before each write, for the open descriptor would swallow lines for
ever. Nothing here retries, and nothing else in the directory is ever touched.
"""

from __future__ import annotations

import fcntl
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
_NEWLINE: Final = 10


class Sink(Protocol):
    """What the writer thread appends to."""

    def ready(self, when: float) -> bool:
        """Makes it fit for a write at `when` (seconds since the epoch).

        True where what was written before stands elsewhere: a line that was begun there must be begun again.
        """

    def append(self, data: memoryview) -> int:
        """Writes a beginning of `data`, and returns how many bytes of it."""

    def close(self) -> None: ...


class Turn:
    """The right to write, of one at a time of the processes that share it; always one's own without a ``descriptor``.

    POSIX locks (fcntl(2)) on an anonymous file: they end with their process, however it ends.
    """

    def __init__(self, descriptor: int = -1) -> None:
        self.descriptor = descriptor

    def take(self) -> None:
        """Waits for it. Taking what one has changes nothing."""
        if self.descriptor >= 0:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX)

    def give(self) -> None:
        if self.descriptor >= 0:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)


ALONE: Final = Turn()


class AuditFiles:
    """The rotating files of one directory: 0600 in 0700.

    The directory is created once, before anything is written. One that vanishes later may be a disk that was
    unmounted, and one made in its place would be hidden as soon as it is back.
    """

    def __init__(self, directory: Path, rotation: Rotation, max_files: int, turn: Turn = ALONE) -> None:
        self._directory = directory
        self._rotation: Rotation = rotation
        self._max_files = max_files
        self._turn = turn
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
        """Whole lines: one that the disk had no room for is taken back, before another process writes behind it."""
        self._turn.take()
        try:
            _begin_line(self._fd)
            start, done = os.fstat(self._fd).st_size, 0
            try:
                while done < len(data):
                    done += os.write(self._fd, data[done:])
            except OSError:
                done = bytes(data[:done]).rfind(b"\n") + 1
                os.ftruncate(self._fd, start + done)
                if not done:
                    raise
            return done
        finally:
            self._turn.give()

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
                (self._directory / name).unlink(missing_ok=True)  # another process prunes too
        except OSError as error:
            _log.warning("audit: old files in %s are not removed: %s", self._directory, error)


class StandardOutput:
    """For a service manager that collects lines itself. The descriptor is borrowed and never closed.

    A pipe takes no more than 4 KiB (PIPE_BUF) as one, so the turn is kept from a line's beginning to its end.
    """

    def __init__(self, fd: int = _STANDARD_OUTPUT, turn: Turn = ALONE) -> None:
        self._fd = fd
        self._turn = turn
        self._whole = True

    def __repr__(self) -> str:
        return "StandardOutput()"

    def ready(self, when: float) -> bool:  # noqa: ARG002 - there is one, at any time
        return False

    def append(self, data: memoryview) -> int:
        self._turn.take()
        try:
            count = os.write(self._fd, data)
            self._whole = data[count - 1] == _NEWLINE
        except BlockingIOError:
            # A pipe that somebody set non-blocking is full: not a failure, but a slow reader.
            select.select([], [self._fd], [], 0.1)
            return 0
        finally:
            if self._whole:
                self._turn.give()
        return count

    def close(self) -> None:
        pass


def _open(path: Path) -> int:
    fd = os.open(path, _FLAGS, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is not a regular file")  # noqa: TRY301 - the descriptor is closed in one place
    except BaseException:
        os.close(fd)
        raise
    return fd


def _begin_line(fd: int) -> None:
    """A crash may have left the file's last line unfinished: the next one must not be glued to it."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
