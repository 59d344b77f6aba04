"""Validation of each input for itself: its best state, and the fault if its files hold another.

Bytes in force are not validated again: age is no fault of a file. A bad file keeps its last good state, and one that is
not valid yet waits beside it; neither holds up another input. So a removed role or a revocation is published even if
the server certificate is broken at the same time. Pure, except for the trial handshake that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography.hazmat.primitives.serialization import Encoding

from tlsproxy.authz.identity import anchor_of
from tlsproxy.config.ca_checks import unnamed_constraints
from tlsproxy.config.findings import Finding
from tlsproxy.config.loader import located
from tlsproxy.config.pieces import packed, unpacked
from tlsproxy.config.problems import ConfigError
from tlsproxy.config.secrets import known_keys, repeated_keys, secret_files, secret_in
from tlsproxy.config.tokens import key_file, key_sources, keys_in
from tlsproxy.config.upstream_tls_checks import authority_files, client_pairs
from tlsproxy.errors import FailureKind, MaterialError, TlsproxyError
from tlsproxy.snapshot.candidates import (
    Candidate,
    CrlFile,
    Data,
    SeriesOf,
    ServerPair,
    authorities_in,
    client_certificate,
    series_among,
    without_early,
)
from tlsproxy.snapshot.judge import Judge
from tlsproxy.snapshot.lock_file import NO_LOCKS
from tlsproxy.snapshot.name_resolution import Resolved, names_of
from tlsproxy.snapshot.states import Fault, Input, InputState, PublicKeys, States
from tlsproxy.tls.material import crl_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from cryptography import x509

    from tlsproxy.config.callers import JwtIssuer
    from tlsproxy.config.loader import Loaded
    from tlsproxy.config.locks import LockFile
    from tlsproxy.config.model import Config
    from tlsproxy.config.problems import Problem
    from tlsproxy.config.tokens import KeySource
    from tlsproxy.snapshot.files import Inputs
    from tlsproxy.tls.crls import Crl
    from tlsproxy.tls.owncert import OwnCertificate
    from tlsproxy.tls.trust import Trust


@dataclass(frozen=True, slots=True)
class InputReading:
    """Inputs to validate. ``resolved`` has the names of ``inputs.loaded``, ``documents`` its key sets by URL.

    ``started`` is the configuration at the process's start; None for that of ``inputs``. ``patient``: nobody waits for
    a verdict, so that a server pair may be half replaced for `tls.settle_time`. ``locks`` are those of a first
    generation; later ones keep theirs, which are published apart (:mod:`tlsproxy.snapshot.lock_file`).
    """

    config_path: Path
    environ: Mapping[str, str] = field(repr=False)
    inputs: Inputs
    resolved: Mapping[str, Resolved]
    documents: Mapping[KeySource, bytes] = field(repr=False)
    started: Config | None = field(default=None, repr=False)
    patient: bool = False
    locks: InputState[LockFile] = NO_LOCKS


@dataclass(frozen=True, slots=True)
class ServingInputs:
    """Inputs in force: states, trust, and the server's chain as it is sent to clients."""

    states: States
    trust: Trust = field(repr=False)
    sent: Sequence[x509.Certificate] = field(repr=False)


@dataclass(frozen=True, slots=True)
class InputJudgement:
    """``states`` is None if an input without which nothing can be served has no good state."""

    states: States | None
    faults: Mapping[Input, Fault]


_NEEDED: Final = frozenset({"certificate", "authorities", "client_certificate", "server_authorities"})
"""Kinds of inputs without which nothing can be served."""

Trial: TypeAlias = "Callable[[OwnCertificate], None]"
Authorities: TypeAlias = "InputState[tuple[x509.Certificate, ...]] | None"


