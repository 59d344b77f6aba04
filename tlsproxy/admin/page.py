"""The operators' page: one HTML document rendered from a status, without scripts and external resources.

The template engine escapes all values (autoescape), since strangers choose certificate names and paths. The policy in
:data:`HEADERS` allows no script, no resource but the stylesheet, no frame, and forms to this server only.
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
from tlsproxy.text import utc_time

REFRESH: Final = 10
"""Seconds between two loads of the page, unless it is paused."""
MAX_CONNECTIONS: Final = 200
"""Connections on the page: the newest."""
MAX_LOCKS: Final = 200
"""Locks on the page: the first."""

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    # The page's forms need an Origin header: with `no-referrer` it would be `null` (Fetch standard).
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_BAR: Final = 4
"""Width of a slot in a plot; a quarter of it is the gap to the next."""
_HEIGHT: Final = 40
_LEAST: Final = 2
"""Height of the smallest bar: one refusal among a thousand must be visible."""


def page(status: Mapping[str, Any], now: float, *, paused: bool = False) -> str:
    """The document; ``now`` is seconds since the epoch. ``paused``: without the automatic refresh."""
    connections = view.connections(status["connections"], with_ca=len(status["authorities"]) > 1)
    locks = view.locks(status, now)
    return _template().render(
        status=status,
        headline=view.headline(status),
        now=utc_time(now),
        since=utc_time(status["generation"]["built_at"]),
        refresh=None if paused else REFRESH,
        lifetimes=view.lifetimes(status, now),
        reload=view.last_reload(status["last_reload"]),
        traffic=[(row, list(_plot(row))) for row in view.traffic(status["decisions"], now)],
        outcomes=OUTCOMES,
        minutes=status["decisions"]["seconds"] * status["decisions"]["kept"] // 60,
        box=f"0 0 {SLOTS * _BAR} {_HEIGHT}",
        connections=connections[:MAX_CONNECTIONS],
        tls_versions=view.tls_versions(status),
        further=max(0, status["connections"]["open"] - min(len(connections), MAX_CONNECTIONS)),
        sharing=view.sharing(status),
        bundle=view.bundle(status.get("bundle")),
        nodes=view.nodes(status),
        locks=locks[:MAX_LOCKS],
        further_locks=max(0, len(locks) - MAX_LOCKS),
        refusals=view.refusals(status["refusals"]),
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
    """SVG path of the stacked bars for each outcome that occurred."""
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
