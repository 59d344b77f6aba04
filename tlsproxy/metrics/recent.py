"""The last minutes: decisions by role and outcome in slots of some seconds, and the last refusals.

All of it stays in memory, for whoever looks now, and is bounded: in time, in roles, and in refusals. Slots begin at
multiples of their length on the monotonic clock, which all processes share, so that theirs can be added; they are told
by the wall clock as it is then (:func:`dated`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from itertools import chain
from typing import Any, Final

from tlsproxy.audit.line import Refusal

SECONDS: Final = 10
"""Length of a slot."""
SLOTS: Final = 90
"""How many are kept: a quarter of an hour."""
KEPT: Final = 100
"""Refusals that are kept of those who are somebody, and as many of strangers, who so cannot push the others out."""
OTHERS: Final = "(others)"
"""Where decisions are counted for roles beyond the limit. No role has such a name."""

_PAIRS: Final = 192
"""Pairs of a role and an outcome that one slot tells apart."""
_TEXT: Final = 256
"""Characters of a name that are kept: certificates and paths may have long ones."""


class Recent:
    """``clock`` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots: deque[tuple[int, dict[tuple[str, str], int]]] = deque(maxlen=SLOTS)
        self._slot: dict[tuple[str, str], int] = {}
        self._ends = 0
        self._known: deque[Refusal] = deque(maxlen=KEPT)
        self._strangers: deque[Refusal] = deque(maxlen=KEPT)

    def decided(self, role: str, outcome: str) -> None:
        """In the hot path."""
        if (now := self._clock()) >= self._ends:
            self._begin(int(now // SECONDS) * SECONDS)
        try:
            self._slot[role, outcome] += 1
        except KeyError:
            self._count_first(role, outcome)

    def _count_first(self, role: str, outcome: str) -> None:
        """Of its kind in this slot."""
        slot = self._slot
        pair = (role if len(slot) < _PAIRS else OTHERS, outcome)
        slot[pair] = slot.get(pair, 0) + 1

    def _begin(self, start: int) -> None:
        self._ends = start + SECONDS
        self._slot = {}
        self._slots.append((start, self._slot))

    def refused(self, refusal: Refusal) -> None:
        (self._known if refusal.identity or refusal.key else self._strangers).append(refusal)

    def decisions(self) -> dict[str, Any]:
        """As JSON values: ``slots`` from the oldest on, those without a decision left out."""
        now = self._clock()
        recent = [(start, slot) for start, slot in self._slots if now - SLOTS * SECONDS < start]
        return _section(
            (start, role, outcome, count) for start, slot in recent for (role, outcome), count in slot.items()
        )

    def refusals(self) -> list[dict[str, Any]]:
        """As JSON values, the latest first."""
        return _latest(map(_described, chain(self._known, self._strangers)))


def dated(section: Mapping[str, Any], ahead: float) -> dict[str, Any]:
    """Slots of another clock, told by one that is ``ahead`` of it by so many seconds, at multiples of their length."""
    return {
        **section,
        "slots": [slot | {"start": int((slot["start"] + ahead) // SECONDS) * SECONDS} for slot in section["slots"]],
    }


def merged_decisions(sections: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of several processes' sections."""
    return _section(
        (slot["start"], role, outcome, count)
        for section in sections
        for slot in section["slots"]
        for role, outcomes in slot["roles"].items()
        for outcome, count in outcomes.items()
    )


def merged_refusals(sections: Iterable[Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The latest of several processes' refusals."""
    return _latest(dict(refusal) for section in sections for refusal in section)


def _section(counts: Iterable[tuple[int, str, str, int]]) -> dict[str, Any]:
    slots: dict[int, dict[str, dict[str, int]]] = {}
    for start, role, outcome, count in counts:
        outcomes = slots.setdefault(start, {}).setdefault(role, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + count
    return {
        "seconds": SECONDS,
        "kept": SLOTS,
        "slots": [{"start": start, "roles": roles} for start, roles in sorted(slots.items())],
    }


def _described(refusal: Refusal) -> dict[str, Any]:
    told = asdict(refusal)
    return {name: (value[:_TEXT] or None) if isinstance(value, str) else value for name, value in told.items()}


def _latest(refusals: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    known: list[dict[str, Any]] = []
    strangers: list[dict[str, Any]] = []
    for refusal in refusals:
        (known if refusal["identity"] or refusal["key"] else strangers).append(refusal)
    kept = [*sorted(known, key=_order)[:KEPT], *sorted(strangers, key=_order)[:KEPT]]
    return sorted(kept, key=_order)


def _order(refusal: Mapping[str, Any]) -> tuple[float, str]:
    """The latest first; the rest makes the order the same, whoever came first."""
    return -refusal["when"], str(sorted(refusal.items()))
