"""An upstream's answer that waits until it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from support.gateway import DEADLINE
from support.polling import until
from support.upstream import OK, Connection, Received, ScriptedUpstream, plain


class GatedAnswer:
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


@contextmanager
def gated(upstream: ScriptedUpstream) -> Iterator[threading.Event]:
    """The upstream answers when the event is set."""
    let = threading.Event()

    def answer(connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        let.wait(DEADLINE)
        connection.sock.sendall(OK)

    upstream.answer = answer
    try:
        yield let
    finally:
        let.set()


def busy(upstream: ScriptedUpstream, requests: int = 1) -> None:
    until(lambda: len(upstream.requests) >= requests)
