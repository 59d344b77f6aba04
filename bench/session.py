"""A whole run: build, install, start, measure, write down."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import venv
from bench.build import build
from bench.errors import BenchError
from bench.generator import Generator
from bench.machine import about
from bench.peers import OURS, PEERS
from bench.process import upstream
from bench.results import Results
from bench.rotation import run_rotations
from bench.rounds import Setting, locate, run_idle, run_rounds
from bench.scale import run_scale
from bench.site import DOWNLOAD_SIZE, Site
from bench.workloads import BY_NAME


@dataclass(frozen=True, slots=True)
class Plan:
    """``only``: the peers beside tlsproxy; empty for all. ``connections``: of the runs with idle ones."""

    only: tuple[str, ...]
    workloads: tuple[str, ...]
    rounds: int
    seconds: float
    connections: tuple[int, ...]
    rotation: bool


def run_session(directory: Path, plan: Plan, command: str, say: Callable[[str], None]) -> Results:
    """Writes ``results.json`` and the plots into ``directory``. Raises BenchError."""
    if unknown := (set(plan.only) - set(PEERS)) | (set(plan.workloads) - set(BY_NAME)):
        raise BenchError(f"neither a peer ({', '.join(PEERS)}) nor a workload ({', '.join(BY_NAME)}): {unknown}")
    results = Results(about(command))
    say("installing peers into a venv of the bench's own")
    failed = venv.prepare(directory / "venv")
    chosen = [peer for name, peer in PEERS.items() if name == OURS or not plan.only or name in plan.only]
    found = locate(chosen, directory / "venv", failed, results)
    with _set_up(directory, plan.seconds, say) as setting:
        run_rounds(setting, found, [BY_NAME[name] for name in plan.workloads], plan.rounds, results)
        run_idle(setting, found, plan.connections, results)
        if plan.rotation:
            run_rotations(setting, found, results)
    _write_down(results, directory, "results", say)
    return results


def run_scale_session(
    directory: Path, rounds: int, seconds: float, only: tuple[str, ...], command: str, say: Callable[[str], None]
) -> Results:
    """Writes ``scale.json`` and its plot. Raises BenchError."""
    results = Results(about(command))
    venv.prepare(directory / "venv")
    locate([PEERS[OURS]], directory / "venv", {}, results)
    with _set_up(directory, seconds, say) as setting:
        run_scale(setting, rounds, results, only)
    _write_down(results, directory, "scale", say)
    return results


@contextmanager
def _set_up(directory: Path, seconds: float, say: Callable[[str], None]) -> Iterator[Setting]:
    say("building the load generator and the upstream")
    programs = build(directory / "build")
    with tempfile.TemporaryDirectory(prefix="tlsproxy-bench-") as place:
        os.chmod(place, 0o755)  # noqa: S103, PTH101 - workers of peers drop to other users
        site = Site.create(Path(place, "site"))
        with upstream(programs, DOWNLOAD_SIZE) as behind:
            yield Setting(Path(place), site, behind, Generator(programs.load, site, seconds), say)


def _write_down(results: Results, directory: Path, name: str, say: Callable[[str], None]) -> None:
    results.about["load_average_after"] = os.getloadavg()[0]
    results.write(directory / f"{name}.json")
    _plot(directory, name, say)


def _plot(directory: Path, name: str, say: Callable[[str], None]) -> None:
    """In a process of its own, which sees the libraries of the bench's venv: matplotlib is there."""
    libraries = next(iter(directory.absolute().glob("venv/lib/python*/site-packages")), directory)
    command = [sys.executable, "-m", "bench.plots", str(directory / f"{name}.json"), str(directory)]
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent.parent}:{libraries}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"no plots: {done.stderr.strip()[-300:]}")
