"""The audit log's writer: a thread behind a bounded queue. If it is full, requests are refused, not left unlogged.

A request, allowed or not, is answered only after :meth:`AuditLog.take` has reserved room for its line. If a write
fails (full disk, I/O error, directory gone), its lines stay queued, it is retried with growing pauses, and no room is
reserved until it succeeds. A line without a reservation that finds no room is lost; the next line that can be written
has the number of lost lines, and the reason.

Only the event loop's thread calls `take`, `put`, `write` and `when_writable`; none of them blocks or raises. Each
counter has one writing thread, so that the hot path needs no lock. :mod:`tlsproxy.audit.line` renders the lines.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final

from tlsproxy.audit import counters
from tlsproxy.audit.counters import Count, Counts
from tlsproxy.audit.files import ALONE, AuditFiles, Sink, StandardOutput, Turn
from tlsproxy.audit.line import event_line
from tlsproxy.audit.search import matching_entries
from tlsproxy.errors import BadRequest, Overloaded, TlsproxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tlsproxy.audit.query import AuditQuery
    from tlsproxy.config.model import AuditConfig

_log = logging.getLogger(__name__)

_BATCH: Final = 1024
"""Most lines per write, usually less than a megabyte."""

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
"""Seconds between attempts: an attempt is cheap, and all requests are refused until one succeeds."""


_ENTER: Final = 0o5
"""Mode bits of a directory that may be listed and entered."""

# Reasons for lost lines.
QUEUE_FULL: Final = "queue_full"
NOT_WRITABLE: Final = "not_writable"
STOPPING: Final = "stopping"
WORKER_ENDED: Final = "worker_ended"

# Members as globals: an attribute look-up on the class costs ten times as much.
_TAKEN, _WRITTEN, _LOST, _REPORTED = Count


class AuditNotWritable(TlsproxyError):
    """The audit log cannot be opened, so that nothing may be served."""

    def __init__(self, where: Path | str, error: OSError) -> None:
        super().__init__(
            f"audit.dir {where}: {error.strerror or error}; let the user that tlsproxy runs as write there, "
            "set audit.dir to a directory it can write, or to '-' for the standard output"
        )


class AuditGroupError(TlsproxyError):
    """`audit.group` cannot be given the files."""


class NoAudit:
    """`audit.enabled: false`: lines are dropped, and there is always room."""

    healthy: Final = True
    last_error: Final = ""
    queued: Final = 0
    written: Final = 0
    dropped: Final = 0
    capacity: Final = 0

    def accepts(self) -> bool:
        return True

    def take(self) -> bool:
        return True

    def put(self, line: str) -> None:
        pass

    def write(self, line: str) -> None:
        pass

    def lose(self, number: int, reason: str) -> None:
        pass

    def write_out(self, timeout: float) -> None:
        pass

    def when_writable(self, callback: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_soon(callback)

    def when_health_changes(self, callback: Callable[[], object]) -> None:
        pass

    def read(self, query: AuditQuery, largest: int) -> list[bytes]:  # noqa: ARG002 - the log's interface
        raise BadRequest("Audit logging is not enabled (audit.enabled is false): there is no log to search")

    def start(self) -> None:
        pass

    def close(self, timeout: float = 0.0) -> None:
        pass


class AuditLog:
    """The queue and its writer. `clock` is the wall clock, in seconds since the epoch, that names the files.

    `turn` is the lock of all processes that write to the same place; `counts` are this process's counters, which its
    supervisor may see. `first_pause` comes before the second attempt to write, in seconds; later ones double.
    """

    def __init__(
        self,
        settings: AuditConfig,
        clock: Callable[[], float] = time.time,
        sink: Sink | None = None,
        turn: Turn = ALONE,
        counts: Counts | None = None,
        first_pause: float = _FIRST_PAUSE,
    ) -> None:
        self._destination = settings.dir
        self._sink: Sink = sink or _sink_of(settings, turn)
        self.capacity = settings.queue_size
        self._flush_interval = settings.flush_interval
        self._clock = clock
        self._first_pause = first_pause
        self._queue: deque[str] = deque()
        self._counts = counts if counts is not None else counters.private()
        self._taken = self._put = self._written = 0
        self._lost: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._working = False
        self._progress = 0
        self._progress_seen = -1
        self._available = threading.Event()
        self._urgent = threading.Event()
        self._awake = False
        self._closing = threading.Event()
        self._closed = False
        self._give_up_at = float("inf")
        self._lock = threading.Lock()
        self._pen = threading.Lock()
        self._reading = threading.Lock()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, Callable[[], object]]] = []
        self._health_changed: Callable[[], object] = lambda: None
        self._writer = threading.Thread(target=self._run, name="audit-writer", daemon=True)
        self.last_error = ""

    def __repr__(self) -> str:
        return f"AuditLog({self._sink!r}, healthy={self.healthy}, queued={self.queued}, dropped={self.dropped})"

    @property
    def healthy(self) -> bool:
        return self._working

    @property
    def queued(self) -> int:
        """Lines that wait to be written."""
        return self._put - self._written

    @property
    def dropped(self) -> int:
        """Lines that were lost."""
        return sum(self._lost.values())

    @property
    def written(self) -> int:
        return self._written

    def accepts(self) -> bool:
        """Whether there is room for one more line."""
        return self._working and self._taken - self._written < self.capacity

    def take(self) -> bool:
        """Promises room for one line, which is then to be :meth:`put`; False where there is none."""
        if not self.accepts():
            # Looked at once more, so that room made before this was noted is seen, and room made after it calls back.
            self._progress_seen = self._progress
            if not self.accepts():
                return False
        self._counts[_TAKEN] = self._taken = self._taken + 1
        return True

    def put(self, line: str) -> None:
        """Queues a line with reserved room; it ends in its only newline."""
        self._queue.append(line)
        self._put += 1
        # Events are set only when they change: setting takes a lock, a query is a call.
        if (self._put - self._written) * 2 > self.capacity and not self._urgent.is_set():
            self._urgent.set()
        if not self._awake:
            self._awake = True
            self._available.set()

    def write(self, line: str) -> None:
        """Queues a line without reserved room, or counts it as lost."""
        if not self._closed and self._taken - self._written < self.capacity:
            self._counts[_TAKEN] = self._taken = self._taken + 1
            self.put(line)
        else:
            self.lose(1, STOPPING if self._closed else QUEUE_FULL if self._working else NOT_WRITABLE)

    def lose(self, number: int, reason: str) -> None:
        """Counts lost lines; their number is reported in the next line that can be written."""
        self._lost[reason] += number
        self._counts[_LOST] += number
        if not self._awake:
            self._awake = True
            self._available.set()

    def when_writable(self, callback: Callable[[], object]) -> None:
        """Calls `callback` once, from the running loop, when lines have been written since `accepts` last said no."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._progress == self._progress_seen:
                self._waiters.append((loop, callback))
                return
        loop.call_soon(callback)

    def when_health_changes(self, callback: Callable[[], object]) -> None:
        """Calls `callback` from the writer's thread each time that lines cannot be written, or can again."""
        self._health_changed = callback

    def read(self, query: AuditQuery, largest: int) -> list[bytes]:
        """The entries that match, at most ``largest`` bytes; one query at a time, off the event loop.

        Raises OSError, Overloaded, and BadRequest if the log is not in files.
        """
        if self._destination == "-":
            raise BadRequest(
                "The audit log goes to the standard output (audit.dir is '-'), where it cannot be searched: "
                "set audit.dir to a directory, or search where the output is collected"
            )
        if not self._reading.acquire(blocking=False):
            raise Overloaded("The audit log is being read already")
        try:
            return matching_entries(self._destination, query, largest)
        finally:
            self._reading.release()

    def start(self) -> None:
        """Opens the log and starts the writer. Raises AuditNotWritable."""
        try:
            self._sink.ready(self._clock())
        except OSError as error:
            raise AuditNotWritable(self._destination, error) from error
        self._working = True
        self._writer.start()

    def close(self, timeout: float = 5.0) -> None:
        """Writes the queued lines for at most `timeout` seconds; the rest is logged as lost. Blocks."""
        self._give_up_at = time.monotonic() + timeout
        self._closed = True
        self._closing.set()
        self._urgent.set()
        self._available.set()
        if self._writer.is_alive():
            self._writer.join(timeout + self._first_pause)
        self._working = False
        lost = self._taken - self._written + sum(number for _, number in self._unreported())
        if lost:
            _log.error("audit: lines lost: %d (%s)", lost, self.last_error or "not written in time")

    def write_out(self, timeout: float) -> None:
        """Writes the queued lines from this thread, as the process is about to end: once, for at most so many seconds.

        May be called by a signal handler that interrupts the event loop's thread: it takes no lock that this thread may
        hold. The writer's thread holds the pen only while it writes.
        """
        until = time.monotonic() + timeout
        if not self._pen.acquire(timeout=timeout):
            return
        try:
            while self._queue and time.monotonic() < until:
                lines = self._taken_from_queue()
                view, done = memoryview("".join(lines).encode("utf-8", "replace")), 0
                self._sink.ready(self._clock())
                while done < len(view) and time.monotonic() < until:
                    done += self._sink.append(view[done:])
                self._wrote_lines(bytes(view[:done]).count(b"\n"))
        except OSError:
            return  # the supervisor reports the rest by its number
        finally:
            self._pen.release()

    def _run(self) -> None:
        try:
            while self._next_batch():
                pass
        except Exception as error:  # noqa: BLE001 - the thread ends: logged, and requests are refused
            self.last_error = f"the writer has failed: {error!r}"
            _log.exception("audit: the writer has failed; requests are refused")
        finally:
            self._set_working(False)
            self._sink.close()

    def _next_batch(self) -> bool:
        """Collects lines for a flush interval and writes them. False when the log is closed and the queue empty."""
        self._available.wait()
        # The event is cleared, then `_awake`, before the queue is read: a line that is put meanwhile is either read or
        # sets the event again.
        self._available.clear()
        self._awake = False
        self._urgent.wait(self._flush_interval)
        self._urgent.clear()
        while self._queue or self._unreported():
            with self._pen:
                if not self._write_batch():
                    return False
        return not self._closing.is_set()

    def _write_batch(self) -> bool:
        """Writes the numbers of lost lines, then queued lines. False if the time to close is over."""
        for reason, number in self._unreported():
            when, detail = self._clock(), {"lost": number}
            line = event_line(when=when, event="audit", remote=None, result="failed", reason=reason, detail=detail)
            if not self._write(line.encode(), 0):
                return False
            self._reported[reason] += number
            self._counts[_REPORTED] += number
        lines = self._taken_from_queue()
        return self._write("".join(lines).encode("utf-8", "replace"), len(lines))

    def _unreported(self) -> list[tuple[str, int]]:
        lost = [(reason, number - self._reported[reason]) for reason, number in list(self._lost.items())]
        return [(reason, number) for reason, number in lost if number]

    def _taken_from_queue(self) -> list[str]:
        return list(islice(iter(self._queue.popleft, None), min(len(self._queue), _BATCH)))

    def _wrote_lines(self, number: int) -> None:
        self._counts[_WRITTEN] = self._written = self._written + number

    def _write(self, batch: bytes, lines: int) -> bool:
        """Writes the batch, with retries. ``lines``: how many of its lines had reserved room (all or none)."""
        done = 0
        pause = self._first_pause
        view = memoryview(batch)
        while done < len(batch):
            try:
                if self._sink.ready(self._clock()):
                    done = batch.rfind(b"\n", 0, done) + 1
                count = self._sink.append(view[done:])
            except OSError as error:
                self._failed(error)
                if self._closing.wait(pause):
                    time.sleep(self._first_pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                if lines:
                    self._wrote_lines(lines if count == len(batch) else batch.count(b"\n", done, done + count))
                done += count
                if count:
                    self._wrote()
            if time.monotonic() >= self._give_up_at and done < len(batch):
                return False
        return True

    def _failed(self, error: OSError) -> None:
        self.last_error = f"{self._sink} cannot be written: {error.strerror or error}"
        self._set_working(False)

    def _wrote(self) -> None:
        if not self._working:
            self.last_error = ""
            self._set_working(True)
        with self._lock:
            self._progress += 1
            waiters, self._waiters = self._waiters, []
        for loop, callback in waiters:
            try:
                loop.call_soon_threadsafe(callback)
            except RuntimeError:
                _log.debug("audit: a loop ended before there was room for what waited in it")

    def _set_working(self, working: bool) -> None:  # noqa: FBT001 - the value of a flag
        if working != self._working:
            self._working = working
            self._health_changed()


def audit_log(settings: AuditConfig, turn: Turn = ALONE, counts: Counts | None = None) -> AuditLog | NoAudit:
    """The log of these settings, to be started. Raises AuditGroupError."""
    return AuditLog(settings, turn=turn, counts=counts) if settings.enabled else NoAudit()


def check_place(settings: AuditConfig, when: float) -> None:
    """Check that the log could be opened, without making anything. Raises AuditNotWritable and AuditGroupError."""
    sink = _sink_of(settings, ALONE) if settings.enabled else None
    if isinstance(sink, AuditFiles):
        try:
            sink.check(when)
        except OSError as error:
            raise AuditNotWritable(settings.dir, error) from None


def place_warnings(settings: AuditConfig) -> Iterator[str]:
    """A directory that `audit.group` cannot enter."""
    if settings.enabled and settings.dir != "-" and settings.group is not None:
        with suppress(OSError, AuditGroupError):  # what is wrong otherwise is not about the directory's mode
            found, group = settings.dir.stat(), settings.group
            mode = found.st_mode >> 3 if found.st_gid == _group_id(group) else found.st_mode
            if mode & _ENTER != _ENTER:
                yield (
                    f"audit.dir {settings.dir}: group {group} may not read it: chgrp {group} and chmod 750; "
                    f"under systemd Group={group} and LogsDirectoryMode=0750"
                )


def _sink_of(settings: AuditConfig, turn: Turn) -> Sink:
    if settings.dir == "-":
        return StandardOutput(turn=turn)
    group = None if settings.group is None else _group_id(settings.group)
    return AuditFiles(settings.dir, settings.rotation, settings.max_log_files, turn, group)


def _group_id(name: str) -> int:
    try:
        found = grp.getgrnam(name).gr_gid
    except KeyError:
        raise AuditGroupError(f"audit.group: there is no group {name}") from None
    if os.geteuid() and found not in {os.getegid(), *os.getgroups()}:
        raise AuditGroupError(
            f"audit.group: the user that tlsproxy runs as is not in group {name} (under systemd: Group={name})"
        )
    return found
