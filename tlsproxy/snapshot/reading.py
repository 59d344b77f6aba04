"""Reading of files: complete, bounded, and with a deadline.

A file is read through one descriptor and must not change meanwhile; links are resolved once for a whole set. An
unreadable file is an error in words, and holds up no other.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot import bounded_io
from tlsproxy.snapshot.bounded_io import Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

T = TypeVar("T")

CONFIG_LIMIT: Final = 1 << 20
PEM_LIMIT: Final = 1 << 20
CRL_LIMIT: Final = 64 << 20
"""The CRL of a large public authority reaches tens of megabytes."""
SECRET_LIMIT: Final = 64 << 10

PIECE: Final = 1 << 20

_ADVICE: Final = {
    errno.ENOENT: "does not exist; create it or correct the path in the configuration",
    errno.ENOTDIR: "does not exist: a part of its path is not a directory; correct the path in the configuration",
    errno.EACCES: "may not be read by this user; give the user that tlsproxy runs as read permission",
    errno.ELOOP: "is a link that leads back to itself; point it at the file",
}
ARGUMENT_ADVICE: Final = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "does not exist: a part of its path is not a directory",
    errno.EACCES: "may not be read by this user",
    errno.ELOOP: _ADVICE[errno.ELOOP],
}
_PATH_ERRORS: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO))
"""Errors of a path that leads to no file. All others are the system's, and may pass by themselves."""
_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnstableInputs(MaterialError):
    """A file that is being written: to be read again later."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(path, text, FailureKind.ENVIRONMENT)


@dataclass(frozen=True, slots=True)
class Content:
    data: bytes
    exposed: bool
    """Whether users other than the owner may read the file."""


def read_file(path: Path, limit: int) -> bytes:
    """A regular file of at most ``limit`` bytes.

    Raises MaterialError, or UnstableInputs if the file changed while it was read.
    """
    content = read(path, path, limit)
    if isinstance(content, MaterialError):
        raise content
    return content.data


def read_argument(path: Path, limit: int) -> bytes:
    """Like :func:`read_file`, for a file that a command's argument names: its errors speak of no configuration."""
    content = read(path, path, limit, ARGUMENT_ADVICE)
    if isinstance(content, MaterialError):
        raise content
    return content.data


@dataclass(frozen=True, slots=True)
class FileAccess:
    """Implements :class:`tlsproxy.snapshot.config_files.Access`."""

    timeout: float

    def main_file(self, path: Path) -> bytes:
        content = each({path: partial(read, path, path, CONFIG_LIMIT, ARGUMENT_ADVICE)}, self.timeout)[path]
        if isinstance(content, MaterialError):
            raise content
        return content.data

    def contents(self, paths: Iterable[Path], limit: int) -> dict[Path, bytes | MaterialError]:
        contents = each({path: partial(read, path, path, limit) for path in paths}, self.timeout)
        return {path: each.data if isinstance(each, Content) else each for path, each in contents.items()}

    def targets(self, paths: Iterable[Path]) -> dict[Path, Path | MaterialError]:
        return each({path: partial(target_of, path) for path in paths}, self.timeout)


@dataclass(frozen=True, slots=True)
class FileSet:
    """One reading of a set of files, by configured path. ``targets`` is where links led, of those in ``files``."""

    files: Mapping[Path, bytes] = field(repr=False)
    targets: Mapping[Path, Path] = field(repr=False)
    failures: Mapping[Path, MaterialError]
    exposed: frozenset[Path]

    def exposed_keys(self, keys: Iterable[Path]) -> tuple[str, ...]:
        """Warnings on private keys that other users may read."""
        return tuple(
            f"{path}: the private key is open to group or others; chmod 600 it"
            for path in dict.fromkeys(keys)
            if path in self.exposed
        )


