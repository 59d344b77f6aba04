"""Reading of all inputs from disk: complete, bounded, with a deadline, and consistent.

A rotation is several writes of another program (certificate, key, CA), by renames, truncations or swapped links, and a
reading can fall between any two of them. So a file is read through one descriptor and must not change meanwhile, links
are resolved once for the whole set, and a file counts only when two readings in a row agree on it, certificate and key
together. An unreadable file holds up no other. Content is not validated here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from tlsproxy.config import loader
from tlsproxy.config.model import Tls
from tlsproxy.config.secrets import secret_files
from tlsproxy.config.tokens import public_key_files
from tlsproxy.config.upstream_tls_checks import authority_files, client_pairs
from tlsproxy.errors import FailureKind, MaterialError, TlsproxyError
from tlsproxy.snapshot import bounded_io
from tlsproxy.snapshot.bounded_io import Unanswered
from tlsproxy.snapshot.config_files import ConfigFiles, config_files, directories_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from tlsproxy.config.loader import Loaded
    from tlsproxy.config.model import Config

T = TypeVar("T")

CONFIG_LIMIT: Final = 1 << 20
PEM_LIMIT: Final = 1 << 20
CRL_LIMIT: Final = 64 << 20
"""The CRL of a large public authority reaches tens of megabytes."""
SECRET_LIMIT: Final = 64 << 10

PIECE: Final = 1 << 20

ATTEMPTS: Final = 5
PAUSE: Final = 0.05
"""Seconds after readings that disagreed: a rotation takes a few system calls, not seconds."""
UNSTABLE_READINGS: Final = 3
"""Calls in a row that may find a file being written before that is reported as a failure."""

_ADVICE: Final = {
    errno.ENOENT: "does not exist; create it or correct the path in the configuration",
    errno.ENOTDIR: "does not exist: a part of its path is not a directory; correct the path in the configuration",
    errno.EACCES: "may not be read by this user; give the user that tlsproxy runs as read permission",
    errno.ELOOP: "is a link that leads back to itself; point it at the file",
}
_ARGUMENT_ADVICE: Final = {
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
    """A file that is being written: to be read resolved_again later."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(path, text, FailureKind.ENVIRONMENT)


@dataclass(frozen=True, slots=True)
class Inputs:
    """All inputs of a generation at one moment, and the failures of those that could not be read.

    ``files`` is by configured path, and ``targets`` is where links led. A path is in ``files`` or in ``failures``.
    The configuration is always in ``files``: if it is in ``failures`` too, its bytes and ``loaded`` are the former
    ones. ``digest`` is over paths, bytes and failures: an equal one means that nothing has changed. ``unsettled``
    counts the readings in a row that found a file being written; the first of them leave it as it was. The files of
    ``config_files`` are in ``files`` too, and so are those in its bundle that the configuration names.
    """

    loaded: Loaded = field(repr=False)
    files: Mapping[Path, bytes] = field(repr=False)
    digest: str
    targets: Mapping[Path, Path] = field(repr=False)
    warnings: tuple[str, ...] = ()
    failures: Mapping[Path, TlsproxyError] = field(default_factory=dict)
    unsettled: Mapping[Path, int] = field(default_factory=dict)
    config_files: ConfigFiles = field(default_factory=lambda: ConfigFiles(b""))

    def found(self, path: Path) -> object:
        """A value that is equal for two readings with the same outcome at this path; None if it was not read."""
        if path in self.failures:
            return str(self.failures[path])
        return (self.targets.get(path), self.files[path]) if path in self.files else None


@dataclass(frozen=True, slots=True)
class _Configuration:
    """``failure`` is the reason why it is the former one."""

    loaded: Loaded
    files: ConfigFiles
    failure: TlsproxyError | None = None


@dataclass(frozen=True, slots=True)
class _Content:
    data: bytes
    exposed: bool
    """Whether users other than the owner may read the file."""


def read_file(path: Path, limit: int) -> bytes:
    """A regular file of at most ``limit`` bytes.

    Raises MaterialError, or UnstableInputs if the file changed while it was read.
    """
    content = _read(path, path, limit)
    if isinstance(content, MaterialError):
        raise content
    return content.data


