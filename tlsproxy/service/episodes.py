"""Log lines on the parts of readiness: one when a part goes bad, one when it is good again.

A part that flaps has few lines: after each line it rests, for a second at first and twice as long each time, up to a
minute. A part that is good again after a rest has its line then; one that is bad again by then has none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tlsproxy.admin.readiness import BUNDLE, LISTENERS, OK, RELOAD, WORKERS, Level, Part, Readiness

FIRST_REST: Final = 1.0
LONGEST_REST: Final = 60.0
CALM: Final = 60.0
"""Seconds without a change after which the rests begin anew."""

_ELSEWHERE: Final = frozenset({LISTENERS, RELOAD, BUNDLE, WORKERS})
"""Parts whose changes have lines of their own: of the drain, the reload, the fetch of a bundle, the supervisor."""

Line = tuple[int, str]
"""Level of :mod:`logging`, and text."""


@dataclass(slots=True)
class _Course:
    """Course of one part. ``told``: as the log has it. ``refused``: number of refusals when it was last good."""

    told: Part = OK
    since: float = 0.0
    refused: int = 0
    rest: float = 0.0
    told_at: float = float("-inf")


class Episodes:
    """Fed with each verdict; times are of the monotonic clock."""

    def __init__(self) -> None:
        self._courses: dict[str, _Course] = {}

    def lines(self, readiness: Readiness, now: float) -> Iterator[Line]:
        """Lines to log. A part that is missing has not changed: no worker spoke of it."""
        for name, part in readiness.parts.items():
            if name not in _ELSEWHERE:
                yield from self._of(name, part, readiness.refused.get(name, 0), now)

    def _of(self, name: str, part: Part, refused: int, now: float) -> Iterator[Line]:
        course = self._courses.setdefault(name, _Course())
        former = course.told
        if (part.level, part.text) == (former.level, former.text):
            if part.good:
                course.refused = refused
            return
        if now - course.told_at < course.rest:
            return
        calm = now - course.told_at >= CALM + course.rest
        course.rest = FIRST_REST if calm else min(2 * course.rest, LONGEST_REST)
        course.told, course.told_at = part, now
        if former.good:
            course.since = now
        if not part.good:
            level = "not ready" if part.level is Level.NOT_READY else "degraded"
            yield logging.ERROR, f"{level}: {name}: {part.reason}"
            return
        meanwhile, course.refused = refused - course.refused, refused
        yield logging.WARNING, f"ready again: {name}, after {now - course.since:.1f} s; {meanwhile} refused meanwhile"
