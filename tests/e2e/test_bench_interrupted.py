"""A bench run that is ended leaves nothing running, and what it had measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.bench import built, installed

from bench.peers import OURS
from bench.results import Results

pytestmark = pytest.mark.timeout(180)
PATIENCE = 60.0
QUICK = "import bench.rotation; bench.rotation.STILL = 0.1; from bench.__main__ import main; main(prog_name='bench')"
"""`python -m bench`, which does not load a core for seconds before its rotations."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory)


@pytest.fixture
def directory(programs: Path, tmp_path: Path) -> Path:
    return installed(tmp_path / "data", programs)


@contextmanager
def bench(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A session of its own, so that what is left of it can be told, and ended. What is killed leaves its files."""
    command = [sys.executable, "-c", QUICK, "run", "--dir", str(directory), "--only", "nginx", "--workloads", "get"]
    with TemporaryDirectory(prefix="b") as place, subprocess.Popen(
        [*command, "--no-idle", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"TMPDIR": place},
    ) as run:  # fmt: skip
        try:
            yield run
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def of_session(leader: int) -> Iterator[str]:
    """The names of its processes."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                yield (entry / "comm").read_text().strip()
        except (ProcessLookupError, FileNotFoundError):
            pass  # it ended while we looked


def end(run: subprocess.Popen[str]) -> None:
    """Orderly, as an operator or `make` does it."""
    run.send_signal(signal.SIGTERM)
    assert run.wait(PATIENCE) == 128 + signal.SIGTERM
    assert list(of_session(run.pid)) == []
    assert run.stderr is not None
    assert "Traceback" not in run.stderr.read()


def wait_for_line(run: subprocess.Popen[str], part: str) -> None:
    assert run.stderr is not None
    for line in run.stderr:
        if part in line:
            return
    pytest.fail(f"it ended without {part}")


def test_terminated_in_a_round_it_ends_all_that_it_started(directory: Path) -> None:
    with bench(directory, "--rounds", "1000", "--seconds", "0.1", "--no-rotation") as run:
        wait_for_line(run, "round 1/1000")
        assert "upstream" in of_session(run.pid)
        end(run)
    results = Results.read(directory / "results.json")
    assert results.workloads["get"].summary(OURS) is not None
    shown = subprocess.run(
        [sys.executable, "-m", "bench", "show", str(directory / "results.json")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "INTERRUPTED" in shown
    assert "small GET" in shown


def test_terminated_in_a_rotation_it_ends_both_loads(directory: Path) -> None:
    with bench(directory, "--rounds", "1", "--seconds", "0.1", "--rotation") as run:
        wait_for_line(run, "round 1/1")
        limit = time.monotonic() + PATIENCE
        while list(of_session(run.pid)).count("load") < 2:
            assert time.monotonic() < limit
            time.sleep(0.05)
        end(run)


def test_killed_in_a_round_it_leaves_nothing_running(directory: Path) -> None:
    with bench(directory, "--rounds", "1000", "--seconds", "0.1", "--no-rotation") as run:
        wait_for_line(run, "round 1/1000")
        run.kill()
        run.wait(PATIENCE)
        limit = time.monotonic() + PATIENCE
        while left := list(of_session(run.pid)):
            assert time.monotonic() < limit, left
            time.sleep(0.05)
