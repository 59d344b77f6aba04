"""Reading of all inputs from disk: complete, bounded, with a deadline, and consistent.

A rotation is several writes of another program (certificate, key, CA), by renames, truncations or swapped links, and a
reading can fall between any two of them. So a file counts only when two readings in a row agree on it, certificate and
key together. An unreadable file holds up no other. Content is not validated here.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from tlsproxy.config import loader
from tlsproxy.config.model import Tls
from tlsproxy.config.secrets import secret_files
from tlsproxy.config.tokens import public_key_files
from tlsproxy.config.upstream_tls_checks import authority_files, client_pairs
from tlsproxy.errors import MaterialError, TlsproxyError
from tlsproxy.snapshot.config_files import ConfigFiles, config_files, directories_of
from tlsproxy.snapshot.reading import (
    CRL_LIMIT,
    PEM_LIMIT,
    SECRET_LIMIT,
    FileAccess,
    UnstableInputs,
    read_together,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tlsproxy.config.loader import Loaded
    from tlsproxy.config.model import Config

ATTEMPTS: Final = 5
PAUSE: Final = 0.05
"""Seconds after readings that disagreed: a rotation takes a few system calls, not seconds."""
UNSTABLE_READINGS: Final = 3
"""Calls in a row that may find a file being written before that is reported as a failure."""


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


def read_main_file(config_path: Path, serving: Config | None = None) -> bytes:
    """The configuration's main file, with the deadline of ``serving`` or of a start.

    Raises MaterialError or Unanswered.
    """
    timeout = Tls.model_fields["read_timeout"].default if serving is None else serving.tls.read_timeout
    return FileAccess(timeout).main_file(config_path)


def read_config_files(config_path: Path, environ: Mapping[str, str]) -> ConfigFiles:
    """All files of the configuration, for a command. Raises ConfigError or MaterialError."""
    access = FileAccess(Tls.model_fields["read_timeout"].default)
    return config_files(access.main_file(config_path), config_path, environ, access)


def _configuration(
    config_path: Path, environ: Mapping[str, str], earlier: Inputs | None, candidate: bytes | None
) -> _Configuration:
    access = FileAccess(
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
    found = read_together(limits, tls.read_timeout)
    files |= found.files
    failures |= found.failures
    keys = [tls.key, *(pair[1] for pair in client_pairs(configuration.loaded.config).values())]
    warnings = found.exposed_keys(keys)
    if previous is not None:
        files |= {path: data for path, data in previous.files.items() if files.get(path) == data}
    same = previous is not None and files == previous.files and _texts(failures) == _texts(previous.failures)
    digest = previous.digest if previous is not None and same else _digest(files, failures)
    return Inputs(
        configuration.loaded,
        files,
        digest,
        found.targets,
        warnings,
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
