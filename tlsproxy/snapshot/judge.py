"""Verdicts on inputs, each for itself: its best state, and the fault of files that are not in force."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from tlsproxy.errors import FailureKind, MaterialError
from tlsproxy.snapshot.states import Fault, Input, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tlsproxy.errors import TlsproxyError
    from tlsproxy.snapshot.candidates import Candidate, Data
    from tlsproxy.snapshot.states import InputState

T = TypeVar("T")

PAIRS: Final = frozenset({"certificate", "client_certificate"})
"""Kinds of inputs that are a certificate and a key, which are replaced one after the other."""
MOST_PROBLEMS: Final = 100
"""Problems of one input that are told: each is a line of the log, and an entry of several texts."""


class Judge:
    """Judges one reading. ``faults`` are those found so far."""

    def __init__(
        self,
        files: Mapping[Path, bytes],
        failures: Mapping[Path, TlsproxyError],
        former_faults: Mapping[Input, Fault],
        now: float,
        settle_time: float | None,
        depends_on: str,
    ) -> None:
        """``settle_time``: seconds for which a pair may be half replaced; None where somebody waits for the verdict.

        ``depends_on`` is a digest of all else that the verdicts depend on.
        """
        self._files = files
        self._failures = failures
        self._former_faults = former_faults
        self._now = now
        self._settle_time = settle_time
        self._depends_on = depends_on
        self.faults: dict[Input, Fault] = {}

    def best(
        self,
        subject: Input,
        paths: Sequence[Path],
        former: InputState[T] | None,
        candidate: Callable[[Data], Candidate[T]],
        depends_on: str = "",
    ) -> InputState[T] | None:
        """The best state of one input. ``depends_on`` is a digest of other inputs that its outcome depends on."""
        kept = former is not None
        for path in paths:
            if (failure := self._failures.get(path)) is not None:
                self.report(subject, failure, "", kept=kept, settles=True)
                return former
        if any(path not in self._files for path in paths):
            return former
        data = tuple(self._files[path] for path in paths)
        read = digest_of(data)
        if former is not None and former.read == read:
            return former
        judged = f"{read} {self._depends_on} {depends_on}"
        fault = self._former_faults.get(subject)
        if fault is not None and fault.read == judged and fault.stands(self._now):
            self.faults[subject] = fault if self._settle_time is not None else replace(fault, due=0.0)
            return former
        try:
            state, left_out = candidate(data)
        except MaterialError as error:
            self.report(subject, error, judged, kept=kept, settles=error.unmatched)
            return former
        except (OSError, MemoryError) as error:  # no descriptor or no memory: no fault of the files
            reason = (error.strerror if isinstance(error, OSError) else "") or type(error).__name__
            text = f"cannot be judged now: {reason}"
            self.report(subject, MaterialError(subject.name, text, FailureKind.ENVIRONMENT), judged, kept=kept)
            return former
        if left_out is not None:
            self.report(subject, left_out, judged, kept=True)
        if former is not None and (former == state or former.value == state.value):
            return replace(former, read=state.read)
        return state

    def report(self, subject: Input, error: TlsproxyError, read: str, *, kept: bool, settles: bool = False) -> None:
        """``settles``: a pair that is being replaced may look like this for a moment."""
        due = self._due(subject) if settles and subject.kind in PAIRS else 0.0
        unmatched = isinstance(error, MaterialError) and error.unmatched
        self.faults[subject] = Fault(_text(error), error.kind, error.moment, read, self._now, kept, due, unmatched)

    def _due(self, subject: Input) -> float:
        """The end of the settle time after the first of a row of faults."""
        if self._settle_time is None:
            return 0.0
        end, former = self._now + self._settle_time, self._former_faults.get(subject)
        return end if former is None else min(former.due, end)


def _text(error: TlsproxyError) -> str:
    """Its problems, one a line. A role that is gone from its file may be one for each of thousands of rules."""
    lines = str(error).splitlines()
    more = len(lines) - MOST_PROBLEMS
    return "\n".join([*lines[:MOST_PROBLEMS], f"{more} more: `tlsproxy check` lists them"] if more > 0 else lines)
