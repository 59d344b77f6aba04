"""One run of the load generator against one contender."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.errors import GeneratorError
from bench.figures import Idle, Sample
from bench.process import Running, cores, started
from bench.site import Site
from bench.workloads import Workload

_PATIENCE = 200.0
_AROUND = 0.1
"""Seconds of a process and of its connections' handshakes, around what it measures."""


@dataclass(frozen=True, slots=True)
class Generator:
    """``warm_up`` and ``seconds`` are those of a run of a workload whose factor is 1."""

    program: Path
    site: Site
    seconds: float = 1.0
    warm_up: float = 0.1

    def planned(self, workload: Workload) -> float:
        """Seconds that ``measure`` should take."""
        return self.seconds * workload.seconds + self.warm_up + _AROUND

    def measure(self, contender: Running, workload: Workload) -> Sample:
        command = [
            *self._common(contender, workload),
            *workload.arguments(),
            *("--seconds", str(self.seconds * workload.seconds), "--warm-up", str(self.warm_up)),
        ]
        with _started(command) as process:
            return finish(process)

    def send(self, contender: Running, workload: Workload, requests: int) -> Sample:
        """So many of them, and a few that are under way at the end; the CPU is not measured."""
        command = [*self._common(contender, workload, pids=()), *workload.arguments(), "--requests", str(requests)]
        with _started(command) as process:
            return finish(process)

    def beside(self, contender: Running, workload: Workload) -> AbstractContextManager[subprocess.Popen[str]]:
        """Beside something else, which may replace processes: no CPU is measured. ``finish`` waits for it."""
        command = [*self._common(contender, workload, pids=()), *workload.arguments(), "--seconds", str(self.seconds)]
        return _started(command)

    def rest(self, contender: Running, workload: Workload, connections: int, settle: float = 2.0) -> Idle:
        """So many connections that rest, each asked once."""
        with self.resting(contender, workload, connections, settle) as idle:
            return idle

    @contextmanager
    def resting(self, contender: Running, workload: Workload, connections: int, settle: float = 0.0) -> Iterator[Idle]:
        """They stay until they are no longer needed."""
        command = [
            *self._common(contender, workload),
            *("--mode", "idle", "--connections", str(connections), "--length", str(workload.length)),
            *("--settle", str(settle)),
        ]
        with _started(command) as process:
            assert process.stdout is not None  # noqa: S101 - for the type
            told = process.stdout.readline()
            if not told:
                raise GeneratorError(process.communicate()[1].strip()[-300:])
            yield Idle.of(json.loads(told))

    def planned_rest(self, connections: int) -> float:
        """Seconds until so many rest: handshakes, ours and the contender's, each on a core."""
        return connections / 300

    def _common(self, contender: Running, workload: Workload, pids: Sequence[int] | None = None) -> list[str]:
        """``pids``: whose CPU and memory is measured, if not of all the contender's processes."""
        path, port = self.site.path, contender.port(workload.kind)
        return [
            *(
                str(self.program),
                "--port",
                str(port),
                "--pids",
                ",".join(map(str, contender.pids() if pids is None else pids)),
            ),
            *("--ca", str(path("ca.pem")), "--cert", str(path(f"{workload.client}.pem"))),
            *("--key", str(path(f"{workload.client}.key")), "--request", str(self.site.request(workload.request))),
            *("--authority", f"localhost:{port}", "--path", "/qdrant.Points/Search"),
        ]


def _started(command: list[str]) -> AbstractContextManager[subprocess.Popen[str]]:
    return started(cores(1)[1], command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> Sample:
    try:
        told, said = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise GeneratorError(f"no end in {_PATIENCE:.0f} s") from None
    if process.returncode:
        raise GeneratorError(said.strip()[-300:])
    return Sample.of(json.loads(told))
