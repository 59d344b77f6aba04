"""One run of the load generator against one contender."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import GeneratorError
from bench.figures import Idle, Sample
from bench.process import Running, cores, pinned, stop
from bench.site import Site
from bench.workloads import Workload

_PATIENCE = 200.0


@dataclass(frozen=True, slots=True)
class Generator:
    """``warm_up`` and ``seconds`` are those of a run of a workload whose factor is 1."""

    program: Path
    site: Site
    seconds: float = 1.0
    warm_up: float = 0.25

    def measure(self, contender: Running, workload: Workload) -> Sample:
        command = [
            *self._common(contender, workload),
            *workload.arguments(),
            *("--seconds", str(self.seconds * workload.seconds), "--warm-up", str(self.warm_up)),
        ]
        return Sample.of(_told(command))

    @contextmanager
    def beside(self, contender: Running, workload: Workload) -> Iterator[subprocess.Popen[str]]:
        """Beside something else, which may replace processes: no CPU is measured. ``finish`` waits for it."""
        command = [*self._common(contender, workload, pids=()), *workload.arguments(), "--seconds", str(self.seconds)]
        with subprocess.Popen(
            pinned(cores(1)[1], command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                stop(process)

    def rest(self, contender: Running, workload: Workload, connections: int, settle: float = 2.0) -> Idle:
        """So many connections that rest, each asked once."""
        command = [
            *self._common(contender, workload),
            *("--mode", "idle", "--connections", str(connections), "--length", str(workload.length)),
            *("--settle", str(settle)),
        ]
        return Idle.of(_told(command))

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


def _told(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(pinned(cores(1)[1], command), capture_output=True, text=True, timeout=_PATIENCE, check=False)
    if done.returncode:
        raise GeneratorError(done.stderr.strip()[-300:])
    return dict(json.loads(done.stdout))


def finish(process: subprocess.Popen[str]) -> Sample:
    told, said = process.communicate(timeout=_PATIENCE)
    if process.returncode:
        raise GeneratorError(said.strip()[-300:])
    return Sample.of(json.loads(told))
