"""The result of a reload: its publication, and the status of each input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from tlsproxy.config.locks import lock_path
from tlsproxy.errors import FailureKind
from tlsproxy.snapshot.diff import Change
from tlsproxy.snapshot.states import Fault, Input, InputKind, States

Disposition: TypeAlias = Literal["published", "waits", "refused", "retried"]

ReloadOutcome: TypeAlias = Literal["ok", "unchanged", "partial", "held", "failed"]

_DISPOSITIONS: Final[Mapping[FailureKind, Disposition]] = {
    FailureKind.INPUT: "refused",
    FailureKind.AGE: "refused",
    FailureKind.TIME: "waits",
    FailureKind.ENVIRONMENT: "retried",
}
_SETTLING: Final = "it may be half replaced"

_WITHOUT: Final[Mapping[str, str]] = {
    "crl": "it is left out until then",
    "secret": "its key is nobody's until then",
    "public_keys": "the tokens that it verifies are refused until then",
    "name": "what would go there is refused until it can",
}
"""Effect of an input without any good state."""


@dataclass(frozen=True, slots=True)
class InputStatus:
    """Status of an input.

    ``published``: its files are in force. Otherwise ``reason`` is why not: it is refused until it changes, waits for
    ``until`` (seconds since the epoch), or is retried. ``kept``: its last good state is in force.
    """

    input: InputKind
    name: str
    state: Disposition
    reason: str = ""
    until: float | None = None
    kept: bool = False


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """``ok``: all files are in force.

    ``unchanged``: they were before. ``partial``: some are in force since, and ``error`` is why the others are not.
    ``failed``: nothing has changed, by ``error``. ``held``: back, by `limits.mass_cut`.

    ``when`` is epoch seconds. ``changes`` are those of the last publication, at ``changed_at``: possibly of an earlier
    reload. ``consequences`` of the publication, also of one held back, are JSON values; None without one.
    ``config_sha256`` is the digest of the configuration file in force; of a rehearsal, of the one that would be.
    """

    result: ReloadOutcome
    trigger: str
    when: float
    generation: int
    error: str = ""
    changed_at: float | None = None
    changes: tuple[Change, ...] = ()
    consequences: Mapping[str, Any] | None = None
    inputs: tuple[InputStatus, ...] = ()
    config_sha256: str = ""


def input_statuses(
    config_path: Path, states: States, faults: Mapping[Input, Fault], now: float
) -> tuple[InputStatus, ...]:
    """Status of all inputs at ``now``; faulty ones first."""
    return (
        *(_faulty(subject, fault, now) for subject, fault in faults.items()),
        *(
            InputStatus(entry.kind, entry.name, "published")
            for entry in _inputs(config_path, states)
            if entry not in faults
        ),
    )


def _faulty(subject: Input, fault: Fault, now: float) -> InputStatus:
    if fault.settling(now):
        text = f"{fault.text}; {_SETTLING}"
        return InputStatus(subject.kind, subject.name, "waits", text, fault.due, fault.kept)
    state = _DISPOSITIONS[fault.kind]
    return InputStatus(subject.kind, subject.name, state, reason(subject, fault), fault.moment, fault.kept)


def problems(faults: Mapping[Input, Fault], now: float) -> str:
    """Faults that make a reload partial, one a line.

    None are a name with former addresses, which still serve, and a pair that may be half replaced.
    """
    return "\n".join(
        reason(subject, fault)
        for subject, fault in faults.items()
        if (subject.kind != "name" or not fault.kept) and not fault.settling(now)
    )


def settling(faults: Mapping[Input, Fault], now: float) -> tuple[Fault, ...]:
    return tuple(fault for fault in faults.values() if fault.settling(now))


def reason(subject: Input, fault: Fault) -> str:
    return fault.text if fault.kept or subject.kind not in _WITHOUT else f"{fault.text}; {_WITHOUT[subject.kind]}"


def outcome(error: str, *, changed: bool) -> ReloadOutcome:
    if error:
        return "partial" if changed else "failed"
    return "ok" if changed else "unchanged"


def counted(inputs: tuple[InputStatus, ...]) -> Mapping[tuple[str, str], int]:
    """Counts by input kind and status, for metrics."""
    return Counter((entry.input, entry.state) for entry in inputs)


def _inputs(config_path: Path, states: States) -> Iterator[Input]:
    tls = states.configuration.value.config.tls
    yield Input("configuration", str(config_path))
    yield Input("certificate", str(tls.cert))
    if tls.ca_cert is not None:
        yield Input("authorities", str(tls.ca_cert))
    yield from (Input("crl", str(path)) for path in states.crls)
    yield from (Input("client_certificate", str(path)) for path in states.client_certificates)
    yield from (Input("server_authorities", str(path)) for path in states.server_authorities)
    yield from (Input("secret", str(path)) for path in states.secrets)
    yield from (Input("public_keys", str(path)) for path in states.public_keys)
    if states.locks.value.locks:
        yield Input("locks", str(lock_path(config_path)))
    yield from (Input("name", name) for name in states.names)
