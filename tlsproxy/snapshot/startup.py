"""The first generation: there is no last good state, so what is wrong decides whether there is a start, and when.

An input that is wrong waits for a person. What time or the environment will mend does not: the gateway starts with what
can serve, or ends in a way that is tried again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.snapshot.generation import Generation, propose
from tlsproxy.snapshot.name_resolution import AT_START, NameResolver, names_of
from tlsproxy.snapshot.validation import InputReading

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tlsproxy.config.tokens import KeySource
    from tlsproxy.snapshot.files import Inputs
    from tlsproxy.snapshot.states import Fault, Input

_FOR_GOOD: Final = (FailureKind.INPUT, FailureKind.AGE)
"""Kinds that wait for a person."""


class CannotStart(TlsproxyError):
    """Of kind ``INPUT`` or ``AGE`` where a person has to change something, else ``ENVIRONMENT``: the same may succeed
    later.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        found = list(faults)
        wrong = [fault for fault in found if fault.kind in _FOR_GOOD]
        later = (f"{fault.text}: a start will be tried again" for fault in found)
        super().__init__("\n".join([fault.text for fault in wrong] or later))
        kinds = {fault.kind for fault in wrong}
        self.kind = next((kind for kind in _FOR_GOOD if kind in kinds), FailureKind.ENVIRONMENT)


@dataclass(frozen=True, slots=True)
class FirstGeneration:
    """``inputs`` are those that it was made of, ``faults`` what it had to do without."""

    generation: Generation
    inputs: Inputs
    faults: Mapping[Input, Fault]


def first_generation(
    config_path: Path, environ: Mapping[str, str], inputs: Inputs, documents: Mapping[KeySource, bytes]
) -> FirstGeneration:
    """Blocks. Raises ConfigError, MaterialError or CannotStart."""
    config = inputs.loaded.config
    resolved = NameResolver().resolve(names_of(config, config), AT_START)
    proposal = propose(InputReading(config_path, environ, inputs, resolved, documents), None, time.time())
    faults = proposal.faults
    if proposal.generation is None or any(_keeps_from_starting(*each) for each in faults.items()):
        raise CannotStart(faults.values())
    return FirstGeneration(proposal.generation, inputs, faults)


def _keeps_from_starting(which: Input, fault: Fault) -> bool:
    """A file that could not be read does; a date that is to come does not, nor a name without addresses."""
    return fault.kind in _FOR_GOOD or (fault.kind is FailureKind.ENVIRONMENT and which.kind != "name")
