"""Searches during a change of the server certificate, on a kept connection and on new ones.

One failed search fails the step; nothing is retried.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlsproxy.demo.clients import qdrant, query_once, tls_context
from tlsproxy.demo.premises import COLLECTION
from tlsproxy.demo.steps import StepError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qdrant_client import QdrantClient

    from tlsproxy.demo.premises import Premises

_CLIENT = "search"
_SEARCHES_EACH_SIDE = 25
_DEADLINE = 30.0


@dataclass(frozen=True, slots=True)
class RotationResult:
    """Counts of searches; ``seconds`` passed from the rename to the first connection with the new certificate."""

    kept_alive: int
    new_connections: int
    old_serial: int
    new_serial: int
    seconds: float


class _Traffic:
    """The two clients and their results so far, guarded by ``_changed``."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.kept_alive = 0
        self.serials: list[int] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._pool = pool
        self._running: list[Future[None]] = []

    def start(self, search: Callable[[], None]) -> None:
        self._running.append(self._pool.submit(self._repeat, search))
        self._running[-1].add_done_callback(lambda _: self._wake())

    def wait_for(self, subject: str, reached: Callable[[], bool]) -> None:
        """Wait for a condition. Raises the exception of a failed search, or StepError after the deadline."""
        with self._changed:
            ended = self._changed.wait_for(lambda: self._any_ended() or reached(), _DEADLINE)
        self._raise_failures()
        if not ended:
            raise StepError(f"no {subject} after {_DEADLINE:g} s")

    def wait_for_more(self, subject: str) -> None:
        kept_alive = self.kept_alive + _SEARCHES_EACH_SIDE
        new = len(self.serials) + _SEARCHES_EACH_SIDE
        self.wait_for(subject, lambda: self.kept_alive >= kept_alive and len(self.serials) >= new)

    def stop(self) -> None:
        self._stopping = True

    def join(self) -> None:
        for running in self._running:
            running.result(_DEADLINE)

    def _repeat(self, search: Callable[[], None]) -> None:
        while not self._stopping:
            search()
            self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _any_ended(self) -> bool:
        return any(running.done() for running in self._running)

    def _raise_failures(self) -> None:
        for running in self._running:
            if running.done():
                running.result()


def rotate_under_load(premises: Premises, port: int, vector: list[float]) -> RotationResult:
    """Search before and after a rotation. Raises the exception of the first failed search."""
    with (
        closing(qdrant(premises, _CLIENT, port)) as client,
        ThreadPoolExecutor(max_workers=2, thread_name_prefix="searching") as pool,
    ):
        traffic = _Traffic(pool)
        context = tls_context(premises, _CLIENT)
        try:
            traffic.start(lambda: _search_kept_alive(traffic, client, vector))
            traffic.start(lambda: traffic.serials.append(query_once(context, port, COLLECTION, vector)))
            traffic.wait_for_more("searches before the rotation")
            renamed = time.monotonic()
            new = premises.rotate_server_certificate()
            traffic.wait_for("connection with the new certificate", lambda: traffic.serials[-1] == new)
            seconds = time.monotonic() - renamed
            traffic.wait_for_more("searches after the rotation")
        finally:
            traffic.stop()
        traffic.join()
    serials = traffic.serials
    return RotationResult(traffic.kept_alive, len(serials), serials[0], serials[-1], seconds)


def _search_kept_alive(traffic: _Traffic, client: QdrantClient, vector: list[float]) -> None:
    if not client.query_points(COLLECTION, query=vector, limit=1).points:
        raise StepError("a search found nothing")
    traffic.kept_alive += 1