def read_argument(path: Path, limit: int) -> bytes:
    """Like :func:`read_file`, for a file that a command's argument names: its errors speak of no configuration."""
    content = _read(path, path, limit, _ARGUMENT_ADVICE)
    if isinstance(content, MaterialError):
        raise content
    return content.data


def read_inputs(
    config_path: Path,
    environ: Mapping[str, str],
    *,
    earlier: Inputs | None = None,
    serving: Config | None = None,
    candidate: bytes | None = None,
) -> Inputs:
    """Read the configuration and all files that it or ``serving`` names, until two readings in a row agree.

    ``earlier`` counts as one of them, so that a poll without news reads each file once and parses nothing. A broken
    configuration is replaced by that of ``earlier``; without one it raises MaterialError or ConfigError. Blocks for up
    to ``ATTEMPTS`` pauses, and `tls.read_timeout` where a file system does not answer. ``candidate`` is a bundle that
    is to be tried in the place of the configuration's.
    """
    current, unsettled = _agreed(
        lambda: _configuration(config_path, environ, earlier, candidate), config_path, earlier, serving
    )
    if config_path in unsettled:
        if earlier is None:
            raise _unstable(config_path)
        former = _Configuration(earlier.loaded, earlier.config_files)
        current, unsettled = _agreed(lambda: former, config_path, earlier, serving)
        unsettled |= {config_path}
    return _settled(current, unsettled, config_path, earlier) if unsettled else current


def confined(inputs: Inputs, config_path: Path) -> Inputs:
    """The inputs without files that their configuration does not name."""
    paths = {config_path, *inputs.config_files.beside, *dict(_wanted(inputs.loaded.config))}
    if inputs.files.keys() | inputs.failures.keys() <= paths:
        return inputs
    files = {path: data for path, data in inputs.files.items() if path in paths}
    failures = {path: failure for path, failure in inputs.failures.items() if path in paths}
    return replace(inputs, files=files, failures=failures, digest=_digest(files, failures))


def _agreed(
    read_configuration: Callable[[], _Configuration],
    config_path: Path,
    earlier: Inputs | None,
    serving: Config | None,
) -> tuple[Inputs, set[Path]]:
    """The last reading, and the paths on which it disagrees with the one before. Raises without a configuration."""
    previous, attempt = earlier, 0
    while True:
        attempt += 1
        try:
            current = _reading(read_configuration(), config_path, previous, serving)
        except TlsproxyError:
            # A file may be missing or cut off between two system calls of its writer: only a lasting failure counts.
            if attempt == ATTEMPTS:
                raise
            previous = None
        else:
            unsettled = _unsettled(current, previous, config_path, serving)
            fresh = [path for path in current.failures if earlier is None or current.found(path) != earlier.found(path)]
            if attempt == ATTEMPTS or not (unsettled or fresh):
                return current, unsettled
            previous = current
        time.sleep(PAUSE)


def read_configuration(config_path: Path, environ: Mapping[str, str]) -> Loaded:
    """The configuration alone, for a command. Raises ConfigError or MaterialError."""
    files = read_config_files(config_path, environ)
    return loader.parse(files.main, config_path, environ, files.pieces)


def read_main_file(config_path: Path) -> bytes:
    """The configuration's main file, with the deadline of a start. Raises MaterialError or Unanswered."""
    return _Access(Tls.model_fields["read_timeout"].default).main_file(config_path)


def read_config_files(config_path: Path, environ: Mapping[str, str]) -> ConfigFiles:
    """All files of the configuration, for a command. Raises ConfigError or MaterialError."""
    access = _Access(Tls.model_fields["read_timeout"].default)
    return config_files(access.main_file(config_path), config_path, environ, access)


def _configuration(
    config_path: Path, environ: Mapping[str, str], earlier: Inputs | None, candidate: bytes | None
) -> _Configuration:
    access = _Access(
        Tls.model_fields["read_timeout"].default if earlier is None else earlier.loaded.config.tls.read_timeout
    )
    directories: frozenset[Path] = frozenset() if earlier is None else earlier.config_files.directories
    try:
        data = access.main_file(config_path)
        directories = directories_of(data, config_path)
        files = config_files(data, config_path, environ, access, candidate)
        return _Configuration(loader.parse(data, config_path, environ, files.pieces), files)
    except TlsproxyError as error:
        if earlier is None:
            raise
        files = replace(earlier.config_files, directories=directories)
        return _Configuration(earlier.loaded, files, error.with_traceback(None))


