"""The plots of a result: `python -m bench.plots RESULTS.json DIRECTORY`, as SVG and PNG.

Run by the bench with the libraries of its own venv: nothing else imports matplotlib.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.peers import OURS
from bench.results import Measured, Results

_OURS, _THEIRS = "#c2185b", "#90a4ae"
_COLUMNS = 3
mpl.rcParams.update({"svg.hashsalt": "tlsproxy", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def plot(results: Results, directory: Path) -> None:
    if any(OURS in measured.samples for measured in results.workloads.values()):
        _costs(results, directory)
    elif results.workloads:
        _scale(results, directory)
    if results.idle:
        _idle(results, directory)


def _costs(results: Results, directory: Path) -> None:
    """One field for each workload: CPU of each contender, the median as a bar and the minimum as a line in it."""
    rows = math.ceil(len(results.workloads) / _COLUMNS)
    figure, grid = plt.subplots(rows, _COLUMNS, figsize=(11, 2.1 * rows), squeeze=False)
    fields = iter(grid.flat)
    for measured, axes in zip(results.workloads.values(), fields, strict=False):
        _field(axes, measured)
    for axes in fields:
        axes.set_visible(False)
    _finish(figure, results, "CPU of the proxy (user + system); less is better", directory / "cpu")


def _field(axes: Any, measured: Measured) -> None:
    told = {name: summary for name in measured.samples if (summary := measured.summary(name)) is not None}
    _bars(axes, {name: summary.cost for name, summary in told.items()}, "{:.0f}")
    for at, summary in enumerate(told.values()):
        axes.plot([summary.cost_min] * 2, [at - 0.4, at + 0.4], color="black", linewidth=0.8)
    axes.set_title(f"{measured.title}: µs/{measured.unit}", fontsize=9)


def _bars(axes: Any, values: Mapping[str, float], form: str) -> None:
    bars = axes.barh(list(values), list(values.values()), color=[_OURS if name == OURS else _THEIRS for name in values])
    axes.bar_label(bars, [form.format(value) for value in values.values()], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def _scale(results: Results, directory: Path) -> None:
    """Both axes logarithmic: what grows linearly is a straight line that climbs one decade in one."""
    rows = math.ceil(len(results.workloads) / _COLUMNS)
    figure, grid = plt.subplots(rows, _COLUMNS, figsize=(11, 2.4 * rows), squeeze=False)
    fields = iter(grid.flat)
    for measured, axes in zip(results.workloads.values(), fields, strict=False):
        told = {int(size): summary for size in measured.samples if (summary := measured.summary(size)) is not None}
        costs = [summary.cost for summary in told.values()]
        axes.plot(list(told), costs, marker="o", color=_OURS)
        axes.set_xscale("symlog")
        axes.set_yscale("log")
        axes.set_ylim(min(costs, default=1) / 3, max(costs, default=1) * 3)
        axes.set_title(f"{measured.title}: µs/{measured.unit}", fontsize=8)
    for axes in fields:
        axes.set_visible(False)
    _finish(figure, results, "CPU of tlsproxy by size", directory / "scale")


def _idle(results: Results, directory: Path) -> None:
    figure, grid = plt.subplots(1, len(results.idle), figsize=(11, 3), squeeze=False)
    for (count, told), axes in zip(results.idle.items(), grid.flat, strict=True):
        _bars(axes, {name: idle.bytes_each / 1024 for name, idle in told.items()}, "{:.1f}")
        axes.set_title(f"{int(count):,} idle connections: KiB each", fontsize=9)
    _finish(figure, results, "Memory (PSS) of a connection that rests", directory / "idle")


def _finish(figure: Any, results: Results, title: str, path: Path) -> None:
    about = results.about
    machine = about["machine"]
    versions = ", ".join(
        f"{name} {version}" for name, version in results.contenders.items() if name not in results.absent
    )
    figure.suptitle(title)
    figure.text(
        0.01,
        0.005,
        f"{about['date']}, {about['command']}, {machine['processor']}, {machine['cores']} cores\n{versions}",
        fontsize=6,
        color="#607d8b",
    )
    figure.tight_layout(rect=(0, 0.04, 1, 0.99))
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), dpi=110, metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    plot(Results.read(source), target)
