"""Files of client mode, read and judged: configuration, CAs, certificate with key. Each keeps its last good state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cryptography import x509

from tlsproxy.config.endpoints import upstream_url
from tlsproxy.config.shape import restart_settings
from tlsproxy.connector.model import NO_ALPN, ConnectConfig, ConnectListener, ConnectTls, Loaded, parse
from tlsproxy.errors import TlsproxyError
from tlsproxy.snapshot.candidates import authorities_in, client_certificate
from tlsproxy.snapshot.files import ATTEMPTS, PAUSE
from tlsproxy.snapshot.judge import Judge
from tlsproxy.snapshot.reading import CONFIG_LIMIT, PEM_LIMIT, SECRET_LIMIT, FileSet, UnstableInputs, read_together
from tlsproxy.snapshot.server_tls import ServerTls
from tlsproxy.snapshot.startup import CannotStart, prevents_start
from tlsproxy.snapshot.states import Fault, Input, InputState
from tlsproxy.text import utc_time
from tlsproxy.tls.certinfo import facts_of
from tlsproxy.tls.client_context import ClientTls
from tlsproxy.tls.owncert import OwnCertificate

START_POLL: Final = 0.2
"""Seconds between two readings while a start waits for a pair that does not match."""


@dataclass(frozen=True, slots=True)
class States:
    """The best states of the files; implements :class:`tlsproxy.snapshot.server_tls.TlsStates`."""

    configuration: InputState[Loaded]
    server_authorities: Mapping[Path, InputState[tuple[x509.Certificate, ...]]]
    client_certificates: Mapping[Path, InputState[OwnCertificate]]

    @property
    def complete(self) -> bool:
        """Whether each file of the configuration has a good state."""
        tls = self.configuration.value.config.tls
        return tls.ca_cert in self.server_authorities and (tls.cert is None or tls.cert in self.client_certificates)


@dataclass(frozen=True, slots=True)
class Material:
    """All that new connections are made by.

    ``listeners`` are those that are bound, by `listen`; ``ways`` of TLS are by listener and target. ``restart`` names
    settings of the file that wait for a restart, ``faults`` are of files that are not in force.
    """

    states: States
    listeners: Mapping[str, ConnectListener]
    ways: Mapping[tuple[str, str], ClientTls] = field(repr=False)
    made: Mapping[tuple[object, ...], ClientTls] = field(repr=False)
    restart: tuple[str, ...]
    faults: Mapping[Input, Fault]
    warnings: tuple[str, ...]

    @property
    def config(self) -> ConnectConfig:
        return self.states.configuration.value.config

    @property
    def certificate(self) -> OwnCertificate | None:
        """Our client certificate."""
        return next((state.value for state in self.states.client_certificates.values()), None)

    def news(self, former: Material) -> Iterator[str]:
        """The files that are others than those of ``former``."""
        states, before = self.states, former.states
        if states.configuration != before.configuration:
            yield "configuration"
        for path, state in states.server_authorities.items():
            if before.server_authorities.get(path) != state:
                yield f"{path}, CAs: {len(state.value)}"
        for path, certificate in states.client_certificates.items():
            if before.client_certificates.get(path) != certificate:
                facts = facts_of(certificate.value.chain[0])
                yield f"{path}, serial {facts.serial}, valid until {utc_time(facts.not_after)}"

    def problems(self, now: float) -> list[str]:
        """Reasons why the files are not in force as they are."""
        faults = [fault.text for fault in self.faults.values() if not fault.settling(now)]
        return faults + [f"{name}: a restart applies it" for name in self.restart]


@dataclass(frozen=True, slots=True)
class _Reading:
    """``loaded`` is None where the file could not be read or parsed, by ``failure``."""

    data: bytes
    loaded: Loaded | None
    failure: TlsproxyError | None
    files: FileSet

    @property
    def found(self) -> object:
        """Equal for two readings with the same outcome."""
        failures = {path: str(failure) for path, failure in self.files.failures.items()}
        return self.data, str(self.failure), self.files.files, self.files.targets, failures

    @property
    def unstable(self) -> bool:
        return any(isinstance(each, UnstableInputs) for each in (self.failure, *self.files.failures.values()))


class Source:
    """The files of one process. ``paths`` are those of the last reading. Its methods block: they are for a thread."""

    def __init__(self, config_path: Path, environ: Mapping[str, str]) -> None:
        self._config_path = config_path
        self._environ = environ
        self.paths: frozenset[Path] = frozenset([config_path])

    def first(self, announce: Callable[[str], object]) -> Material:
        """The material of a start, which waits `tls.settle_time` for a pair that does not match yet.

        ``announce`` is given the reason of the wait. Raises ConfigError, MaterialError or CannotStart.
        """
        end = 0.0
        while True:
            reading = self._agreed(None)
            if reading.loaded is None:
                raise reading.failure or AssertionError("no configuration, and no failure")
            try:
                return _first(reading, reading.loaded)
            except CannotStart as error:
                patience, now = reading.loaded.config.tls.settle_time, time.monotonic()
                if not (error.unmatched and patience) or (end and now >= end):
                    raise
                if not end:
                    end = now + patience
                    announce(f"{error}: waiting for it for {patience:g} s")
            time.sleep(START_POLL)

    def next(self, former: Material, started: ConnectConfig) -> Material:
        """The material after ``former``, which is returned itself where nothing has changed.

        ``started`` is the configuration of the start.
        """
        reading, now = self._agreed(former), time.time()
        configuration = former.states.configuration
        if reading.loaded is not None and reading.loaded != configuration.value:
            configuration = InputState.of(reading.loaded, (reading.data,))
        states, faults = _judged(reading, configuration, former, now)
        if reading.failure is not None:
            failure = reading.failure
            fault = Fault(str(failure), failure.kind, failure.moment, "", now, kept=True)
            faults = {Input("configuration", str(self._config_path)): fault, **faults}
        if not states.complete:
            return _changed(replace(former, faults=faults), former)
        listeners = {each.listen: each for each in states.configuration.value.config.listeners}
        bound = {listen: listeners.get(listen, each) for listen, each in former.listeners.items()}
        material = _material(states, bound, faults, reading, former.made)
        present, wanted = restart_settings(started), restart_settings(material.config)
        material = replace(material, restart=tuple(name for name in present if present[name] != wanted.get(name)))
        return _changed(material, former)

    def _agreed(self, former: Material | None) -> _Reading:
        """A reading on which two in a row agree, or the last one."""
        reading = self._reading(former)
        for _ in range(ATTEMPTS - 1):
            time.sleep(PAUSE)
            previous, reading = reading, self._reading(former)
            if reading.found == previous.found and not reading.unstable:
                break
        return reading

    def _reading(self, former: Material | None) -> _Reading:
        timeout = ConnectTls.model_fields["read_timeout"].default if former is None else former.config.tls.read_timeout
        main = read_together({self._config_path: CONFIG_LIMIT}, timeout)
        data, loaded = main.files.get(self._config_path, b""), None
        failure: TlsproxyError | None = main.failures.get(self._config_path)
        if failure is None:
            try:
                loaded = parse(data, self._config_path, self._environ)
            except TlsproxyError as error:
                failure = error.with_traceback(None)
        config = loaded.config if loaded is not None else None if former is None else former.config
        files = read_together({} if config is None else _limits(config.tls), timeout)
        self.paths = frozenset([self._config_path, *files.files, *files.failures])
        return _Reading(data, loaded, failure, files)


def _first(reading: _Reading, loaded: Loaded) -> Material:
    states, faults = _judged(reading, InputState.of(loaded, (reading.data,)), None, time.time())
    if not states.complete or any(prevents_start(*each) for each in faults.items()):
        raise CannotStart(faults.values())
    return _material(states, {each.listen: each for each in loaded.config.listeners}, faults, reading, {})


def _limits(tls: ConnectTls) -> dict[Path, int]:
    wanted = {tls.ca_cert: PEM_LIMIT, tls.cert: PEM_LIMIT, tls.key: PEM_LIMIT, tls.key_passphrase_file: SECRET_LIMIT}
    return {path: limit for path, limit in wanted.items() if path is not None}


def _judged(
    reading: _Reading, configuration: InputState[Loaded], former: Material | None, now: float
) -> tuple[States, Mapping[Input, Fault]]:
    """The best states under a configuration, and the faults of the files."""
    tls, files = configuration.value.config.tls, reading.files
    judge = Judge(
        files.files,
        files.failures,
        {} if former is None else former.faults,
        now,
        None if former is None else tls.settle_time,
        configuration.digest,
    )
    known = None if former is None else former.states.server_authorities.get(tls.ca_cert)
    authorities = judge.best(
        Input("server_authorities", str(tls.ca_cert)),
        [tls.ca_cert],
        known,
        lambda data: authorities_in(tls.ca_cert, data, known, now, "servers"),
    )
    certificates: dict[Path, InputState[OwnCertificate]] = {}
    if tls.cert is not None and tls.key is not None:
        pair = [path for path in (tls.cert, tls.key, tls.key_passphrase_file) if path is not None]
        last = None if former is None else former.states.client_certificates.get(tls.cert)
        certificate = judge.best(
            Input("client_certificate", str(tls.cert)),
            pair,
            last,
            lambda data: client_certificate(pair, data, last, now),
        )
        if certificate is not None:
            certificates[tls.cert] = certificate
    return States(configuration, {} if authorities is None else {tls.ca_cert: authorities}, certificates), judge.faults


def _material(
    states: States,
    listeners: Mapping[str, ConnectListener],
    faults: Mapping[Input, Fault],
    reading: _Reading,
    made: Mapping[tuple[object, ...], ClientTls],
) -> Material:
    tls, server_tls = states.configuration.value.config.tls, ServerTls(states, made)
    ways: dict[tuple[str, str], ClientTls] = {}
    for listen, listener in listeners.items():
        alpn = "" if listener.alpn == NO_ALPN else listener.alpn
        for target in listener.targets:
            way = server_tls.of(tls, upstream_url(f"https://{target}"), alpn)
            if way is None:
                raise AssertionError("a target in plaintext")
            ways[listen, target] = way
    warnings = (
        *map(str, states.configuration.value.warnings),
        *(warning for state in states.client_certificates.values() for warning in state.value.warnings),
        *reading.files.exposed_keys([tls.key] if tls.key is not None else []),
    )
    return Material(states, listeners, ways, server_tls.made, (), faults, warnings)


def _changed(material: Material, former: Material) -> Material:
    """The material, or ``former`` itself where nothing of it is new."""
    return former if _comparable(material) == _comparable(former) else material


def _comparable(material: Material) -> object:
    """Equal for two that connections are made alike by, with the same to tell."""
    states = material.states
    digests = [states.configuration.digest]
    digests += [state.digest for state in states.server_authorities.values()]
    digests += [state.digest for state in states.client_certificates.values()]
    faults = {subject: (fault.text, fault.due, fault.kept) for subject, fault in material.faults.items()}
    return digests, faults, material.warnings