@dataclass(frozen=True, slots=True)
class _Access:
    """Implements :class:`tlsproxy.snapshot.config_files.Access`."""

    timeout: float

    def main_file(self, path: Path) -> bytes:
        content = _each({path: partial(_read, path, path, CONFIG_LIMIT, _ARGUMENT_ADVICE)}, self.timeout)[path]
        if isinstance(content, MaterialError):
            raise content
        return content.data

    def contents(self, paths: Iterable[Path], limit: int) -> dict[Path, bytes | MaterialError]:
        read = _each({path: partial(_read, path, path, limit) for path in paths}, self.timeout)
        return {path: each.data if isinstance(each, _Content) else each for path, each in read.items()}

    def targets(self, paths: Iterable[Path]) -> dict[Path, Path | MaterialError]:
        return _each({path: partial(_target, path) for path in paths}, self.timeout)


def _reading(
    configuration: _Configuration, config_path: Path, previous: Inputs | None, serving: Config | None
) -> Inputs:
    """One reading of all files.

    Bytes equal to those of ``previous`` are shared with it, and not digested again.
    """
    tls = configuration.loaded.config.tls
    limits = dict(_wanted(configuration.loaded.config))
    if serving is not None:
        limits = dict(_wanted(serving)) | limits
    held = {path: configuration.files.held(path) for path in limits if configuration.files.holds(path)}
    limits = {path: limit for path, limit in limits.items() if path not in held}
    files, failures = _bundled(configuration, config_path, held)
    # Certificate and key must come from one directory even if a link on their way is swapped meanwhile (certbot's
    # live/, Kubernetes' ..data). So all links are resolved first and must lead to the same files after the reading,
    # and two readings agree only if they led to the same files.
    resolved = _each({path: partial(_target, path) for path in limits}, tls.read_timeout)
    targets = {path: target for path, target in resolved.items() if not isinstance(target, MaterialError)}
    read = _each(
        {path: partial(_read, path, target, limits[path]) for path, target in targets.items()}, tls.read_timeout
    )
    resolved_again = _each({path: partial(_target, path) for path in targets}, tls.read_timeout)
    for path in limits:
        outcome = read.get(path, resolved[path])
        if isinstance(outcome, _Content) and resolved_again[path] != targets[path]:
            outcome = resolved_again[path]
            if not isinstance(outcome, MaterialError):
                outcome = UnstableInputs(str(path), "its links changed while it was read; trying again later")
        if isinstance(outcome, _Content):
            files[path] = outcome.data
        elif isinstance(outcome, MaterialError):
            failures[path] = outcome
            targets.pop(path, None)
    keys = [tls.key, *(pair[1] for pair in client_pairs(configuration.loaded.config).values())]
    warnings = [
        f"{path}: the private key is open to group or others; chmod 600 it"
        for path in dict.fromkeys(keys)
        if isinstance(key := read.get(path), _Content) and key.exposed
    ]
    if previous is not None:
        files |= {path: data for path, data in previous.files.items() if files.get(path) == data}
    same = previous is not None and files == previous.files and _texts(failures) == _texts(previous.failures)
    digest = previous.digest if previous is not None and same else _digest(files, failures)
    return Inputs(
        configuration.loaded,
        files,
        digest,
        targets,
        tuple(warnings),
        failures,
        config_files=configuration.files,
    )


def _bundled(
    configuration: _Configuration, config_path: Path, held: Mapping[Path, bytes | MaterialError]
) -> tuple[dict[Path, bytes], dict[Path, TlsproxyError]]:
    """Files and failures of the configuration itself, and of its bundle."""
    files = {config_path: configuration.files.main, **configuration.files.beside}
    failures: dict[Path, TlsproxyError] = {}
    for path, found in held.items():
        if isinstance(found, MaterialError):
            failures[path] = found
        else:
            files[path] = found
    if configuration.failure is not None:
        failures[config_path] = configuration.failure
    return files, failures


