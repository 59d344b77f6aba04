"""Trail of locks in the audit log, the log, metrics and the status: each that begins or ends to hold, by whom and why.

A lock that ends at its moment is published by nobody: so the locks in force are compared with those of the last look.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tlsproxy.audit.line import event_line
from tlsproxy.authz.keys import NEVER
from tlsproxy.authz.locks import Lock, Locks, Selector
from tlsproxy.config.locks import FileEntry, LockFile
from tlsproxy.text import printable, rfc3339

MAX_LISTED: Final = 10_000
"""Most locks in a status."""

_log = logging.getLogger(__name__)

_Key = tuple[Selector, bool]


class AuditWriter(Protocol):
    def write(self, line: str) -> None: ...


class LockMetrics(Protocol):
    def locked(self, kinds: Mapping[str, int]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Held:
    """A lock in force. ``cut`` are the connections, requests and calls that its publication ended; None if unknown."""

    lock: Lock
    cut: int | None


class LockTrail:
    def __init__(self, audit: AuditWriter, metrics: LockMetrics, path: Path) -> None:
        self._audit = audit
        self._metrics = metrics
        self._path = path
        self._held: dict[_Key, _Held] = {}
        self._looked: tuple[Locks | None, float] = None, 0.0

    def look(self, locks: Locks, file: LockFile, now: float, *, cut: int | None = None, start: bool = False) -> None:
        """Report what differs from the last look. ``now`` is seconds since the epoch, ``cut`` as in :class:`_Held`."""
        former, then = self._looked
        self._looked = locks, now
        if locks is former and not locks.differ(then, now):
            return
        present = locks.in_force(now)
        if present.keys() == self._held.keys() and all(self._held[key].lock == each for key, each in present.items()):
            return
        for key, lock in present.items():
            known = self._held.get(key)
            if known is None or known.lock != lock:
                self._held[key] = _Held(lock, cut)
                self._tell_lock(lock, now, cut, start=start)
        lifted = {entry.lock().selector: entry for entry in file.locks if entry.lifted_at is not None}
        for key in self._held.keys() - present.keys():
            lock = self._held.pop(key).lock
            self._tell_unlock(lock, now, lifted.get(key[0]), file.all_lifted_by)
        self._metrics.locked(Counter[str](held.lock.kind for held in self._held.values()))

    def status(self, fault: str) -> dict[str, Any]:
        """As JSON values; ``fault`` is why the file is not in force as it is."""
        entries = [
            {
                "lock": held.lock.name,
                "kind": held.lock.kind,
                "value": held.lock.value,
                "issuer": held.lock.issuer or None,
                "until": None if held.lock.until == NEVER else held.lock.until,
                "by": held.lock.by,
                "at": held.lock.at or None,
                "reason": held.lock.reason,
                "configured": held.lock.configured,
                "cut": held.cut,
            }
            for held in self._held.values()
        ]
        return {
            "file": str(self._path.absolute()),
            "error": fault,
            "count": len(entries),
            "entries": entries[:MAX_LISTED],
        }

    def _tell_lock(self, lock: Lock, now: float, cut: int | None, *, start: bool) -> None:
        source = "start" if start else "configuration" if lock.configured else "operator"
        until = "" if lock.until == NEVER else rfc3339(lock.until)
        ended = "" if cut is None else f"; {cut} connections, requests and calls end"
        _log.warning(
            "locked (%s): %s%s%s%s", source, printable(lock.name), f" until {until}" * bool(until), _by(lock), ended
        )
        detail: dict[str, str | int] = {"by": lock.by, "until": until, "text": lock.reason}
        if cut is not None:
            detail["connections"] = cut
        self._write("lock", source, lock, now, detail)

    def _tell_unlock(self, lock: Lock, now: float, lifted: FileEntry | None, by: str) -> None:
        source, text = "operator", ""
        if lock.until <= now:
            source, by = "expired", ""
        elif lock.configured:
            source, by = "configuration", ""
        elif lifted is not None:
            by, text = lifted.lifted_by, lifted.lifted_reason
        _log.warning("unlocked (%s): %s%s", source, printable(lock.name), f", by {printable(by)}" * bool(by))
        self._write("unlock", source, lock, now, {"by": by, "text": text})

    def _write(self, event: Any, source: str, lock: Lock, now: float, detail: Mapping[str, str | int]) -> None:
        fields = {name: value for name, value in detail.items() if value != ""}
        self._audit.write(
            event_line(
                when=now, event=event, remote=None, result="ok", reason=source, detail={"lock": lock.name, **fields}
            )
        )


def _by(lock: Lock) -> str:
    reason = f": {printable(lock.reason)}" if lock.reason else ""
    return f", by {printable(lock.by)}{reason}" if lock.by else reason
