"""Inputs judged each for itself: of each the best state that there is, and why its files hold another.

Bytes that serve are not judged again: age is no fault of a file. What is bad keeps the last good state, what is not
valid yet waits beside it, and neither keeps any other input from its best state. So what takes rights away is
published whatever else is wrong. Pure, but for the trial handshake that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding

from tlsproxy.authz.identity import anchor_of
from tlsproxy.config.ca_checks import unnamed_constraints
from tlsproxy.config.findings import Finding
from tlsproxy.config.loader import located
from tlsproxy.config.problems import ConfigError
from tlsproxy.config.secrets import known_keys, repeated_keys, secret_files, secret_in
from tlsproxy.config.tokens import key_file, key_sources, keys_in
from tlsproxy.errors import FailureKind, MaterialError, TlsproxyError
from tlsproxy.snapshot.candidates import (
    CrlFile,
    Data,
    Made,
    Places,
    ServerPair,
    authorities_in,
    none_early,
    places_among,
)
from tlsproxy.snapshot.name_resolution import Resolved, names_of
from tlsproxy.snapshot.states import Fault, Input, InputState, PublicKeys, States, digest_of
from tlsproxy.tls.material import crl_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from cryptography import x509

    from tlsproxy.config.callers import JwtIssuer
    from tlsproxy.config.loader import Loaded
    from tlsproxy.config.model import Config
    from tlsproxy.config.problems import Problem
    from tlsproxy.config.tokens import KeySource
    from tlsproxy.snapshot.files import Inputs
    from tlsproxy.tls.crls import Crl
    from tlsproxy.tls.servercert import ServerCertificate
    from tlsproxy.tls.trust import Trust

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class InputReading:
    """What there is to judge. ``resolved`` has the names of ``inputs.loaded``, ``documents`` its key sets by URL.

    ``started`` is the configuration that the process started with; None for that of ``inputs``.
    """

    config_path: Path
    environ: Mapping[str, str] = field(repr=False)
    inputs: Inputs
    resolved: Mapping[str, Resolved]
    documents: Mapping[KeySource, bytes] = field(repr=False)
    started: Config | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ServingInputs:
    """What serves: its states, whom it trusts, and the server's chain as clients are sent it."""

    states: States
    trust: Trust = field(repr=False)
    sent: Sequence[x509.Certificate] = field(repr=False)


@dataclass(frozen=True, slots=True)
class InputJudgement:
    """``states`` is None where there is nothing to serve with."""

    states: States | None
    faults: Mapping[Input, Fault]


Trial: TypeAlias = "Callable[[ServerCertificate], None]"
Authorities: TypeAlias = "InputState[tuple[x509.Certificate, ...]] | None"


def judge(
    reading: InputReading, serving: ServingInputs | None, faults: Mapping[Input, Fault], now: float, trial: Trial
) -> InputJudgement:
    """``faults`` are those of the judgement before, ``now`` is seconds since the epoch.

    ``trial`` raises MaterialError where no handshake can be made. Raises ConfigError where the configuration does not
    go with the other inputs and there is none before it.
    """
    former = serving.states.configuration if serving is not None else None
    failure = reading.inputs.failures.get(reading.config_path)
    if failure is not None and former is not None:
        configuration = former
    else:
        loaded = reading.inputs.loaded
        same = former is not None and former.value == loaded
        configuration = former if former is not None and same else InputState.of(loaded, (_bytes_of(reading),))
    try:
        judged = _Judge(reading, configuration, serving, faults, now, trial).judged()
    except ConfigError as error:
        if former is None or configuration is former:
            raise
        judged, failure = _Judge(reading, former, serving, faults, now, trial).judged(), error
    if failure is None:
        return judged
    fault = Fault(str(failure), failure.kind, failure.moment, "", now, kept=True)
    return replace(judged, faults={Input("configuration", str(reading.config_path)): fault, **judged.faults})


def _bytes_of(reading: InputReading) -> bytes:
    return reading.inputs.files[reading.config_path]


