"""Reading every input of a generation from disk: whole, bounded, and all of one moment.

A rotation is several writes by somebody else (certificate, key, CA), through renames, truncations or swapped links,
and a reader can fall between any two of them. So a file is read through one descriptor that must not change meanwhile,
links are resolved once for the whole set, and the set counts only when two readings in a row agree. This module judges
no content: a set that is stable and wrong is refused by who parses it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tlsproxy.config import loader
from tlsproxy.config.secrets import secret_files
from tlsproxy.config.tokens import public_key_files
from tlsproxy.errors import FailureKind, MaterialError, TlsproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tlsproxy.config.loader import Loaded
    from tlsproxy.config.model import Config

CONFIG_LIMIT: Final = 1 << 20
PEM_LIMIT: Final = 1 << 20
CRL_LIMIT: Final = 64 << 20
"""The CRL of a large public authority reaches tens of megabytes."""
SECRET_LIMIT: Final = 64 << 10

ATTEMPTS: Final = 5
PAUSE: Final = 0.05
"""Seconds between two readings that disagreed: a rotation is a few system calls, not a few seconds."""

_ADVICE: Final = {
    errno.ENOENT: "does not exist; create it or correct the path in the configuration",
    errno.ENOTDIR: "does not exist: a part of its path is not a directory; correct the path in the configuration",
    errno.EACCES: "may not be read by this user; give the user that tlsproxy runs as read permission",
    errno.ELOOP: "is a link that leads back to itself; point it at the file",
}
_OF_THE_CONFIGURATION: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO))
"""A path that leads to no file. All else is the file system's or the process's, and may pass by itself."""
_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnstableInputs(MaterialError):
    """The files are being written at this moment. Not a verdict on them: read again later."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(path, text, FailureKind.ENVIRONMENT)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that a generation is made of, as of one moment.

    ``files`` is keyed by the configured path and holds the configuration too; ``targets`` says where each path led.
    ``digest`` is over paths and bytes, so that equal digests mean that there is nothing to do.
    """

    loaded: Loaded = field(repr=False)
    files: Mapping[Path, bytes] = field(repr=False)
    digest: str
    targets: Mapping[Path, Path] = field(repr=False)
    warnings: tuple[str, ...] = ()


def read_file(path: Path, limit: int) -> bytes:
    """All of a regular file of at most ``limit`` bytes.

    Raises MaterialError, or UnstableInputs where the file changed while it was read.
    """
    return _read(path, path, limit)[0]


def read_inputs(config_path: Path, environ: Mapping[str, str], *, earlier: Inputs | None = None) -> Inputs:
    """Read the configuration and every file that it names, until two readings in a row agree.

    ``earlier`` counts as one reading, so a poll that finds nothing new reads each file once and parses nothing. Blocks
    for up to ``ATTEMPTS`` pauses: call it in a worker thread. Raises ConfigError for a configuration that cannot be
    parsed, MaterialError for a file that cannot be read, UnstableInputs where no two readings agreed.
    """
    previous = earlier
    failure: TlsproxyError | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE)
        try:
            current = _read_once(config_path, environ)
        except TlsproxyError as error:
            # A file may be missing or cut off between two system calls of its writer: only a lasting failure is one.
            failure, previous = error, None
            continue
        if previous is not None and current.digest == previous.digest and current.targets == previous.targets:
            return current
        failure, previous = None, current
    if failure is not None:
        raise failure
    raise UnstableInputs(str(config_path), "its files keep changing while they are read; trying again later")


def _read_once(config_path: Path, environ: Mapping[str, str]) -> Inputs:
    data, _ = _read(config_path, config_path, CONFIG_LIMIT)
    loaded = loader.parse(data, config_path, environ)
    wanted = dict(_wanted(loaded.config))
    # Certificate and key must come out of one directory even where each is reached through a link that is swapped
    # meanwhile (certbot's live/, Kubernetes' ..data): all links are resolved first and read from there, they must lead
    # there still when all is read, and two readings agree only if they led to the same files both times.
    targets = {path: _target(path) for path in wanted}
    files = {config_path: data}
    warnings = []
    for path, limit in wanted.items():
        files[path], found = _read(path, targets[path], limit)
        if path == loaded.config.tls.key and _exposed(found):
            warnings.append(f"{path}: the private key is open to group or others; chmod 600 it")
    if targets != {path: _target(path) for path in wanted}:
        raise UnstableInputs(str(config_path), "links to its files changed while they were read; trying again later")
    return Inputs(loaded, files, _digest(files), targets, tuple(warnings))


def _exposed(found: os.stat_result) -> bool:
    """Root's file may be read by a group: that is how a service without privileges is given a key."""
    allowed = stat.S_IRUSR | stat.S_IWUSR | (stat.S_IRGRP if found.st_uid == 0 else 0)
    return bool(stat.S_IMODE(found.st_mode) & ~allowed)


def _wanted(config: Config) -> Iterator[tuple[Path, int]]:
    for secret in secret_files(config):
        yield secret, SECRET_LIMIT
    for public_key in public_key_files(config):
        yield public_key, PEM_LIMIT
    tls = config.tls
    if tls.key_passphrase_file is not None:
        yield tls.key_passphrase_file, SECRET_LIMIT
    yield tls.cert, PEM_LIMIT
    yield tls.key, PEM_LIMIT
    if tls.ca_cert is not None:
        yield tls.ca_cert, PEM_LIMIT
    for crl in tls.crl:
        yield crl, CRL_LIMIT


def _target(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except OSError as error:
        raise _unreadable(path, error) from None
    except RuntimeError:  # until Python 3.13 that is how pathlib reports a loop of links
        raise MaterialError(str(path), _ADVICE[errno.ELOOP]) from None


def _read(path: Path, target: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """The bytes of ``target``, and what it is; ``path`` is what the operator calls it."""
    try:
        # O_NONBLOCK: opening a named pipe that somebody put here must not wait for its writer.
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise MaterialError(str(path), f"is {_kind(before.st_mode)}; a regular file is needed")
        if before.st_size > limit:
            raise MaterialError(
                str(path), f"has {before.st_size} bytes where at most {limit} are read; is it the right file?"
            )
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
        after = os.fstat(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise UnstableInputs(str(path), "was written to while it was read; trying again later")
    return data, before


def _unreadable(path: Path, error: OSError) -> MaterialError:
    kind = FailureKind.INPUT if error.errno in _OF_THE_CONFIGURATION else FailureKind.ENVIRONMENT
    return MaterialError(str(path), _ADVICE.get(error.errno or 0, f"cannot be read: {error.strerror}"), kind)


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "not a regular file")


def _digest(files: Mapping[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        for part in (os.fsencode(path), files[path]):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()
