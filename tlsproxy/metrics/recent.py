"""The last minutes: decisions by role and outcome in slots of some seconds, and the last refusals.

All of it is in memory, for `status` and the page, and bounded: in time, in roles, and in refusals. Slots begin at
multiples of their length on the monotonic clock, which all processes share, so that their slots can be added; they are
shown by the wall clock at the time of the query (:func:`dated`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from tlsproxy.audit.line import Refusal

SECONDS: Final = 10
"""Length of a slot."""
SLOTS: Final = 90
"""Retained slots: a quarter of an hour."""
KEPT: Final = 100
"""Retained refusals of identified callers, and as many of unidentified ones: these cannot push the others out."""
OTHERS: Final = "(others)"
"""The name under which decisions for roles beyond the limit are counted. No role can have it."""

_PAIRS: Final = 192
"""Most pairs of a role and an outcome in one slot."""
_TEXT: Final = 256
"""Most characters of a retained text: names in certificates and paths may be long."""


class Recent:
    """Decisions and refusals of one process. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots: deque[tuple[int, dict[tuple[str, str], int]]] = deque(maxlen=SLOTS)
        self._slot: dict[tuple[str, str], int] = {}
        self._ends = 0
        self._identified: deque[Refusal] = deque(maxlen=KEPT)
        self._unidentified: deque[Refusal] = deque(maxlen=KEPT)

    def decided(self, role: str, outcome: str) -> None:
        """Counts a decision. In the hot path."""
        if (now := self._clock()) >= self._ends:
            self._begin(int(now // SECONDS) * SECONDS)
        try:
            self._slot[role, outcome] += 1
        except KeyError:
            self._count_first(role, outcome)

    def _count_first(self, role: str, outcome: str) -> None:
        """Counts the first decision of a role and an outcome in this slot."""
        slot = self._slot
        pair = (role if len(slot) < _PAIRS else OTHERS, outcome)
        slot[pair] = slot.get(pair, 0) + 1

    def _begin(self, start: int) -> None:
        self._ends = start + SECONDS
        self._slot = {}
        self._slots.append((start, self._slot))

    def refused(self, refusal: Refusal) -> None:
        (self._identified if refusal.identity or refusal.key else self._unidentified).append(refusal)

    def decisions(self) -> dict[str, Any]:
        """As JSON values: ``slots``, the oldest first, without empty ones. May be called in a thread, as it should with
        thousands of counts: it counts copies.
        """
        now = self._clock()
        recent = [(start, slot.copy()) for start, slot in list(self._slots) if now - SLOTS * SECONDS < start]
        return _section(
            (start, role, outcome, count) for start, slot in recent for (role, outcome), count in slot.items()
        )

    def refusals(self) -> list[dict[str, Any]]:
        """As JSON values, the latest first. May be called in a thread."""
        return _latest(map(_described, [*self._identified, *self._unidentified]))


def dated(section: Mapping[str, Any], ahead: float) -> dict[str, Any]:
    """Slots by a clock that is so many seconds ``ahead`` of theirs, at multiples of their length."""
    return {
        **section,
        "slots": [slot | {"start": int((slot["start"] + ahead) // SECONDS) * SECONDS} for slot in section["slots"]],
    }


def merged_decisions(sections: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of several processes' decisions."""
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
    fields = asdict(refusal)
    return {name: (value[:_TEXT] or None) if isinstance(value, str) else value for name, value in fields.items()}


def _latest(refusals: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    identified: list[dict[str, Any]] = []
    unidentified: list[dict[str, Any]] = []
    for refusal in refusals:
        (identified if refusal["identity"] or refusal["key"] else unidentified).append(refusal)
    latest = [*sorted(identified, key=_order)[:KEPT], *sorted(unidentified, key=_order)[:KEPT]]
    return sorted(latest, key=_order)


def _order(refusal: Mapping[str, Any]) -> tuple[float, str]:
    """A sort key: the latest first; the rest makes the order deterministic."""
    return -refusal["when"], str(sorted(refusal.items()))
