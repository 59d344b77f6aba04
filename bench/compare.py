"""Two results: what became dearer? Pure.

The machines may differ, so it is the ratios to the peers that are compared, not the costs: a workload is slower where
the median of its ratios' changes, over the peers that both runs measured, is above the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from bench.peers import OURS, OWN
from bench.report import table
from bench.results import Measured, Results

TOLERANCE = 0.10


@dataclass(frozen=True, slots=True)
class Change:
    """``ratio``: new over old, 1 where nothing changed; None where no peer was measured by both."""

    title: str
    old_cost: float | None
    new_cost: float | None
    ratio: float | None
    errors: int

    def is_regression(self, tolerance: float) -> bool:
        """Figures that are gone, or answers that were wrong, are one too."""
        gone = self.old_cost is not None and self.new_cost is None
        return gone or self.errors > 0 or (self.ratio is not None and self.ratio > 1 + tolerance)


def changes(old: Results, new: Results) -> Iterator[Change]:
    for name, before in old.workloads.items():
        after = new.workloads.get(name)
        if after is not None:
            yield _change(before, after)
    for count, before_idle in old.idle.items():
        was, now = (told.get(OURS) for told in (before_idle, new.idle.get(count, {})))
        if was is not None and now is not None:
            yield Change(
                f"memory of an idle connection of {count}, bytes",
                was.bytes_each,
                now.bytes_each,
                now.bytes_each / was.bytes_each,
                now.errors,
            )


def _change(before: Measured, after: Measured) -> Change:
    ratios = [
        now.median / was.median
        for peer in before.samples
        if peer not in OWN and (was := before.ratio(peer)) and (now := after.ratio(peer))
    ]
    was_ours, now_ours = before.summary(OURS), after.summary(OURS)
    return Change(
        f"{after.title}, µs/{after.unit}",
        was_ours.cost if was_ours else None,
        now_ours.cost if now_ours else None,
        median(ratios) if ratios else None,
        sum(sample.errors for sample in after.rounds(OURS) if sample is not None),
    )


def comparison(old: Results, new: Results, tolerance: float) -> tuple[list[str], bool]:
    """Its lines, and whether something is worse."""
    rows, worse = [], False
    for change in changes(old, new):
        regression = change.is_regression(tolerance)
        worse = worse or regression
        cells = ["–" if cost is None else f"{cost:,.1f}" for cost in (change.old_cost, change.new_cost)]
        moved = "–" if change.ratio is None else f"{(change.ratio - 1) * 100:+.1f} %"
        rows.append([change.title, *cells, moved, "WORSE" if regression else ""])
    return list(table("tlsproxy", ["old", "new", "against the peers", ""], rows)), worse
