"""Changes of a lock file: one at a time under flock, and whole or not at all.

The file gets owner, group and mode of the one before, or of the configuration beside it: a service that runs as another
user must be able to read it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tlsproxy.config.locks import LIMIT, FileEntry, LockFile, lock_path, read_lock_file, write_lock_file
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot.lock_file import lock_data

DEADLINE: Final = 10.0
"""Seconds to wait for another command that changes the file."""
RETRY: Final = 0.02
KEPT: Final = 7 * 86400.0
"""Seconds for which a lock that is over or was taken back stays in the file, so that no gateway misses it."""

_MODE: Final = 0o664
"""Most that others may do with it: no execution, and nothing to be written by everybody."""
_ADVICE: Final = {
    errno.EACCES: "run this as a user who may write there, such as root",
    errno.EPERM: "run this as root",
    errno.EROFS: "lock callers by `revoked` in the configuration instead",
}


def read(config_path: Path) -> LockFile:
    """The lock file beside this configuration; an empty one where there is none. Raises MaterialError."""
    path = lock_path(config_path)
    data = lock_data(path)
    return LockFile() if data is None else read_lock_file(path, data)


def change(config_path: Path, changed: Callable[[LockFile], LockFile], *, broken: LockFile | None = None) -> LockFile:
    """Replace the lock file by ``changed`` of it. ``broken`` stands for one that is no lock file.

    Blocks up to :data:`DEADLINE` seconds. Raises MaterialError.
    """
    path = lock_path(config_path)
    try:
        real = Path(os.path.realpath(path))  # Path.resolve() fails in its own way where links lead back to themselves
        model = _model(real, config_path)
        with _exclusive(real.parent):
            try:
                found = read(config_path)
            except MaterialError:
                if broken is None:
                    raise
                found = broken
            result = changed(found)
            if result != found or not real.exists():
                _replace(real, write_lock_file(_pruned(result)), model)
            return result
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        text = f"cannot be written: {error.strerror}{f'; {advice}' if advice else ''}"
        raise MaterialError(str(path), text) from None


def _model(real: Path, config_path: Path) -> os.stat_result:
    """The file whose owner and mode the new one gets. Raises MaterialError where there is no configuration."""
    for path in (real, config_path):
        try:
            return path.stat()
        except FileNotFoundError:
            continue
    raise MaterialError(str(config_path), "does not exist; locks stand beside the configuration: name it by --config")


@contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """Holds the directory: the file itself is another one after each change."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    end = time.monotonic() + DEADLINE
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise TimeoutError(errno.ETIMEDOUT, "another command holds it") from None
                time.sleep(RETRY)
        yield
    finally:
        os.close(descriptor)


def _pruned(file: LockFile) -> LockFile:
    """Without entries that have been over for long."""
    limit = time.time() - KEPT
    return file.model_copy(update={"locks": tuple(entry for entry in file.locks if _over(entry) > limit)})


def _over(entry: FileEntry) -> float:
    return entry.lock().until if entry.lifted_at is None else entry.lifted_at.timestamp()


def _replace(path: Path, data: bytes, model: os.stat_result) -> None:
    """Write it beside, and rename it: readers find the old or the new content."""
    if len(data) > LIMIT:
        raise MaterialError(str(path), f"would have more than {LIMIT} bytes: unlock what need not be locked any more")
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _give(descriptor, model)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _give(descriptor: int, model: os.stat_result) -> None:
    """Owner, group and mode. A mode that lets everybody read it needs no owner."""
    mode = stat.S_IMODE(model.st_mode) & _MODE | stat.S_IRUSR | stat.S_IWUSR
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (model.st_uid, model.st_gid):
        try:
            os.fchown(descriptor, model.st_uid, model.st_gid)
        except PermissionError:
            if not mode & stat.S_IROTH:
                raise
    os.fchmod(descriptor, mode)
