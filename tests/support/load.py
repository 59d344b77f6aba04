"""Clients that ask on and on in threads, and count what they were answered."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable

from support.gateway import DEADLINE

CLIENTS = 4
PAUSE = 0.02
"""Seconds between two requests of a client: what matters is that there always is one, not how many there are."""

Ask = Callable[[], str]
"""One request; returns the kind of its answer."""


class Load:
    """``seen`` counts the answers; a client that met anything else has ended, and its error is in ``failures``."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def start(self, clients: Iterable[Ask]) -> None:
        self._threads = [threading.Thread(target=self._run, args=(ask,)) for ask in clients]
        for thread in self._threads:
            thread.start()

    def _run(self, ask: Ask) -> None:
        try:
            while not self._stop.wait(PAUSE):
                outcome = ask()
                with self._changed:
                    self.seen[outcome] += 1
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test must see it
            with self._changed:
                self.failures.append(error)
                self._changed.notify_all()

    def until(self, outcome: str) -> None:
        """Some more answers of this kind."""
        with self._changed:
            enough = self.seen[outcome] + 3 * CLIENTS
            assert self._changed.wait_for(lambda: self.failures or self.seen[outcome] >= enough, DEADLINE), self.seen
        assert not self.failures, self.failures

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)
        assert not self.failures, self.failures
