"""File system calls with a deadline, for file systems that may never answer (a hung NFS server).

The caller blocks until the deadline, so it belongs in a thread (:mod:`tlsproxy.threads`). A call that misses its
deadline keeps its daemon thread until it returns, and its late result is dropped. Meanwhile there is no second call on
its path, and at most :data:`MAX_PER_DIRECTORY` in its directory.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from tlsproxy.errors import FailureKind, MaterialError, TlsproxyError
from tlsproxy.text import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

T = TypeVar("T")

SLOW: Final = 0.1
"""Seconds without progress after which another thread takes over the queued calls."""
MAX_PER_DIRECTORY: Final = 8
"""Most calls in one directory at a time. If all of them are overdue, no further one is started there."""
MAX_DEADLINES: Final = 10
"""Most deadlines for one call in all, with progress within each (reading a large file)."""


class Unanswered(TlsproxyError):
    """A call without an answer since ``since`` (seconds since the epoch). The text stays the same while it hangs."""

    kind = FailureKind.ENVIRONMENT

    def __init__(self, since: float) -> None:
        super().__init__(f"no answer since {rfc3339(since)}")


class _Call(NamedTuple):
    begun: float
    answered: float
    since: float

    def overdue(self, deadline: float) -> bool:
        now = time.monotonic()
        return now - self.answered >= deadline or now - self.begun >= MAX_DEADLINES * deadline


_running: Final[dict[Path, _Call]] = {}
_lock: Final = threading.Lock()


def outcomes(calls: Mapping[Path, Callable[[], T]], deadline: float) -> dict[Path, T | Unanswered]:
    """Results of all calls, by path. They share a thread while none is slow; each has ``deadline`` seconds.

    Raises the exception of a call that raised one.
    """
    return _Batch(calls, deadline).outcomes() if calls else {}


def answer(path: Path, call: Callable[[], T], deadline: float) -> T:
    """The result of one call. Raises MaterialError without an answer, and what the call raises."""
    found = outcomes({path: call}, deadline)[path]
    if isinstance(found, Unanswered):
        raise MaterialError(str(path), f"its file system gives {found}", found.kind)
    return found


def note_progress(path: Path) -> None:
    """Restart the deadline of the running call on ``path``: one of its system calls has returned."""
    with _lock:
        if (call := _running.get(path)) is not None:
            _running[path] = call._replace(answered=time.monotonic())


class _Batch(Generic[T]):
    """The calls of one caller, guarded by the module's lock."""

    def __init__(self, calls: Mapping[Path, Callable[[], T]], deadline: float) -> None:
        self._deadline = deadline
        self._waiting = deque(calls.items())
        self._unfinished = set(calls)
        self._outcomes: dict[Path, T | Unanswered] = {}
        self._raised: Exception | None = None
        self._done = threading.Event()

    def outcomes(self) -> dict[Path, T | Unanswered]:
        threading.Thread(target=self._work, daemon=True).start()
        remaining = len(self._unfinished)
        while not self._done.wait(min(SLOW, self._deadline)):
            with _lock:
                self._expire()
                remaining, stalled = len(self._unfinished), remaining == len(self._unfinished)
            if stalled and self._waiting:
                threading.Thread(target=self._work, daemon=True).start()
        error, self._raised = self._raised, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # else it refers to this frame, and the frame to it
        return self._outcomes

    def _work(self) -> None:
        while (begun := self._begin()) is not None:
            path, call = begun
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - raised in the caller's thread
                with _lock:
                    del _running[path]
                    self._raised = error
                    self._done.set()
            else:
                with _lock:
                    del _running[path]
                    self._finish(path, result)

    def _begin(self) -> tuple[Path, Callable[[], T]] | None:
        """The next call that can start now; None if there is none."""
        with _lock:
            for _ in range(0 if self._done.is_set() else len(self._waiting)):
                path, call = self._waiting.popleft()
                if path not in self._unfinished:
                    continue
                if (since := self._blocked_since(path)) is not None:
                    self._finish(path, Unanswered(since))
                elif path in _running or len(_calls_in(path.parent)) >= MAX_PER_DIRECTORY:
                    self._waiting.append((path, call))
                else:
                    begun = time.monotonic()
                    _running[path] = _Call(begun, begun, time.time())
                    return path, call
            return None

    def _expire(self) -> None:
        for path in [path for path in self._unfinished if path in _running]:
            if (since := self._blocked_since(path)) is not None:
                self._finish(path, Unanswered(since))

    def _blocked_since(self, path: Path) -> float | None:
        """Start of an overdue call on the path, or of those that fill its directory; None while waiting makes sense."""
        running = _running.get(path)
        if running is not None:
            return running.since if running.overdue(self._deadline) else None
        overdue = [call.since for call in _calls_in(path.parent) if call.overdue(self._deadline)]
        return min(overdue) if len(overdue) >= MAX_PER_DIRECTORY else None

    def _finish(self, path: Path, result: T | Unanswered) -> None:
        """Record the first result of a call: one after its deadline is too late."""
        if path in self._unfinished:
            self._unfinished.discard(path)
            self._outcomes[path] = result
        if not self._unfinished:
            self._done.set()


def _calls_in(directory: Path) -> list[_Call]:
    return [call for path, call in _running.items() if path.parent == directory]
