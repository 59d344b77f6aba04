"""Calls on paths that may never return, since a file system does not answer: each with a deadline.

They block whoever makes them for that long, so make them in a thread (:mod:`tlsproxy.threads`). A call that is not back
in time keeps a daemon thread of its own until it is, and its late outcome is dropped. Its path has no second thread
meanwhile, and one directory never more than a few.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.text import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

T = TypeVar("T")

SLOW: Final = 0.1
"""Seconds after which those behind a call are made in another thread."""
CROWD: Final = 8
"""Most calls in one directory at a time. Where so many are overdue, the others in it are not begun."""
LONGEST: Final = 10
"""Deadlines that a call may take in all, with an answer within each."""


class Unanswered(TlsproxyError):
    """A call that is not back. Its text is the same for as long as it hangs. ``since`` is seconds since the epoch."""

    kind = FailureKind.ENVIRONMENT

    def __init__(self, since: float) -> None:
        super().__init__(f"no answer since {rfc3339(since)}")


class _Call(NamedTuple):
    begun: float
    answered: float
    since: float

    def overdue(self, deadline: float) -> bool:
        now = time.monotonic()
        return now - self.answered >= deadline or now - self.begun >= LONGEST * deadline


_under_way: Final[dict[Path, _Call]] = {}
_lock: Final = threading.Lock()


def outcomes(calls: Mapping[Path, Callable[[], T]], deadline: float) -> dict[Path, T | Unanswered]:
    """All of them, in one thread as long as none is slow. Each has ``deadline`` seconds for an answer.

    Raises what one of the calls raised.
    """
    return _Batch(calls, deadline).outcomes() if calls else {}


def answered(path: Path) -> None:
    """For a call of several system calls: one of them is back."""
    with _lock:
        if (call := _under_way.get(path)) is not None:
            _under_way[path] = call._replace(answered=time.monotonic())


class _Batch(Generic[T]):
    """Calls that one caller waits for. The lock of the module guards all of it."""

    def __init__(self, calls: Mapping[Path, Callable[[], T]], deadline: float) -> None:
        self._deadline = deadline
        self._waiting = deque(calls.items())
        self._left = set(calls)
        self._outcomes: dict[Path, T | Unanswered] = {}
        self._raised: Exception | None = None
        self._over = threading.Event()

    def outcomes(self) -> dict[Path, T | Unanswered]:
        threading.Thread(target=self._work, daemon=True).start()
        left = len(self._left)
        while not self._over.wait(min(SLOW, self._deadline)):
            with _lock:
                self._give_up()
                left, stuck = len(self._left), left == len(self._left)
            if stuck and self._waiting:
                threading.Thread(target=self._work, daemon=True).start()
        error, self._raised = self._raised, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it has this frame
        return self._outcomes

    def _work(self) -> None:
        while (begun := self._begin()) is not None:
            path, call = begun
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - it is raised to the caller
                with _lock:
                    del _under_way[path]
                    self._raised = error
                    self._over.set()
            else:
                with _lock:
                    del _under_way[path]
                    self._settle(path, result)

    def _begin(self) -> tuple[Path, Callable[[], T]] | None:
        """The next call that can be made now; None where there is none."""
        with _lock:
            for _ in range(0 if self._over.is_set() else len(self._waiting)):
                path, call = self._waiting.popleft()
                if path not in self._left:
                    continue
                if (since := self._hindered(path)) is not None:
                    self._settle(path, Unanswered(since))
                elif path in _under_way or len(_crowd(path.parent)) >= CROWD:
                    self._waiting.append((path, call))
                else:
                    begun = time.monotonic()
                    _under_way[path] = _Call(begun, begun, time.time())
                    return path, call
            return None

    def _give_up(self) -> None:
        for path in [path for path in self._left if path in _under_way]:
            if (since := self._hindered(path)) is not None:
                self._settle(path, Unanswered(since))

    def _hindered(self, path: Path) -> float | None:
        """Since when the call has not been answered, or those in its directory; None where it can be waited for."""
        own = _under_way.get(path)
        if own is not None:
            return own.since if own.overdue(self._deadline) else None
        overdue = [call.since for call in _crowd(path.parent) if call.overdue(self._deadline)]
        return min(overdue) if len(overdue) >= CROWD else None

    def _settle(self, path: Path, result: T | Unanswered) -> None:
        """The first outcome counts: what comes after a deadline comes too late."""
        if path in self._left:
            self._left.discard(path)
            self._outcomes[path] = result
        if not self._left:
            self._over.set()


def _crowd(directory: Path) -> list[_Call]:
    return [call for path, call in _under_way.items() if path.parent == directory]
