"""A signal that comes before the gateway serves: a reload waits, an end is an end, whatever hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from support import hung_calls as hanging
from support.gateway import DEADLINE, Gateway
from support.site import Site

URL = "http://127.0.0.1:1"


@contextmanager
def starting(config: Path, hung: hanging.Hanging) -> Iterator[Gateway]:
    """One that does not come to serve."""
    gateway = Gateway(config, fresh=True, **hung.environ)
    try:
        hung.wait()
        yield gateway
    finally:
        gateway.process.kill()
        gateway.process.wait()
        gateway.stop()


def blocked(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:"))
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


class Early(Gateway):
    """Hears SIGHUP from the moment on at which it is no more its end, until it serves."""

    def __enter__(self) -> Self:
        end = time.monotonic() + DEADLINE
        while signal.SIGHUP not in blocked(self.process.pid):
            assert time.monotonic() < end
        self.hang_up()
        super().__enter__()
        return self


def test_a_reload_is_remembered(site: Site) -> None:
    with Early(site.write_config(URL), fresh=True) as gateway:
        assert gateway.audited(event="reload", reason="sighup")["result"] == "ok"


def test_a_reload_ends_no_import(tmp_path: Path) -> None:
    """The first of them that takes long is that of click."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nraise SystemExit(7)\n")
    command = [sys.executable, "-P", "-m", "tlsproxy", "run"]
    ended = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, timeout=DEADLINE, check=False)
    assert ended.returncode == 7


def test_an_end_while_a_name_is_resolved(site: Site, tmp_path: Path) -> None:
    hung = hanging.resolver(tmp_path / "hung")
    with starting(site.write_config(f"http://{hanging.HOST}:6333"), hung) as gateway:
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(DEADLINE) in {0, -signal.SIGTERM}


def test_an_end_while_workers_start(site: Site, tmp_path: Path) -> None:
    hung = hanging.workers(tmp_path / "hung")
    with starting(site.write_config(URL, workers=2), hung) as gateway:
        pid = gateway.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            assert blocked(int(child)) >= {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}, "what all processes are sent"
        gateway.process.send_signal(signal.SIGTERM)
        gateway.log.wait(lambda line: "ended before it served" in line)
        assert gateway.process.wait(DEADLINE) == 0
        assert children
        assert not any(Path(f"/proc/{child}").exists() for child in children), "none is left without its supervisor"
