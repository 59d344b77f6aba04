"""Steady traffic with an API key or token that is moved to another while it runs."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from support.gateway import DEADLINE, Gateway
from support.kept_connection import Caller


class Clients:
    """They ask all the time, one half of them on new connections; ``key`` is what they send from then on.

    ``answers`` are (key, status), status 0 where the connection failed.
    """

    def __init__(self, gateway: Gateway, context: ssl.SSLContext, key: str) -> None:
        self.key = key
        self.answers: list[tuple[str, int]] = []
        self._gateway = gateway
        self._context = context
        self._more = threading.Condition()
        self._stop = False

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask, args=(kept,)) for kept in (True, True, False, False)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop = True
            for thread in threads:
                thread.join(DEADLINE)

    def _ask(self, kept: bool) -> None:  # noqa: FBT001 - a test's own
        while not self._stop:
            with Caller(self._gateway, self._context) as caller:
                self._ask_once(caller)
                while kept and not self._stop:
                    self._ask_once(caller)

    def _ask_once(self, caller: Caller) -> None:
        key = self.key
        try:
            status = caller.ask(api_key=key).status
        except (OSError, EOFError):
            status = 0
        with self._more:
            self.answers.append((key, status))
            self._more.notify_all()

    def wait_for(self, key: str, count: int = 40) -> None:
        """That many more answers to requests with this key."""
        with self._more:
            first = len(self.answers)
            enough = self._more.wait_for(
                lambda: sum(sent == key for sent, _ in self.answers[first:]) >= count, timeout=DEADLINE
            )
        assert enough
