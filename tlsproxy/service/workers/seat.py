"""A worker's place among the others, which several processes may have, one after the other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tlsproxy.service.auditcounts import Counts, private
from tlsproxy.service.workers.merging import Families
from tlsproxy.service.workers.process import WorkerProcess


@dataclass(slots=True)
class Seat:
    """``lines`` are the counts of its audit lines, ``families`` the metrics that were told last. ``first`` is done once
    somebody serves, or could not.
    """

    number: int
    lines: Counts = field(default_factory=private)
    process: WorkerProcess | None = None
    restarts: int = 0
    served_since: float | None = None
    families: Families = field(default_factory=list)
    first: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def serving(self) -> WorkerProcess | None:
        process = self.process
        return process if process is not None and process.order is not None and not process.ending else None

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        process, serving = self.process, self.serving
        return {
            "number": self.number,
            "pid": process.pid if process is not None else None,
            "started_at": process.started_at if process is not None else None,
            "restarts": self.restarts,
            "generation": serving.order.number if serving is not None and serving.order is not None else None,
        }
