"""Trail of the nodes in log and audit log: each that is drained or taken back, and each that fails or serves again."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tlsproxy.audit.line import event_line
from tlsproxy.config.locks import LockFile
from tlsproxy.proxy.core.balancer import FAILURES, Balancer, NodeState
from tlsproxy.service.lock_trail import AuditWriter
from tlsproxy.snapshot.nodes import Node
from tlsproxy.text import printable

_log = logging.getLogger(__name__)

_BAD: Final = {"down": "fails its checks", "ejected": "is left out for a while: requests failed there"}


class NodeTrail:
    """Reports drained nodes; those that are drained at the start, too."""

    def __init__(self, audit: AuditWriter) -> None:
        self._audit = audit
        self._drained: frozenset[str] = frozenset()

    def look(self, nodes: Sequence[Node], file: LockFile, now: float) -> None:
        """Report the differences from the last look. ``now`` is seconds since the epoch."""
        drained = frozenset(node.name for node in nodes if node.drained)
        before, self._drained = self._drained, drained
        entries = {entry.node: entry for entry in file.drained}
        for name in sorted(drained - before):
            entry = entries.get(name)
            detail = {} if entry is None else {"by": entry.by, "text": entry.reason}
            self._tell(name, "drained", now, detail)
        for name in sorted(before - drained):
            if any(node.name == name for node in nodes):
                self._tell(name, "up", now, {})

    def _tell(self, name: str, reason: str, now: float, detail: Mapping[str, str]) -> None:
        by = f", by {printable(detail['by'])}" if detail.get("by") else ""
        text = f": {printable(detail['text'])}" if detail.get("text") else ""
        _log.warning("node %s: %s%s%s", printable(name), reason, by, text)
        fields: dict[str, Any] = {key: value for key, value in detail.items() if value}
        self._audit.write(
            event_line(when=now, event="node", remote=None, result="ok", reason=reason, detail={"node": name, **fields})
        )


class NodeHealth:
    """Log lines on the health of nodes as one process finds it: one when a node fails, one when it serves again."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._bad: dict[str, str] = {}

    def look(self) -> None:
        if not self._balancer.several and not self._bad:
            return
        now = time.monotonic()
        bad = {one.node.name: text for one in self._balancer.nodes if (text := _trouble(one, now))}
        for name, text in bad.items():
            if self._bad.get(name) != text:
                _log.warning("node %s %s", printable(name), text)
        for name in self._bad.keys() - bad.keys():
            if any(one.node.name == name for one in self._balancer.nodes):
                _log.warning("node %s serves again", printable(name))
        self._bad = bad


def _trouble(state: NodeState, now: float) -> str:
    """Why it does not serve. An ejection lasts, for the log, until a request succeeds there."""
    condition = state.condition(now)
    if condition == "up" and max(state.rest.failures, state.grpc.failures) >= FAILURES:
        condition = "ejected"
    fault = next((f": {api.fault}" for api in (state.rest, state.grpc) if api.fault), "")
    return _BAD[condition] + fault * (condition == "down") if condition in _BAD else ""
