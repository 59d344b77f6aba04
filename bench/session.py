"""A whole run: build, install, start, measure, write down."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import compiled, venv
from bench.build import build
from bench.dimensions import SCALE
from bench.errors import AbsentError, BenchError
from bench.generator import Generator
from bench.idle import planned_idle, run_idle
from bench.journal import Journal, Say
from bench.machine import UNPROFILED, about
from bench.peers import OURS, PEERS
from bench.process import upstream
from bench.results import Results
from bench.rotation import planned_rotations, run_rotations
from bench.rounds import Setting, locate, planned_rounds, run_rounds
from bench.scale import run_scale
from bench.site import DOWNLOAD_SIZE, Site
from bench.venv import PLOTS
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


def run_session(directory: Path, plan: Plan, command: str, say: Say) -> Results:
    """Writes ``results.json``, which grows as it goes, and the plots into ``directory``. Raises BenchError."""
    if unknown := (set(plan.only) - set(PEERS)) | (set(plan.workloads) - set(BY_NAME)):
        raise BenchError(
            f"neither a peer ({', '.join(PEERS)}) nor a workload ({', '.join(BY_NAME)}): {', '.join(unknown)}"
        )
    results = _begun(command, directory, say)
    chosen = [peer for name, peer in PEERS.items() if name == OURS or not plan.only or name in plan.only]
    workloads = [BY_NAME[name] for name in plan.workloads]
    journal = Journal(directory / "results.json", say)
    failed = _install(directory, [*(peer.package for peer in chosen if peer.package), PLOTS], say)
    found = locate(chosen, directory / "venv", failed, results)
    with _set_up(directory, plan.seconds, journal) as setting:
        journal.begin(
            planned_rounds(setting.generator, found, workloads, plan.rounds)
            + planned_idle(setting.generator, found, plan.connections)
            + (planned_rotations(found) if plan.rotation else 0)
        )
        run_rounds(setting, found, workloads, plan.rounds, results)
        run_idle(setting, found, plan.connections, results)
        if plan.rotation:
            run_rotations(setting, found, results)
    _write_down(results, journal)
    return results


def run_scale_session(
    directory: Path, rounds: int, seconds: float, only: tuple[str, ...], command: str, say: Say
) -> Results:
    """Writes ``scale.json``, which grows as it goes, and its plot. Raises BenchError."""
    known = {dimension.name: dimension for dimension in SCALE}
    if unknown := set(only) - set(known):
        raise BenchError(f"not a row of the cost table ({', '.join(known)}): {', '.join(unknown)}")
    results = _begun(command, directory, say)
    journal = Journal(directory / "scale.json", say)
    _install(directory, [PLOTS], say)
    (program,) = locate([PEERS[OURS]], directory / "venv", {}, results).values()
    with _set_up(directory, seconds, journal) as setting:
        run_scale(setting, program, rounds, results, [known[name] for name in only or known])
    _write_down(results, journal)
    return results


def _begun(command: str, directory: Path, say: Say) -> Results:
    results = Results(about(command))
    try:
        compiled.interpreter(directory)
    except AbsentError as error:
        results.notes[OURS] = f"the plain form: {error}"
        say(f"{OURS}: {results.notes[OURS]}")
    if not results.about["python_profiled"]:
        results.notes["python"] = UNPROFILED
        say(f"python: {UNPROFILED}")
    return results


def _install(directory: Path, packages: Iterable[str], say: Say) -> dict[str, str]:
    say("installing what is missing into a venv of the bench's own")
    return venv.prepare(directory / "venv", packages)


@contextmanager
def _set_up(directory: Path, seconds: float, journal: Journal) -> Iterator[Setting]:
    journal.say("building the load generator and the upstream")
    programs = build(directory / "build")
    with tempfile.TemporaryDirectory(prefix="tlsproxy-bench-") as place:
        os.chmod(place, 0o755)  # noqa: S103, PTH101 - workers of peers drop to other users
        site = Site.create(Path(place, "site"))
        with upstream(programs, DOWNLOAD_SIZE) as behind:
            generator = Generator(programs.load, site, seconds)
            yield Setting(Path(place), site, behind, generator, journal, programs, DOWNLOAD_SIZE)


def _write_down(results: Results, journal: Journal) -> None:
    results.about["load_average_after"] = os.getloadavg()[0]
    results.write(journal.path)
    plot(journal.path, journal.say)


def plot(path: Path, say: Say) -> None:
    """Beside the results, by a process that sees the libraries of the bench's venv: matplotlib is there."""
    directory = path.absolute().parent
    libraries = next(iter(directory.glob("venv/lib/python*/site-packages")), directory)
    command = [sys.executable, "-m", "bench.plots", str(path), str(directory)]
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent.parent}:{libraries}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"no plots: {done.stderr.strip()[-300:]}")
