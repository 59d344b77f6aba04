"""Trail of locks in the audit log, the log, metrics and the status: each that begins or ends to hold, by whom and why.

A lock that ends at its moment is published by nobody: so the locks in force are compared with those of the last look.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tlsproxy.audit.line import event_line
from tlsproxy.authz.keys import NEVER
from tlsproxy.authz.locks import Lock, Locks, Selector
from tlsproxy.config.locks import FileEntry, LockFile
from tlsproxy.slices import slices
from tlsproxy.text import printable, rfc3339
from tlsproxy.threads import in_thread

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


@dataclass(frozen=True, slots=True)
class Differences:
    """Locks that begin to hold at ``now``, and those that end, each with the file's entry and the author of its end, as
    far as there are any.
    """

    locks: Locks
    now: float
    begun: Sequence[tuple[_Key, Lock]] = ()
    ended: Sequence[tuple[_Key, FileEntry | None, str]] = ()


class LockTrail:
    """For one event loop. Between :meth:`differences` and the end of :meth:`tell` no others may be asked for."""

    def __init__(self, audit: AuditWriter, metrics: LockMetrics, path: Path) -> None:
        self._audit = audit
        self._metrics = metrics
        self._path = path
        self._held: dict[_Key, _Held] = {}
        self._looked: tuple[Locks | None, float] = None, 0.0

    async def differences(self, locks: Locks, file: LockFile, now: float) -> Differences:
        """Locks to report once these are in force; thousands are compared in a thread.

        ``file`` has the marks of those that were taken back, ``now`` is seconds since the epoch.
        """
        former, then = self._looked
        if locks is former and not locks.differ(then, now):
            return Differences(locks, now)
        return await in_thread(_differences, self._held, locks, file, now)

    async def tell(self, found: Differences, *, cut: int | None = None, start: bool = False) -> None:
        """Report the differences, which are those from what was told last; thousands in slices. ``cut`` as in
        :class:`_Held`.
        """
        self._looked = found.locks, found.now
        for number, begun in enumerate(slices(found.begun)):
            if number:
                await asyncio.sleep(0)
            for key, lock in begun:
                self._held[key] = _Held(lock, cut)
                self._tell_lock(lock, found.now, cut, start=start)
        for number, ended in enumerate(slices(found.ended)):
            if number:
                await asyncio.sleep(0)
            for key, lifted, by in ended:
                self._tell_unlock(self._held.pop(key).lock, found.now, lifted, by)
        if found.begun or found.ended:
            self._metrics.locked(Counter[str](held.lock.kind for held in self._held.values()))

    def status(self, fault: str) -> dict[str, Any]:
        """As JSON values; ``fault`` is why the file is not in force as it is. May be called in a thread."""
        held = list(self._held.values())
        entries = [
            {
                "lock": one.lock.name,
                "kind": one.lock.kind,
                "value": one.lock.value,
                "issuer": one.lock.issuer or None,
                "until": None if one.lock.until == NEVER else one.lock.until,
                "by": one.lock.by,
                "at": one.lock.at or None,
                "reason": one.lock.reason,
                "configured": one.lock.configured,
                "cut": one.cut,
            }
            for one in held[:MAX_LISTED]
        ]
        return {
            "file": str(self._path.absolute()),
            "error": fault,
            "count": len(held),
            "entries": entries,
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


def _differences(held: Mapping[_Key, _Held], locks: Locks, file: LockFile, now: float) -> Differences:
    present = locks.in_force(now)
    begun = [(key, lock) for key, lock in present.items() if (known := held.get(key)) is None or known.lock != lock]
    gone = held.keys() - present.keys()
    lifted = {entry.lock().selector: entry for entry in file.locks if entry.lifted_at is not None} if gone else {}
    return Differences(locks, now, begun, [(key, lifted.get(key[0]), file.all_lifted_by) for key in gone])


def _by(lock: Lock) -> str:
    reason = f": {printable(lock.reason)}" if lock.reason else ""
    return f", by {printable(lock.by)}{reason}" if lock.by else reason
