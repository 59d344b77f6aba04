"""Wait for room in the audit log, before anything of a request goes upstream or a refusal is sent.

Full means: every line that the log has room for is promised to a request already. Then `audit.on_full` decides. With
`refuse` the next request is refused at once; with `block` it waits here until there is room, at most
``limits.write_timeout`` since it began. REST requests, gRPC calls and relayed connections wait in one queue and fail
with one error, e.g. with `write_timeout: 5s`, and a disk that is full for a minute, after 5 s as 503 or UNAVAILABLE.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from tlsproxy.errors import AuditUnavailable
from tlsproxy.proxy.core.runtime_limits import RuntimeLimits
from tlsproxy.proxy.core.scheduler import GuardedStream

SLICE: Final = 100
"""Waiting requests that are resumed in one iteration of the loop."""

Resume = Callable[[AuditUnavailable | None], None]


class WritableLog(Protocol):
    """``when_writable`` calls once there may be room again."""

    def when_writable(self, callback: Callable[[], None]) -> None: ...


class _Waiting(NamedTuple):
    since: float
    stream: GuardedStream
    resume: Resume


class AuditGate:
    """Queue of one process. ``blocks`` is `audit.on_full`, which needs a restart to change."""

    __slots__ = ("_audit", "_blocks", "_bounds", "_queue", "_woken")

    def __init__(self, audit: WritableLog, bounds: RuntimeLimits, *, blocks: bool) -> None:
        self._audit = audit
        self._bounds = bounds
        self._blocks = blocks
        self._queue: deque[_Waiting] = deque()
        self._woken = True  # no call of the log's is due

    def wait(self, since: float, stream: GuardedStream, resume: Resume) -> None:
        """Calls ``resume`` with None once there may be room, which is then to be taken, or to be waited for again; or
        with the error that ends the wait. The caller may have ended by then.

        ``since`` is when the request began (monotonic clock). Raises :class:`AuditUnavailable` where none may wait.
        """
        if not self._blocks:
            raise AuditUnavailable("The audit log cannot be written")
        waiting = _Waiting(since, stream, resume)
        if self._queue and since < self._queue[0].since:  # it was first, and the room was gone
            self._queue.appendleft(waiting)
        else:
            self._queue.append(waiting)
        self._wake()

    def _wake(self) -> None:
        if self._woken:
            self._woken = False
            self._audit.when_writable(self._resume_some)

    def _resume_some(self) -> None:
        self._woken = True
        for _ in range(min(SLICE, len(self._queue))):
            _, stream, resume = self._queue.popleft()
            stream.tell(resume, None)
            if not self._woken:  # the room is used up
                return
        if self._queue:
            self._wake()

    def sweep(self) -> None:
        """Ends the waits that have lasted too long."""
        if not self._queue:
            return
        began = time.monotonic() - self._bounds.write_timeout
        late = [waiting for waiting in self._queue if waiting.since <= began]
        if late:
            self._queue = deque(waiting for waiting in self._queue if waiting.since > began)
        for _, stream, resume in late:
            stream.tell(resume, AuditUnavailable("The audit log has no room"))