class _Judge:
    """By one configuration. Files that were not read for it keep the state that they have."""

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
        self._former_faults = former_faults
        self._now = now
        self._trial = trial
        self._faults: dict[Input, Fault] = {}

    def judged(self) -> InputJudgement:
        authorities = self._constrained(self._authorities())
        server = self._server(authorities)
        crls, secrets = self._crls(authorities), self._secrets()
        public_keys, names = self._public_keys(), self._names()
        if server is None or (self._config.tls.ca_cert is not None and authorities is None):
            return InputJudgement(None, self._faults)
        fetched, former = self._reading.documents, {} if self._former is None else self._former.documents
        sources = key_sources(self._config)
        documents = {one: fetched.get(one) or former[one] for one in sources if one in fetched or one in former}
        states = States(self._configuration, server, authorities, crls, secrets, public_keys, names, documents)
        return InputJudgement(states, self._faults)

    # One input

    def _best(
        self,
        which: Input,
        paths: Sequence[Path],
        former: InputState[T] | None,
        made: Callable[[Data], Made[T]],
        beside: str = "",
    ) -> InputState[T] | None:
        """``beside``: the digest of whatever else the outcome depends on."""
        inputs, kept = self._reading.inputs, former is not None
        for path in paths:
            if (failure := inputs.failures.get(path)) is not None:
                self._tell(which, failure, "", kept=kept)
                return former
        if any(path not in inputs.files for path in paths):
            return former
        data = tuple(inputs.files[path] for path in paths)
        read = digest_of(data)
        if former is not None and former.read == read:
            return former
        judged = f"{read} {self._configuration.digest} {beside}"
        fault = self._former_faults.get(which)
        if fault is not None and fault.read == judged and fault.stands(self._now):
            self._faults[which] = fault
            return former
        try:
            state, wrong = made(data)
        except MaterialError as error:
            self._tell(which, error, judged, kept=kept)
            return former
        except (OSError, MemoryError) as error:  # no descriptor, no memory: not the files' fault
            reason = (error.strerror if isinstance(error, OSError) else "") or type(error).__name__
            text = f"cannot be judged now: {reason}"
            self._tell(which, MaterialError(which.name, text, FailureKind.ENVIRONMENT), judged, kept=kept)
            return former
        if wrong is not None:
            self._tell(which, wrong, judged, kept=True)
        if former is not None and (former == state or former.value == state.value):
            return replace(former, read=state.read)
        return state

    def _tell(self, which: Input, error: TlsproxyError, read: str, *, kept: bool) -> None:
        self._faults[which] = Fault(str(error), error.kind, error.moment, read, self._now, kept)

    # Certificates and CRLs

    def _authorities(self) -> Authorities:
        path = self._config.tls.ca_cert
        if path is None:
            return None
        former = self._former.authorities if self._former is not None else None
        which = Input("authorities", str(path))
        return self._best(which, [path], former, lambda data: authorities_in(path, data, former, self._now))

    def _constrained(self, authorities: Authorities) -> Authorities:
        """A new constraint must name a CA. One that was accepted may lose its CA, which nothing keeps from going, but
        until it has one again no CA comes: it might be the one that is to be confined. Raises ConfigError.
        """
        if authorities is None or any(which.kind == "authorities" for which in self._faults):
            return authorities
        accepted = self._former.configuration.value.config.tls.ca_constraints if self._former is not None else ()
        found = list(unnamed_constraints(self._config, [anchor_of(one) for one in authorities.value]))
        self._refuse(finding for constraint, finding in found if constraint not in accepted)
        former = self._former.authorities if self._former is not None else None
        if not found or former is None or set(authorities.value) <= set(former.value):
            return authorities
        problems = "\n".join(map(str, self._located(finding for _, finding in found)))
        self._tell(Input("authorities", str(self._config.tls.ca_cert)), TlsproxyError(problems), "", kept=True)
        still = tuple(one for one in former.value if one in authorities.value)
        if not still:
            return former
        pem = b"".join(one.public_bytes(Encoding.PEM) for one in still)
        return former if still == former.value else InputState.of(still, (pem,), whole=False)

    def _located(self, found: Iterable[Finding]) -> tuple[Problem, ...]:
        reading = self._reading
        return located(self._configuration.data[0], reading.config_path, reading.environ, found)

    def _refuse(self, found: Iterable[Finding]) -> None:
        if problems := self._located(found):
            raise ConfigError(problems)

    def _server(self, authorities: Authorities) -> InputState[ServerCertificate] | None:
        tls, serving = self._config.tls, self._serving
        paths = [path for path in (tls.cert, tls.key, tls.key_passphrase_file) if path is not None]
        pair = ServerPair(
            tls,
            authorities.value if authorities is not None else (),
            serving.sent if serving is not None else (),
            self._trial,
        )
        former = self._former.server if self._former is not None else None
        return self._best(Input("certificate", str(tls.cert)), paths, former, lambda data: pair.made(data, self._now))

    def _crls(self, authorities: Authorities) -> dict[Path, InputState[tuple[Crl, ...]]]:
        tls, former = self._config.tls, self._former.crls if self._former is not None else {}
        known = authorities.value if authorities is not None else ()
        place = places_among((*known, *(self._serving.trust.configured if self._serving is not None else ())))
        states = {}
        for path in tls.crl:
            if (state := self._crl(path, former.get(path), authorities, place)) is not None:
                states[path] = state
        missing = next((path for path in tls.crl if path not in states), None)
        gone = tuple(crl for path, state in former.items() if path not in tls.crl for crl in state.value)
        if missing is not None and gone:
            # Whose place it takes is not known as long as it cannot be read: what was revoked stays revoked.
            states[missing] = InputState.of(gone, tuple(crl.der for crl in gone), whole=False)
            self._tell_kept(missing, kept=True)
        found = none_early(states, place, self._now)
        for path in states.keys() - found.keys():
            self._tell_kept(path, kept=False)
        return found

    def _tell_kept(self, path: Path, *, kept: bool) -> None:
        if (fault := self._faults.get(which := Input("crl", str(path)))) is not None:
            self._faults[which] = replace(fault, kept=kept)

    def _crl(
        self, path: Path, former: InputState[tuple[Crl, ...]] | None, authorities: Authorities, place: Places
    ) -> InputState[tuple[Crl, ...]] | None:
        file = CrlFile(
            path,
            former,
            self._serving.trust if self._serving is not None else None,
            authorities.value if authorities is not None else (),
            place,
            crl_policy(self._config.tls).deny_expired,
        )
        beside = "" if authorities is None else authorities.digest
        return self._best(Input("crl", str(path)), [path], former, lambda data: file.made(data, self._now), beside)

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
            self._tell(Input("secret", str(new)), MaterialError(str(new), text), "", kept=new in former)
            del states[new]
            if new in former:
                states[new] = former[new]
        return states

    def _secret(self, path: Path, former: InputState[str] | None) -> InputState[str] | None:
        def made(data: Data) -> Made[str]:
            return InputState.of(secret_in(path, data[0]), data), None

        return self._best(Input("secret", str(path)), [path], former, made)

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
        for path, those in issuers.items():
            if (state := self._public_key(path, those, former.get(path))) is not None:
                states[path] = state
        return states

    def _public_key(
        self, path: Path, issuers: Sequence[JwtIssuer], former: InputState[PublicKeys] | None
    ) -> InputState[PublicKeys] | None:
        """A state is good for the forms and algorithms in which it was read."""
        uses = {f"{'jwks' if one.pem is None else 'pem'} {one.algorithm}": one for one in issuers}
        if former is not None and not former.value.keys() >= uses.keys():
            former = None

        def made(data: Data) -> Made[PublicKeys]:
            return InputState.of({use: keys_in(one, data[0]) for use, one in uses.items()}, data), None

        return self._best(Input("public_keys", str(path)), [path], former, made)

    def _names(self) -> dict[str, Resolved]:
        """An answer with the addresses of before, in whatever order, is no news."""
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
                self._tell(Input("name", name), error, "", kept=bool(before.addresses))
            elif set(answer.addresses) != set(before.addresses):
                found[name] = answer
        return found