def read_together(limits: Mapping[Path, int], timeout: float) -> FileSet:
    """Files of at most so many bytes.

    Certificate and key must come from one directory even if a link on their way is swapped meanwhile (certbot's live/,
    Kubernetes' ..data). So all links are resolved first and must lead to the same files after the reading, and two
    readings agree only if they led to the same files.
    """
    resolved = each({path: partial(target_of, path) for path in limits}, timeout)
    targets = {path: target for path, target in resolved.items() if not isinstance(target, MaterialError)}
    contents = each({path: partial(read, path, target, limits[path]) for path, target in targets.items()}, timeout)
    resolved_again = each({path: partial(target_of, path) for path in targets}, timeout)
    files: dict[Path, bytes] = {}
    failures: dict[Path, MaterialError] = {}
    for path in limits:
        outcome = contents.get(path, resolved[path])
        if isinstance(outcome, Content) and resolved_again[path] != targets[path]:
            outcome = resolved_again[path]
            if not isinstance(outcome, MaterialError):
                outcome = UnstableInputs(str(path), "its links changed while it was read; trying again later")
        if isinstance(outcome, Content):
            files[path] = outcome.data
        elif isinstance(outcome, MaterialError):
            failures[path] = outcome
            targets.pop(path, None)
    exposed = frozenset(path for path, each in contents.items() if isinstance(each, Content) and each.exposed)
    return FileSet(files, targets, failures, exposed)


def each(calls: Mapping[Path, Callable[[], T | MaterialError]], timeout: float) -> dict[Path, T | MaterialError]:
    """Outcomes by path; a missing answer is a failure, tried again once it comes."""
    return {path: _answered(path, outcome) for path, outcome in bounded_io.outcomes(calls, timeout).items()}


def _answered(path: Path, outcome: T | MaterialError | Unanswered) -> T | MaterialError:
    if not isinstance(outcome, Unanswered):
        return outcome
    return MaterialError(str(path), f"its file system gives {outcome}", outcome.kind)


def _exposed(found: os.stat_result) -> bool:
    """Whether a key is open to other users.

    A file of root may be readable by a group, as for an unprivileged service.
    """
    allowed = stat.S_IRUSR | stat.S_IWUSR | (stat.S_IRGRP if found.st_uid == 0 else 0)
    return bool(stat.S_IMODE(found.st_mode) & ~allowed)


def target_of(path: Path) -> Path | MaterialError:
    try:
        return path.resolve(strict=True)
    except OSError as error:
        return _unreadable(path, error)
    except RuntimeError:  # until Python 3.13 that is how pathlib reports a loop of links
        return MaterialError(str(path), _ADVICE[errno.ELOOP])


def read(path: Path, target: Path, limit: int, advice: Mapping[int, str] = _ADVICE) -> Content | MaterialError:
    """The content of ``target``; errors name ``path``, as configured."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        return _unreadable(path, error, advice)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            return MaterialError(str(path), f"is {_kind(before.st_mode)}; a regular file is needed")
        if before.st_size > limit:
            return MaterialError(
                str(path), f"has {before.st_size} bytes where at most {limit} are read; is it the right file?"
            )
        data = b"".join(_pieces(path, descriptor, limit))
        after = os.fstat(descriptor)
    except OSError as error:
        return _unreadable(path, error, advice)
    except MemoryError:
        return _unreadable(path, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    finally:
        os.close(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        return UnstableInputs(str(path), "was written to while it was read; trying again later")
    return Content(data, _exposed(before))


def _pieces(path: Path, descriptor: int, limit: int) -> Iterator[bytes]:
    """The file in pieces, up to one byte more than ``limit``."""
    left = limit + 1
    while left and (piece := os.read(descriptor, min(left, PIECE))):
        bounded_io.note_progress(path)
        left -= len(piece)
        yield piece


def _unreadable(path: Path, error: OSError, advice: Mapping[int, str] = _ADVICE) -> MaterialError:
    kind = FailureKind.INPUT if error.errno in _PATH_ERRORS else FailureKind.ENVIRONMENT
    return MaterialError(str(path), advice.get(error.errno or 0, f"cannot be read: {error.strerror}"), kind)


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "not a regular file")
