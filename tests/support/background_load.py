"""Steady load on a gateway, from a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.gateway import DEADLINE, Gateway, Lines
from support.site import Site


class BackgroundLoad:
    """The clients of :mod:`support.load_program`, in a process of their own."""

    def __init__(
        self,
        site: Site,
        gateway: Gateway,
        kept: int,
        new: int,
        *,
        clients: Sequence[str] = ("admin",),
        **more: float,
    ) -> None:
        """``more`` is what else there is in a :class:`support.load_program.Spec`."""
        spec = {"directory": str(site.directory), "port": gateway.port, "clients": clients, "kept": kept, "new": new}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "support.load_program", json.dumps(spec | more)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        self.lines = Lines(self._process.stdout)

    def saw(self, serial: int) -> None:
        self.lines.wait(lambda line: line == f"serial {serial:x}")

    def end(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.close()
        done = json.loads(self.lines.drain()[-1])
        assert self._process.wait(DEADLINE) == 0
        return dict(done)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
