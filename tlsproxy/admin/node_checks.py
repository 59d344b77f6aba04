"""Active checks of the nodes, by one process: each API of each node is asked whether it is ready, at intervals.

Only where there are several nodes: of one alone nothing depends on it, and requests say what its state is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from tlsproxy.admin.upstream_probe import DEADLINE, Target, is_ready
from tlsproxy.config.model import HttpProtocol
from tlsproxy.proxy.core.balancer import Balancer, NodeState
from tlsproxy.snapshot.generation import Generation
from tlsproxy.tls.client_context import ServerRefused

SHORTEST: Final = 0.5
"""Seconds that a node has for its answer at least; else as many as there are between two checks, up to a probe's."""

_log = logging.getLogger(__name__)


class NodeChecks:
    """``generation`` is the present one. Its checks run from :meth:`adopt` to :meth:`close`, in one task."""

    def __init__(self, balancer: Balancer, generation: Callable[[], Generation]) -> None:
        self._balancer = balancer
        self._generation = generation
        self._task: asyncio.Task[None] | None = None

    def adopt(self) -> None:
        """Begins or ends as the present generation says. Without checks none takes a node back: all are forgotten."""
        wanted = len(self._balancer.nodes) > 1 and self._generation().config.upstream.check_interval > 0
        if not wanted:
            self.close()
            for node in self._balancer.nodes:
                node.forget_checks()
        elif self._task is None:
            self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _run(self) -> None:
        while True:
            begun, generation = time.monotonic(), self._generation()
            interval = generation.config.upstream.check_interval
            deadline = min(max(interval, SHORTEST), DEADLINE)
            async with asyncio.TaskGroup() as group:
                for node in self._balancer.nodes:
                    for protocol in generation.protocols:
                        target = Target(protocol, node.node.api(protocol), generation.upstream_api_key)
                        group.create_task(self._check(node, protocol, target, deadline))
            await asyncio.sleep(max(begun + interval - time.monotonic(), 0.0))

    async def _check(self, node: NodeState, protocol: HttpProtocol, target: Target, deadline: float) -> None:
        fault = ""
        try:
            good = await is_ready(target, deadline)
        except ServerRefused as refusal:
            good, fault = False, f"TLS with it fails: {refusal} ({refusal.reason})"
        except TimeoutError:
            good = False
        except Exception:  # noqa: BLE001 - it says nothing of the node, and must not end the checks of all others
            _log.exception("the check of node %s over %s failed by an internal error", node.node.name, protocol)
            return
        if good is not None:
            node.api(protocol).fault = fault
            self._balancer.checked(node, protocol, time.monotonic(), good=good)
