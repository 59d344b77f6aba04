"""Calls that may never return, each with a deadline: a file system or a resolver that does not answer.

They block whoever makes them for that long, so make them in a thread (:mod:`tlsproxy.threads`). A call that is not back
in time keeps a daemon thread of its own until it is, and its late outcome is dropped. Its key has no second thread
meanwhile, and one place (a directory, the resolver) never more than a few.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from tlsproxy.errors import FailureKind, TlsproxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

SLOW: Final = 0.1
"""Seconds after which those behind a call are made in another thread."""
CROWD: Final = 8
"""Most calls for one place at a time. Where so many are overdue, the others of that place are not begun."""


class Key(NamedTuple):
    place: str
    name: str


class Unanswered(TlsproxyError):
    """A call that is not back. ``since`` is seconds since the epoch, and the same for as long as it hangs."""

    kind = FailureKind.ENVIRONMENT

    def __init__(self, since: float) -> None:
        super().__init__(f"no answer since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(since))}")
        self.since = since


class _Call(NamedTuple):
    begun: float
    since: float

    def overdue(self, deadline: float) -> bool:
        return time.monotonic() - self.begun >= deadline


_under_way: Final[dict[Key, _Call]] = {}
_lock: Final = threading.Lock()


def outcomes(calls: Mapping[Key, Callable[[], T]], deadline: float) -> dict[Key, T | Unanswered]:
    """All of them, in one thread as long as none is slow. Each has ``deadline`` seconds from its own beginning.

    Raises what one of the calls raised.
    """
    return _Batch(calls, deadline).outcomes() if calls else {}


def outcome(key: Key, call: Callable[[], T], deadline: float) -> T:
    """Raises :class:`Unanswered`, or what the call raises."""
    result = outcomes({key: call}, deadline)[key]
    if isinstance(result, Unanswered):
        raise result
    return result


class _Batch(Generic[T]):
    """Calls that one caller waits for. The lock of the module guards all of it."""

    def __init__(self, calls: Mapping[Key, Callable[[], T]], deadline: float) -> None:
        self._deadline = deadline
        self._waiting = deque(calls.items())
        self._left = set(calls)
        self._outcomes: dict[Key, T | Unanswered] = {}
        self._raised: Exception | None = None
        self._over = threading.Event()

    def outcomes(self) -> dict[Key, T | Unanswered]:
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
            key, call = begun
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - it is raised to the caller
                with _lock:
                    del _under_way[key]
                    self._raised = error
                    self._over.set()
            else:
                with _lock:
                    del _under_way[key]
                    self._settle(key, result)

    def _begin(self) -> tuple[Key, Callable[[], T]] | None:
        """The next call that can be made now; None where there is none."""
        with _lock:
            for _ in range(0 if self._over.is_set() else len(self._waiting)):
                key, call = self._waiting.popleft()
                if key not in self._left:
                    continue
                if (since := self._hindered(key)) is not None:
                    self._settle(key, Unanswered(since))
                elif key in _under_way or len(_crowd(key.place)) >= CROWD:
                    self._waiting.append((key, call))
                else:
                    _under_way[key] = _Call(time.monotonic(), time.time())
                    return key, call
            return None

    def _give_up(self) -> None:
        for key in [key for key in self._left if key in _under_way]:
            if (since := self._hindered(key)) is not None:
                self._settle(key, Unanswered(since))

    def _hindered(self, key: Key) -> float | None:
        """Since when the call has not been answered, or those of its place; None where it can be waited for."""
        own = _under_way.get(key)
        if own is not None:
            return own.since if own.overdue(self._deadline) else None
        overdue = [call.since for call in _crowd(key.place) if call.overdue(self._deadline)]
        return min(overdue) if len(overdue) >= CROWD else None

    def _settle(self, key: Key, result: T | Unanswered) -> None:
        """The first outcome counts: what comes after a deadline comes too late."""
        if key in self._left:
            self._left.discard(key)
            self._outcomes[key] = result
        if not self._left:
            self._over.set()


def _crowd(place: str) -> list[_Call]:
    return [call for key, call in _under_way.items() if key.place == place]
