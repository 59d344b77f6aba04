"""An upstream's answer that waits until it is told to."""

from __future__ import annotations

import threading

from support.gateway import DEADLINE
from support.upstream import Connection, Received, plain


class Held:
    """Set ``release`` and it answers; ``wait`` for so many requests to be there."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self._arrived = threading.Semaphore(0)

    def __call__(self, connection: Connection, request: Received) -> None:
        self._arrived.release()
        assert self.release.wait(DEADLINE)
        plain()(connection, request)

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self._arrived.acquire(timeout=DEADLINE)
