"""The operators' page: one HTML document, made of a status alone, with no script and nothing from elsewhere.

Everything in it is escaped by the template engine (autoescape), since names of certificates and paths are chosen by
strangers. The policy in :data:`HEADERS` lets a browser run no script, load nothing but the one stylesheet, and send the
page's forms nowhere but here; nobody may frame it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined, Template

from tlsproxy.admin import view
from tlsproxy.admin.view import OUTCOMES, Traffic
from tlsproxy.metrics.recent import SLOTS

REFRESH: Final = 10
"""Seconds after which the page is asked for anew, unless it is paused."""
MOST_CONNECTIONS: Final = 200
"""Connections that the page lists: the youngest."""

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    # Its forms must say where they come from: `no-referrer` would make their Origin `null` (Fetch standard).
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_BAR: Final = 4
"""Width of a slot in a plot, of which a quarter is the gap to the next."""
_HEIGHT: Final = 40
_LEAST: Final = 2
"""Height of the smallest number that is not none: one refusal among a thousand must be seen."""


def page(status: Mapping[str, Any], now: float, *, paused: bool = False) -> str:
    """``now`` is seconds since the epoch. ``paused``: it stays as it is until somebody asks for it."""
    connections = view.connections(status["connections"], several=len(status["authorities"]) > 1)
    return _template().render(
        status=status,
        now=view.clock(now, now),
        since=view.clock(status["generation"]["built_at"], now),
        refresh=None if paused else REFRESH,
        lifetimes=view.lifetimes(status, now),
        reload=view.last_reload(status["last_reload"], now),
        traffic=[(row, list(_plot(row))) for row in view.traffic(status["decisions"], now)],
        outcomes=OUTCOMES,
        minutes=status["decisions"]["seconds"] * status["decisions"]["kept"] // 60,
        box=f"0 0 {SLOTS * _BAR} {_HEIGHT}",
        connections=connections[:MOST_CONNECTIONS],
        further=max(0, status["connections"]["open"] - min(len(connections), MOST_CONNECTIONS)),
        refusals=view.refusals(status["refusals"], now),
    )


def stylesheet() -> str:
    return files(__package__).joinpath("page.css").read_text("utf-8")


@cache
def _template() -> Template:
    text = files(__package__).joinpath("page.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = view.shown
    return environment.from_string(text)


def _plot(row: Traffic) -> Iterator[tuple[str, str]]:
    """For each outcome that there is, the path of its bars: SVG, and nothing but numbers. They stand on one another."""
    peak = row.peak
    base = [0.0] * len(row.slots)
    for position, outcome in enumerate(OUTCOMES):
        steps: list[str] = []
        for index, cells in enumerate(row.slots):
            if cells[position]:
                height = max(cells[position] / peak * _HEIGHT, _LEAST)
                base[index] += height
                top = max(_HEIGHT - base[index], 0)
                steps.append(f"M{index * _BAR} {top:.1f}h{_BAR - 1}v{height:.1f}h{1 - _BAR}z")
        if steps:
            yield outcome, "".join(steps)