def judge(
    reading: InputReading, serving: ServingInputs | None, faults: Mapping[Input, Fault], now: float, trial: Trial
) -> InputJudgement:
    """Validate all inputs. ``faults`` are the previous ones, ``now`` is seconds since the epoch.

    ``trial`` raises MaterialError if a handshake fails. Raises ConfigError if the configuration contradicts the other
    inputs and there is no former one to fall back on.
    """
    former = serving.states.configuration if serving is not None else None
    failure = reading.inputs.failures.get(reading.config_path)
    if failure is not None and former is not None:
        configuration = former
    else:
        loaded = reading.inputs.loaded
        same = former is not None and former.value == loaded
        configuration = former if former is not None and same else InputState.of(loaded, _bytes_of(reading))
    try:
        validated = _Validator(reading, configuration, serving, faults, now, trial).validated()
    except ConfigError as error:
        if former is None or configuration is former:
            raise
        validated, failure = _Validator(reading, former, serving, faults, now, trial).validated(), error
    if failure is not None:
        fault = Fault(str(failure), failure.kind, failure.moment, "", now, kept=True)
    elif validated.states is None and former is not None and configuration is not former:
        fault = _unserved(validated)
        validated = _Validator(reading, former, serving, faults, now, trial).validated()
    else:
        return validated
    return replace(validated, faults={Input("configuration", str(reading.config_path)): fault, **validated.faults})


def _unserved(validated: InputJudgement) -> Fault:
    """The fault of a configuration that names a new file without which nothing can be served, and which is bad."""
    fault = next(fault for one, fault in validated.faults.items() if one.kind in _NEEDED and not fault.kept)
    return replace(fault, text=f"{fault.text}; the configuration that names it waits for it", read="", kept=True)


def _bytes_of(reading: InputReading) -> tuple[bytes, ...]:
    files = reading.inputs.config_files
    return packed(files.main, files.pieces)


