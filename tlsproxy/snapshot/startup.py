"""The first generation, without a last good state to fall back on.

A wrong input needs a person, so there is no start. A fault that passes by itself (a date, an unreachable file system)
does not: the gateway starts with the inputs that can serve, or exits with a status that is tried again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.generation import Generation, propose
from tlsproxy.snapshot.lock_file import first_locks
from tlsproxy.snapshot.name_resolution import START_DEADLINE, NameResolver, names_of
from tlsproxy.snapshot.validation import InputReading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from tlsproxy.config.model import Config
    from tlsproxy.config.tokens import KeySource
    from tlsproxy.snapshot.files import Inputs
    from tlsproxy.snapshot.states import Fault, Input

SETTLE_POLL: Final = 0.1
"""Seconds between two readings of a server pair that does not match."""
_PERMANENT: Final = (FailureKind.INPUT, FailureKind.AGE)
"""Kinds that need a person."""


class CannotStart(TlsproxyError):
    """Kind ``INPUT`` or ``AGE`` if a person has to change something, else ``ENVIRONMENT``: a retry may succeed.

    ``unmatched``: all that is wrong is a server pair that does not match, as while it is being replaced.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        found = list(faults)
        wrong = [fault for fault in found if fault.kind in _PERMANENT]
        later = (f"{fault.text}: a start will be tried again" for fault in found)
        super().__init__("\n".join([fault.text for fault in wrong] or later))
        self.unmatched = bool(wrong) and all(fault.unmatched for fault in wrong)
        kinds = {fault.kind for fault in wrong}
        self.kind = next((kind for kind in _PERMANENT if kind in kinds), FailureKind.ENVIRONMENT)


@dataclass(frozen=True, slots=True)
class FirstGeneration:
    """The first generation with its ``inputs``, and the ``faults`` of those that it leaves out."""

    generation: Generation
    inputs: Inputs
    faults: Mapping[Input, Fault]


def awaited_generation(
    config_path: Path,
    environ: Mapping[str, str],
    fetch: Callable[[Config], Mapping[KeySource, bytes]],
    announce: Callable[[str], object],
) -> FirstGeneration:
    """Read all inputs and build it; wait `tls.settle_time` for a server pair that does not match yet.

    ``announce`` is given the reason of the wait. Blocks. Raises as :func:`first_generation` does.
    """
    end = 0.0
    while True:
        inputs = read_inputs(config_path, environ)
        try:
            return first_generation(config_path, environ, inputs, fetch(inputs.loaded.config))
        except CannotStart as error:
            patience, now = inputs.loaded.config.tls.settle_time, time.monotonic()
            if not (error.unmatched and patience) or (end and now >= end):
                raise
            if not end:
                end = now + patience
                announce(f"{error}: waiting for it for {patience:g} s")
        time.sleep(SETTLE_POLL)


def first_generation(
    config_path: Path, environ: Mapping[str, str], inputs: Inputs, documents: Mapping[KeySource, bytes]
) -> FirstGeneration:
    """Build it. Blocks. Raises ConfigError, MaterialError or CannotStart."""
    config = inputs.loaded.config
    resolved = NameResolver().resolve(names_of(config, config), START_DEADLINE)
    reading = InputReading(config_path, environ, inputs, resolved, documents, locks=first_locks(config_path))
    proposal = propose(reading, None, time.time())
    faults = proposal.faults
    if proposal.generation is None or any(prevents_start(*each) for each in faults.items()):
        raise CannotStart(faults.values())
    return FirstGeneration(proposal.generation, inputs, faults)


def prevents_start(subject: Input, fault: Fault) -> bool:
    """An unreadable file does; a date in the future and an unresolved name do not."""
    return fault.kind in _PERMANENT or (fault.kind is FailureKind.ENVIRONMENT and subject.kind != "name")
