"""A worker's place among the others, which several processes may have, one after the other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tlsproxy.audit.counters import Counts, private
from tlsproxy.service.workers.merging import Families
from tlsproxy.service.workers.process import PING, WorkerProcess
from tlsproxy.service.workers.snapshot_codec import Order


@dataclass(slots=True)
class WorkerSlot:
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

    @property
    def order(self) -> Order | None:
        """What it serves."""
        return self.serving.order if self.serving is not None else None

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        process, order = self.process, self.order
        return {
            "number": self.number,
            "pid": process.pid if process is not None else None,
            "started_at": process.started_at if process is not None else None,
            "restarts": self.restarts,
            "generation": order.number if order is not None else None,
            "silent": self.silent,
        }

    @property
    def silent(self) -> float:
        """Seconds for which it has not answered, where that is longer than a busy loop makes one wait."""
        silence = self.process.silence if self.process is not None else 0.0
        return round(silence, 1) if silence >= PING else 0.0

    def trouble(self, generation: int) -> str:
        """Why it does not serve the generation of this number as it should; empty where it does."""
        order = self.order
        if order is None:
            return f"worker {self.number} is being started"
        if self.silent:
            return f"worker {self.number} has not answered for {self.silent:g} s"
        return "" if order.number == generation else f"worker {self.number} is still at generation {order.number}"
