"""`tlsproxy demo`, as a user runs it."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

DEMO = (sys.executable, "-m", "tlsproxy", "demo")
STEPS = 11


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ports_in(output: str) -> list[int]:
    return [int(port) for port in re.findall(r"on 127\.0\.0\.1:(\d+)", output)]


def test_once_shows_every_step_and_leaves_nothing_running(tmp_path: Path) -> None:
    done = subprocess.run([*DEMO, "--once", "--dir", tmp_path / "demo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("✓") == STEPS
    assert "✗" not in done.stdout
    ports = ports_in(done.stdout)
    assert len(ports) == 2
    assert not any(map(is_listening, ports))


def test_a_directory_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = subprocess.run([*DEMO, "--once", "--dir", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "choose another --dir" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_stays_up_with_lines_that_work_until_it_is_told_to_stop(tmp_path: Path, end: signal.Signals) -> None:
    # A name that has to be quoted in the lines to copy.
    command = [*DEMO, "--dir", str(tmp_path / "the demo's")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        said = ""
        try:
            for line in demo.stdout:
                said += line
                if line.startswith("Ctrl-C"):
                    break
            reading, deleting, elsewhere, anonymous = (
                subprocess.run([*shlex.split(line), "-sS"], capture_output=True, text=True, check=False)
                for line in said.splitlines()
                if line.startswith("  curl ")
            )
            assert '"name":"docs"' in reading.stdout
            assert "Forbidden" in deleting.stdout
            assert "Forbidden" in elsewhere.stdout
            assert anonymous.returncode != 0
            python = textwrap.dedent(said.partition("# Python, as the role search:\n")[2].partition("\n\n")[0])
            scrolled = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, check=False)
            assert (scrolled.returncode, scrolled.stderr) == (0, "")
            assert "document 2" in scrolled.stdout
        finally:
            demo.send_signal(end)
            demo.wait(30)
    assert demo.returncode == 0
    assert not any(map(is_listening, ports_in(said)))