class _Validator:
    """Validation under one configuration. Files that were not read for it keep their state."""

    def __init__(
        self,
        reading: InputReading,
        configuration: InputState[Loaded],
        serving: ServingInputs | None,
        former_faults: Mapping[Input, Fault],
        now: float,
        trial: Trial,
    ) -> None:
        self._reading = reading
        self._configuration = configuration
        self._config = configuration.value.config
        self._serving = serving
        self._former = serving.states if serving is not None else None
        self._now = now
        self._trial = trial
        settle_time = self._config.tls.settle_time if reading.patient else None
        inputs, digest = reading.inputs, configuration.digest
        self._judge = Judge(inputs.files, inputs.failures, former_faults, now, settle_time, digest)
        self._faults = self._judge.faults

    def validated(self) -> InputJudgement:
        authorities = self._constrained(self._authorities())
        server = self._server(authorities)
        crls, secrets = self._crls(authorities), self._secrets()
        certificates, server_authorities = self._client_certificates(), self._server_authorities()
        public_keys, names = self._public_keys(), self._names()
        if server is None or (self._config.tls.ca_cert is not None and authorities is None):
            return InputJudgement(None, self._faults)
        if not (
            certificates.keys() >= client_pairs(self._config).keys()
            and server_authorities.keys() >= {*authority_files(self._config)}
        ):
            return InputJudgement(None, self._faults)
        fetched, former = self._reading.documents, {} if self._former is None else self._former.documents
        sources = key_sources(self._config)
        documents = {one: fetched.get(one) or former[one] for one in sources if one in fetched or one in former}
        locks = self._reading.locks if self._former is None else self._former.locks
        states = States(
            self._configuration,
            server,
            authorities,
            crls,
            certificates,
            server_authorities,
            secrets,
            public_keys,
            locks,
            names,
            documents,
        )
        return InputJudgement(states, self._faults)

    # Certificates and CRLs

    def _authorities(self) -> Authorities:
        path = self._config.tls.ca_cert
        if path is None:
            return None
        former = self._former.authorities if self._former is not None else None
        subject = Input("authorities", str(path))
        return self._judge.best(
            subject, [path], former, lambda data: authorities_in(path, data, former, self._now, "clients")
        )

    def _constrained(self, authorities: Authorities) -> Authorities:
        """Apply `tls.ca_constraints`: a new one must name a CA of the file, else ConfigError is raised.

        The CA of an accepted constraint may be removed. From then on no CA is added until the constraint names one
        again: a re-issued CA, for example, has another digest than its `ca_sha256`, and would come in unconfined.
        """
        if authorities is None or any(subject.kind == "authorities" for subject in self._faults):
            return authorities
        accepted = self._former.configuration.value.config.tls.ca_constraints if self._former is not None else ()
        found = list(unnamed_constraints(self._config, [anchor_of(one) for one in authorities.value]))
        self._refuse(finding for constraint, finding in found if constraint not in accepted)
        former = self._former.authorities if self._former is not None else None
        if not found or former is None or set(authorities.value) <= set(former.value):
            return authorities
        problems = "\n".join(map(str, self._located(finding for _, finding in found)))
        self._judge.report(Input("authorities", str(self._config.tls.ca_cert)), TlsproxyError(problems), "", kept=True)
        remaining = tuple(ca for ca in former.value if ca in authorities.value)
        if not remaining:
            return former
        pem = b"".join(ca.public_bytes(Encoding.PEM) for ca in remaining)
        return former if remaining == former.value else InputState.of(remaining, (pem,), whole=False)

    def _located(self, found: Iterable[Finding]) -> tuple[Problem, ...]:
        reading = self._reading
        data, pieces = unpacked(self._configuration.data)
        return located(data, reading.config_path, reading.environ, found, pieces)

    def _refuse(self, found: Iterable[Finding]) -> None:
        if problems := self._located(found):
            raise ConfigError(problems)

    def _server(self, authorities: Authorities) -> InputState[OwnCertificate] | None:
        tls, serving = self._config.tls, self._serving
        paths = [path for path in (tls.cert, tls.key, tls.key_passphrase_file) if path is not None]
        pair = ServerPair(
            tls,
            authorities.value if authorities is not None else (),
            serving.sent if serving is not None else (),
            self._trial,
        )
        former = self._former.server if self._former is not None else None
        return self._judge.best(
            Input("certificate", str(tls.cert)), paths, former, lambda data: pair.candidate(data, self._now)
        )

    def _client_certificates(self) -> dict[Path, InputState[OwnCertificate]]:
        known = self._former.client_certificates if self._former is not None else {}
        states = {}
        for path, paths in client_pairs(self._config).items():
            if (state := self._client_certificate(paths, known.get(path))) is not None:
                states[path] = state
        return states

    def _client_certificate(
        self, paths: Sequence[Path], former: InputState[OwnCertificate] | None
    ) -> InputState[OwnCertificate] | None:
        subject = Input("client_certificate", str(paths[0]))
        return self._judge.best(subject, paths, former, lambda data: client_certificate(paths, data, former, self._now))

    def _server_authorities(self) -> dict[Path, InputState[tuple[x509.Certificate, ...]]]:
        known = self._former.server_authorities if self._former is not None else {}
        states = {}
        for path in authority_files(self._config):
            if (state := self._server_authority(path, known.get(path))) is not None:
                states[path] = state
        return states

    def _server_authority(self, path: Path, former: Authorities) -> Authorities:
        return self._judge.best(
            Input("server_authorities", str(path)),
            [path],
            former,
            lambda data: authorities_in(path, data, former, self._now, "servers"),
        )

    def _crls(self, authorities: Authorities) -> dict[Path, InputState[tuple[Crl, ...]]]:
        tls, former = self._config.tls, self._former.crls if self._former is not None else {}
        known = authorities.value if authorities is not None else ()
        place = series_among((*known, *(self._serving.trust.configured if self._serving is not None else ())))
        states = {}
        for path in tls.crl:
            if (state := self._crl(path, former.get(path), authorities, place)) is not None:
                states[path] = state
        missing = next((path for path in tls.crl if path not in states), None)
        dropped = tuple(crl for path, state in former.items() if path not in tls.crl for crl in state.value)
        if missing is not None and dropped:
            # It may be the successor of a removed file, which shows once it can be read: until then revocations stay.
            states[missing] = InputState.of(dropped, tuple(crl.der for crl in dropped), whole=False)
            self._mark_kept(missing, kept=True)
        found = without_early(states, place, self._now)
        for path in states.keys() - found.keys():
            self._mark_kept(path, kept=False)
        return found

    def _mark_kept(self, path: Path, *, kept: bool) -> None:
        if (fault := self._faults.get(subject := Input("crl", str(path)))) is not None:
            self._faults[subject] = replace(fault, kept=kept)

    def _crl(
        self, path: Path, former: InputState[tuple[Crl, ...]] | None, authorities: Authorities, place: SeriesOf
    ) -> InputState[tuple[Crl, ...]] | None:
        file = CrlFile(
            path,
            former,
            self._serving.trust if self._serving is not None else None,
            authorities.value if authorities is not None else (),
            place,
            crl_policy(self._config.tls).deny_expired,
        )
        depends_on = "" if authorities is None else authorities.digest
        return self._judge.best(
            Input("crl", str(path)), [path], former, lambda data: file.candidate(data, self._now), depends_on
        )

    # Keys and names

    def _secrets(self) -> dict[Path, InputState[str]]:
        former = self._former.secrets if self._former is not None else {}
        states = {}
        for path in dict.fromkeys(secret_files(self._config)):
            if (state := self._secret(path, former.get(path))) is not None:
                states[path] = state
        while (repeated := self._repeated(states)) is not None:
            name, same, files = repeated
            text = f"keys.{name} is the same key as {same}: every name needs a key of its own"
            new = next((path for path in files if states[path] is not former.get(path)), None)
            if new is None or self._former is None:
                index = next(index for index, key in enumerate(self._config.keys) if key.name == name)
                self._refuse([Finding(("keys", index), text)])
                break
            self._judge.report(Input("secret", str(new)), MaterialError(str(new), text), "", kept=new in former)
            del states[new]
            if new in former:
                states[new] = former[new]
        return states

    def _secret(self, path: Path, former: InputState[str] | None) -> InputState[str] | None:
        def candidate(data: Data) -> Candidate[str]:
            return InputState.of(secret_in(path, data[0]), data), None

        return self._judge.best(Input("secret", str(path)), [path], former, candidate)

    def _repeated(self, states: Mapping[Path, InputState[str]]) -> tuple[str, str, tuple[Path, ...]] | None:
        keys = known_keys(self._config, lambda path: states[path].data[0] if path in states else None)
        return next(repeated_keys(self._config, keys), None)

    def _public_keys(self) -> dict[Path, InputState[PublicKeys]]:
        former = self._former.public_keys if self._former is not None else {}
        issuers: dict[Path, list[JwtIssuer]] = {}
        for issuer in self._config.jwt_issuers:
            if (path := key_file(issuer)) is not None:
                issuers.setdefault(path, []).append(issuer)
        states = {}
        for path, users in issuers.items():
            if (state := self._public_key(path, users, former.get(path))) is not None:
                states[path] = state
        return states

    def _public_key(
        self, path: Path, issuers: Sequence[JwtIssuer], former: InputState[PublicKeys] | None
    ) -> InputState[PublicKeys] | None:
        """A state serves only the formats and algorithms that it was parsed for."""
        uses = {f"{'jwks' if one.pem is None else 'pem'} {one.algorithm}": one for one in issuers}
        if former is not None and not former.value.keys() >= uses.keys():
            former = None

        def candidate(data: Data) -> Candidate[PublicKeys]:
            return InputState.of({use: keys_in(one, data[0]) for use, one in uses.items()}, data), None

        return self._judge.best(Input("public_keys", str(path)), [path], former, candidate)

    def _names(self) -> dict[str, Resolved]:
        """Addresses of all names; the same addresses in another order change nothing."""
        found = {}
        former = self._former.names if self._former is not None else {}
        for name, url in names_of(self._config, self._reading.started or self._config).items():
            before, answer = former.get(name), self._reading.resolved.get(name)
            if before is None or before.url != url:
                before = Resolved(url)
            found[name] = before
            if answer is None or answer.url != url:
                continue
            if answer.error:
                error = MaterialError(name, answer.error, FailureKind.ENVIRONMENT)
                self._judge.report(Input("name", name), error, "", kept=bool(before.addresses))
            elif set(answer.addresses) != set(before.addresses):
                found[name] = answer
        return found
