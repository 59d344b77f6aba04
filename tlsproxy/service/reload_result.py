"""The outcome of a reload: what was published, and how each input stands to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from tlsproxy.errors import FailureKind
from tlsproxy.snapshot.diff import Change
from tlsproxy.snapshot.states import Fault, Input, InputKind, States

Disposition: TypeAlias = Literal["published", "waits", "refused", "retried"]

ReloadOutcome: TypeAlias = Literal["ok", "unchanged", "partial", "held", "failed"]

_STANDS: Final[Mapping[FailureKind, Disposition]] = {
    FailureKind.INPUT: "refused",
    FailureKind.AGE: "refused",
    FailureKind.TIME: "waits",
    FailureKind.ENVIRONMENT: "retried",
}


_WITHOUT: Final[Mapping[str, str]] = {
    "crl": "it is left out until then",
    "secret": "its key is nobody's until then",
    "public_keys": "the tokens that it verifies are refused until then",
    "name": "what would go there is refused until then",
}
"""The effect of an input that has no good state at all."""


@dataclass(frozen=True, slots=True)
class InputStatus:
    """``published``: what its files hold serves. Else ``reason`` says why not: it is refused until it changes, waits
    for ``until`` (seconds since the epoch), or is tried again. ``kept``: its last good state serves meanwhile.
    """

    input: InputKind
    name: str
    state: Disposition
    reason: str = ""
    until: float | None = None
    kept: bool = False


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """``ok``: what the files hold serves. ``unchanged``: it did already. ``partial``: some of it serves since, and
    ``error`` says why the rest does not. ``failed``: nothing has changed, for that reason.
    ``held``: back, by `limits.mass_cut`.

    ``when`` is epoch seconds. ``changes`` is what the last publication (at ``changed_at``) made different: it may have
    been before this one. ``consequences`` are those that the publication had, or would have had: as JSON values, None
    where there was none. ``inputs`` are all that there are.
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


def input_states(config_path: Path, states: States, faults: Mapping[Input, Fault]) -> tuple[InputStatus, ...]:
    """Those that do not serve as they are first."""
    told = [
        InputStatus(which.kind, which.name, _STANDS[fault.kind], reason(which, fault), fault.moment, fault.kept)
        for which, fault in faults.items()
    ]
    return (
        *told,
        *(InputStatus(one.kind, one.name, "published") for one in _inputs(config_path, states) if one not in faults),
    )


def wrong(faults: Mapping[Input, Fault]) -> str:
    """What keeps a reload from being ok, a problem on each line. Former addresses of a name are as good as new ones."""
    return "\n".join(reason(*each) for each in faults.items() if each[0].kind != "name" or not each[1].kept)


def reason(which: Input, fault: Fault) -> str:
    return fault.text if fault.kept or which.kind not in _WITHOUT else f"{fault.text}; {_WITHOUT[which.kind]}"


def outcome(error: str, *, changed: bool) -> ReloadOutcome:
    if error:
        return "partial" if changed else "failed"
    return "ok" if changed else "unchanged"


def counted(inputs: tuple[InputStatus, ...]) -> Mapping[tuple[str, str], int]:
    """By input and state."""
    return Counter((one.input, one.state) for one in inputs)


def _inputs(config_path: Path, states: States) -> Iterator[Input]:
    tls = states.configuration.value.config.tls
    yield Input("configuration", str(config_path))
    yield Input("certificate", str(tls.cert))
    if tls.ca_cert is not None:
        yield Input("authorities", str(tls.ca_cert))
    yield from (Input("crl", str(path)) for path in states.crls)
    yield from (Input("secret", str(path)) for path in states.secrets)
    yield from (Input("public_keys", str(path)) for path in states.public_keys)
    yield from (Input("name", name) for name in states.names)