def _unsettled(current: Inputs, previous: Inputs | None, config_path: Path, serving: Config | None) -> set[Path]:
    """Paths on which two readings disagree. Certificate, key and passphrase count as one, and so do pieces."""
    paths = current.files.keys() | current.failures.keys()
    unsettled = {
        path
        for path in paths
        if previous is None
        or current.found(path) != previous.found(path)
        or isinstance(current.failures.get(path), UnstableInputs)
    }
    if previous is not None and current.config_files.beside != previous.config_files.beside:
        unsettled.add(config_path)
    for config in filter(None, (current.loaded.config, serving)):
        tls = config.tls
        own = tuple(path for path in (tls.cert, tls.key, tls.key_passphrase_file) if path is not None)
        for pair in (own, *client_pairs(config).values()):
            if not unsettled.isdisjoint(pair):
                unsettled.update(pair)
    return unsettled


def _settled(current: Inputs, unsettled: set[Path], config_path: Path, earlier: Inputs | None) -> Inputs:
    """Leave files that are being written as they were; a failure if that lasts, or without a former content."""
    files, targets, failures = dict(current.files), dict(current.targets), dict(current.failures)
    counts = {path: 1 + (earlier.unsettled.get(path, 0) if earlier is not None else 0) for path in unsettled}
    for path in unsettled:
        if path != config_path:  # its bytes are the former ones already
            files.pop(path, None)
            targets.pop(path, None)
        failures.pop(path, None)
        if earlier is None or counts[path] >= UNSTABLE_READINGS or earlier.found(path) is None:
            failures[path] = _unstable(path)
        elif path in earlier.failures:
            failures[path] = earlier.failures[path]
        elif path != config_path:
            files[path], targets[path] = earlier.files[path], earlier.targets[path]
    return replace(
        current, files=files, digest=_digest(files, failures), targets=targets, failures=failures, unsettled=counts
    )


def _unstable(path: Path) -> UnstableInputs:
    return UnstableInputs(str(path), "keeps changing while it is read; trying again later")


def _each(calls: Mapping[Path, Callable[[], T | MaterialError]], timeout: float) -> dict[Path, T | MaterialError]:
    """Outcomes by path; a missing answer is a failure, tried resolved_again once it comes."""
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


def _wanted(config: Config) -> Iterator[tuple[Path, int]]:
    for secret in secret_files(config):
        yield secret, SECRET_LIMIT
    for public_key in public_key_files(config):
        yield public_key, PEM_LIMIT
    for pair in client_pairs(config).values():
        yield from zip(pair, (PEM_LIMIT, PEM_LIMIT, SECRET_LIMIT), strict=False)
    for authorities in authority_files(config):
        yield authorities, PEM_LIMIT
    tls = config.tls
    if tls.key_passphrase_file is not None:
        yield tls.key_passphrase_file, SECRET_LIMIT
    yield tls.cert, PEM_LIMIT
    yield tls.key, PEM_LIMIT
    if tls.ca_cert is not None:
        yield tls.ca_cert, PEM_LIMIT
    for crl in tls.crl:
        yield crl, CRL_LIMIT


def _target(path: Path) -> Path | MaterialError:
    try:
        return path.resolve(strict=True)
    except OSError as error:
        return _unreadable(path, error)
    except RuntimeError:  # until Python 3.13 that is how pathlib reports a loop of links
        return MaterialError(str(path), _ADVICE[errno.ELOOP])


def _read(path: Path, target: Path, limit: int, advice: Mapping[int, str] = _ADVICE) -> _Content | MaterialError:
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
    return _Content(data, _exposed(before))


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


def _texts(failures: Mapping[Path, TlsproxyError]) -> dict[Path, bytes]:
    return {path: str(failure).encode() for path, failure in failures.items()}


def _digest(files: Mapping[Path, bytes], failures: Mapping[Path, TlsproxyError]) -> str:
    digest = hashlib.sha256()
    for found in (files, _texts(failures)):
        for path in sorted(found):
            for part in (os.fsencode(path), found[path]):
                digest.update(len(part).to_bytes(8, "big"))
                digest.update(part)
        digest.update(bytes(8))
    return digest.hexdigest()
