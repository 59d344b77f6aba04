"""The audit log's writer: a thread off the event loop, behind a bounded queue that refuses rather than loses.

A request is admitted only while :meth:`AuditLog.accepts` says that its line will have room. A write that fails (full
disk, I/O error, directory gone) keeps its lines, is tried again with a growing pause, and turns `accepts()` False
until it succeeds. A line that comes nevertheless and finds no room is counted in `dropped`, never silently lost.

The event loop's thread alone calls `accepts`, `write` and `when_writable`; neither ever blocks or raises. The two
counters `_taken` and `_written` have one writing thread each, so that the hot path needs no lock. This module knows
nothing of what a line says; :mod:`tlsproxy.authz.audit` renders it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from tlsproxy.errors import BadRequest, Overloaded, TlsproxyError
from tlsproxy.service.auditfile import ALONE, AuditFiles, Sink, StandardOutput, Turn
from tlsproxy.service.auditquery import matching_entries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tlsproxy.authz.auditquery import AuditQuery
    from tlsproxy.config.model import Audit

_log = logging.getLogger(__name__)

_BATCH: Final = 1024
"""Lines to a write: under a megabyte of usual lines."""

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
"""Between attempts, in seconds: trying costs nothing, and until it succeeds every request is refused."""


class AuditNotWritable(TlsproxyError):
    """The audit log cannot be begun, so nothing may be served."""

    def __init__(self, where: Path | str, error: OSError) -> None:
        super().__init__(
            f"audit.dir {where}: {error.strerror or error}; let the user that tlsproxy runs as write there, "
            "set audit.dir to a directory it can write, or to '-' for the standard output"
        )


class NoAudit:
    """`audit.enabled: false`: no line is kept, and none is ever in the way."""

    healthy: Final = True
    last_error: Final = ""
    queued: Final = 0
    written: Final = 0
    dropped: Final = 0

    def accepts(self, pending: int = 0) -> bool:  # noqa: ARG002 - the log's interface
        return True

    def write(self, line: str) -> None:
        pass

    def when_writable(self, callback: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_soon(callback)

    def read(self, query: AuditQuery) -> list[bytes]:  # noqa: ARG002 - the log's interface
        raise BadRequest("Audit logging is not enabled")

    def start(self) -> None:
        pass

    def close(self, timeout: float = 0.0) -> None:
        pass


class AuditLog:
    """`clock` is the wall clock, in seconds since the epoch, that names the files.

    `turn` is that of all processes whose lines go to the same place.
    """

    def __init__(
        self, settings: Audit, clock: Callable[[], float] = time.time, sink: Sink | None = None, turn: Turn = ALONE
    ) -> None:
        self._where = settings.dir
        self._sink: Sink = sink or _sink_of(settings, turn)
        self._capacity = settings.queue_size
        self._flush_interval = settings.flush_interval
        self._clock = clock
        self._queue: deque[str] = deque()
        self._taken = 0
        self._written = 0
        self._working = False
        self._progress = 0
        self._progress_seen = -1
        self._some = threading.Event()
        self._urgent = threading.Event()
        self._awake = False
        self._closing = threading.Event()
        self._closed = False
        self._give_up_at = float("inf")
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, Callable[[], object]]] = []
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)
        self.last_error = ""
        self.dropped = 0

    def __repr__(self) -> str:
        return f"AuditLog({self._sink!r}, healthy={self.healthy}, queued={self.queued}, dropped={self.dropped})"

    @property
    def healthy(self) -> bool:
        return self._working

    @property
    def queued(self) -> int:
        """Lines taken and not yet written."""
        return self._taken - self._written

    @property
    def written(self) -> int:
        return self._written

    def accepts(self, pending: int = 0) -> bool:
        """Whether one more request may begin while `pending` others still owe their line."""
        if self._working and self._taken - self._written + pending < self._capacity:
            return True
        # Looked at once more, so that room made before this was noted is seen, and room made after it calls back.
        self._progress_seen = self._progress
        return self._working and self._taken - self._written + pending < self._capacity

    def write(self, line: str) -> None:
        """Takes one line, which ends in a newline and holds no other."""
        queued = self._taken - self._written
        if queued >= self._capacity or self._closed:
            self.dropped += 1
            return
        self._queue.append(line)
        self._taken += 1
        # An event is set where it changes something: setting one takes its lock, and asking one costs a call.
        if queued * 2 >= self._capacity and not self._urgent.is_set():
            self._urgent.set()
        if not self._awake:
            self._awake = True
            self._some.set()

    def when_writable(self, callback: Callable[[], object]) -> None:
        """Calls `callback` once, from the running loop, when lines have been written since `accepts` last said no."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._progress == self._progress_seen:
                self._waiters.append((loop, callback))
                return
        loop.call_soon(callback)

    def read(self, query: AuditQuery) -> list[bytes]:
        """For one at a time, off the loop. Raises OSError, Overloaded, and BadRequest where there are no files."""
        if self._where == "-":
            raise BadRequest("Audit logging is not configured to write files, which could be read")
        if not self._reading.acquire(blocking=False):
            raise Overloaded("The audit log is being read already")
        try:
            return matching_entries(self._where, query)
        finally:
            self._reading.release()

    def start(self) -> None:
        """Raises AuditNotWritable where the log cannot be opened."""
        try:
            self._sink.ready(self._clock())
        except OSError as error:
            raise AuditNotWritable(self._where, error) from error
        self._working = True
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Writes what is queued, for at most `timeout` seconds; what then remains is told of. Blocks."""
        self._give_up_at = time.monotonic() + timeout
        self._closed = True
        self._closing.set()
        self._urgent.set()
        self._some.set()
        if self._thread.is_alive():
            self._thread.join(timeout + _FIRST_PAUSE)
        self._working = False
        if self.queued:
            _log.error("audit: lines lost: %d (%s)", self.queued, self.last_error or "not written in time")

    def _run(self) -> None:
        try:
            while self._next_batch():
                pass
        except Exception as error:  # noqa: BLE001 - the thread's last word, told and failing closed
            self.last_error = f"the writer has failed: {error!r}"
            _log.exception("audit: the writer has failed; requests are refused")
        finally:
            self._working = False
            self._sink.close()

    def _next_batch(self) -> bool:
        """Gathers lines for a flush interval and writes them. False when the log is closed and nothing is left."""
        self._some.wait()
        # Cleared, and then told so, before the queue is looked at: a line that comes meanwhile is either seen there or
        # sets it again.
        self._some.clear()
        self._awake = False
        self._urgent.wait(self._flush_interval)
        self._urgent.clear()
        while self._queue:
            lines = list(islice(iter(self._queue.popleft, None), min(len(self._queue), _BATCH)))
            if not self._write("".join(lines).encode("utf-8", "replace"), len(lines)):
                return False
        return not self._closing.is_set()

    def _write(self, batch: bytes, lines: int) -> bool:
        """Writes all of it, however often that fails. False where closing has run out of time."""
        done = 0
        pause = _FIRST_PAUSE
        view = memoryview(batch)
        while done < len(batch):
            try:
                if self._sink.ready(self._clock()):
                    done = batch.rfind(b"\n", 0, done) + 1
                count = self._sink.append(view[done:])
            except OSError as error:
                self._failed(error)
                if self._closing.wait(pause):
                    time.sleep(_FIRST_PAUSE)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                self._written += lines if count == len(batch) else batch.count(b"\n", done, done + count)
                done += count
                if count:
                    self._wrote()
            if time.monotonic() >= self._give_up_at and done < len(batch):
                return False
        return True

    def _failed(self, error: OSError) -> None:
        self.last_error = str(error)
        if self._working:
            self._working = False
            _log.error("audit: %r cannot be written: %s; requests are refused until it can", self._sink, error)

    def _wrote(self) -> None:
        if not self._working:
            self._working = True
            self.last_error = ""
            _log.warning("audit: %r can be written again; %d lines dropped so far", self._sink, self.dropped)
        with self._lock:
            self._progress += 1
            waiters, self._waiters = self._waiters, []
        for loop, callback in waiters:
            try:
                loop.call_soon_threadsafe(callback)
            except RuntimeError:
                _log.debug("audit: a loop ended before there was room for what waited in it")


def audit_log(settings: Audit, turn: Turn = ALONE) -> AuditLog | NoAudit:
    return AuditLog(settings, turn=turn) if settings.enabled else NoAudit()


def _sink_of(settings: Audit, turn: Turn) -> Sink:
    if settings.dir == "-":
        return StandardOutput(turn=turn)
    return AuditFiles(settings.dir, settings.rotation, settings.max_log_files, turn)
