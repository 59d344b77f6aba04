"""Standing of tlsproxy beside its targets, and its table in docs/benchmark.md. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.peers import PLAIN
from bench.results import Results
from bench.targets import IDLE, TARGETS

_TITLES = {PLAIN: "tlsproxy, plain"}
_TITLES |= {"nginx": "nginx", "nginx-raised": "nginx, larger buffers", "haproxy": "HAProxy", "nghttpx": "nghttpx"}
_TITLES |= {"envoy": "Envoy", "caddy": "Caddy"}


@dataclass(frozen=True, slots=True)
class Standing:
    """Our cost over a peer's, and at most what it should be; None where none is set."""

    ratio: float
    target: float | None

    @property
    def is_reached(self) -> bool:
        return self.target is not None and self.ratio <= self.target

    def __str__(self) -> str:
        if self.target is None:
            return f"{self.ratio:.2f}"
        return f"{self.ratio:.2f} {'✓' if self.is_reached else '✗'} {self.target:.2f}"


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    of: Mapping[str, Standing]
    """By peer."""


def standings(results: Results) -> Iterator[Row]:
    """Of what was measured and has targets; of idle connections, where they were most."""
    for name, targets in TARGETS.items():
        measured = results.workloads.get(name)
        if measured is not None:
            ratios = {peer: measured.ratio(peer) for peer in _TITLES}
            yield _row(measured.title, {peer: each.median for peer, each in ratios.items() if each}, targets)
    if results.idle:
        most = max(results.idle, key=int)
        of_memory = {peer: results.idle_ratio(most, peer) for peer in _TITLES}
        title = f"memory of an idle connection of {int(most):,}"
        yield _row(title, {peer: ratio for peer, ratio in of_memory.items() if ratio is not None}, IDLE)


def _row(title: str, ratios: Mapping[str, float], targets: Mapping[str, float]) -> Row:
    return Row(title, {peer: Standing(ratio, targets.get(peer)) for peer, ratio in ratios.items()})


def markdown(results: Results) -> Iterator[str]:
    """A table of the peers that were measured."""
    rows = list(standings(results))
    peers = [peer for peer in _TITLES if any(peer in row.of for row in rows)]
    yield _line(
        ["CPU of tlsproxy over that of", *(f"{_TITLES[peer]} {_short(results.contenders[peer])}" for peer in peers)]
    )
    yield "|" + "---|" * (len(peers) + 1)
    for row in rows:
        yield _line([row.title, *(str(row.of[peer]) if peer in row.of else "–" for peer in peers)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(version: str) -> str:
    """Without what is fixed in it."""
    return ".".join(version.split(".")[:2])
