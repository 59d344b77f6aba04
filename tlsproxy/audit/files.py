"""Audit sinks: rotating files as Qdrant's, or the standard output. For one thread; blocking; raises OSError.

Files are named as Qdrant names its own (tracing_appender: `audit.YYYY-MM-DD.log`, hourly `audit.YYYY-MM-DD-HH.log`,
UTC), appended to on restart, and pruned to the newest `max_files` of exactly that pattern. As in Qdrant nothing is
synced to the disk: a line survives a crash of the process, not of the machine.

Before each write the path is checked: if the file was removed or renamed, the open descriptor would swallow all further
lines. Nothing here retries, and no other file of the directory is ever touched.
"""

from __future__ import annotations

import errno
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
"""Symlinks are not followed, FIFOs do not block: write access to the directory must not redirect the log."""

_STANDARD_OUTPUT: Final = 1
_NEWLINE: Final = 10


class Sink(Protocol):
    """The destination of the writer thread."""

    def ready(self, when: float) -> bool:
        """Opens or rotates for a write at `when` (seconds since the epoch).

        True after a change of file: a line that was written in part must be written again from its beginning.
        """

    def append(self, data: memoryview) -> int:
        """Writes a prefix of `data`; returns its length."""

    def close(self) -> None: ...


class Turn:
    """A lock between the processes that write to one sink; without a ``descriptor`` there is one process only.

    A POSIX lock (fcntl(2)) on an anonymous file: released with the process, however it ends.
    """

    def __init__(self, descriptor: int = -1) -> None:
        self.descriptor = descriptor

    def take(self) -> None:
        """Blocks until it is acquired. It may be acquired again by its holder."""
        if self.descriptor >= 0:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX)

    def give(self) -> None:
        if self.descriptor >= 0:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)


ALONE: Final = Turn()


class AuditFiles:
    """Rotating files of mode 0600 in one directory of mode 0700; with ``group``, a gid, 0640 and 0750.

    The directory is created once, before the first write. If it vanishes later, a disk may have been unmounted: files
    in a directory created in its place would be hidden as soon as the disk is back.
    """

    def __init__(
        self, directory: Path, rotation: Rotation, max_files: int, turn: Turn = ALONE, group: int | None = None
    ) -> None:
        self._group = group
        self._directory = directory
        self._rotation: Rotation = rotation
        self._max_files = max_files
        self._turn = turn
        self._fd = -1
        self._path = directory
        self._created = False

    def __repr__(self) -> str:
        return f"AuditFiles({self._path})"

    def __str__(self) -> str:
        return str(self._path)

    def ready(self, when: float) -> bool:
        path = self._path_at(when)
        if self._fd >= 0 and path == self._path and self._in_place():
            return False
        self.close()
        if not self._created:
            self._make_directory()
        self._fd = _open(path, self._group)
        self._path = path
        self._created = True
        self._prune()
        return True

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True)
        except OSError:
            if not self._directory.is_dir():
                raise
            return  # with the mode that somebody gave it
        if self._group is not None:
            os.chown(self._directory, -1, self._group)
            self._directory.chmod(0o750)

    def _path_at(self, when: float) -> Path:
        return self._directory / datetime.fromtimestamp(when, UTC).strftime(_FORMAT[self._rotation])

    def check(self, when: float) -> None:
        """Check that :meth:`ready` would open its file, without making it or a directory. Raises OSError."""
        path = self._path_at(when)
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            place = next(each for each in path.parents if os.path.lexists(each))
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            _check_access(place, os.W_OK | os.X_OK)
        else:
            if not stat.S_ISREG(found.st_mode):
                raise OSError(f"{path} is not a regular file")
            _check_access(path, os.R_OK | os.W_OK)

    def append(self, data: memoryview) -> int:
        """Appends whole lines: one that the disk has no room for is truncated before another process appends to it."""
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
        """Removes old files. One that cannot be removed is logged and left: that is no reason to lose new lines.

        The current file is never removed, even if a wrong clock has left files with later names.
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
    """The standard output, for a service manager that collects lines. The descriptor is never closed.

    Writes to a pipe are atomic up to 4 KiB (PIPE_BUF), so the lock is held from the beginning of a line to its end.
    """

    def __init__(self, fd: int = _STANDARD_OUTPUT, turn: Turn = ALONE) -> None:
        self._fd = fd
        self._turn = turn
        self._whole = True

    def __repr__(self) -> str:
        return "StandardOutput()"

    def __str__(self) -> str:
        return "the standard output"

    def ready(self, when: float) -> bool:  # noqa: ARG002 - it never changes
        return False

    def append(self, data: memoryview) -> int:
        self._turn.take()
        try:
            count = os.write(self._fd, data)
            self._whole = data[count - 1] == _NEWLINE
        except BlockingIOError:
            # A non-blocking pipe is full: a slow reader, not a failure.
            select.select([], [self._fd], [], 0.1)
            return 0
        finally:
            if self._whole:
                self._turn.give()
        return count

    def close(self) -> None:
        pass


def _check_access(path: Path, mode: int) -> None:
    if not os.access(path, mode, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _open(path: Path, group: int | None) -> int:
    fd = os.open(path, _FLAGS, 0o600)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a regular file")  # noqa: TRY301 - the descriptor is closed in one place
        if group is not None:
            if found.st_gid != group:  # our unit allows no chown: there `Group=` has made it so
                os.fchown(fd, -1, group)
            os.fchmod(fd, 0o640)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _begin_line(fd: int) -> None:
    """Ends an incomplete last line, left by a crash, so that the next one is not appended to it."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
