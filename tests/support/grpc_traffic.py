"""Steady gRPC traffic, on connections that are kept and on new ones, while something changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from support.gateway import DEADLINE, Gateway
from support.grpc_channels import Answered, call, channel
from support.site import Site

LIST = "/qdrant.Collections/List"


class GrpcClients:
    """They call all the time, one half of them on new connections; ``key`` is what they send from then on, if any.

    ``answers`` are (key, answer), in the order in which they came.
    """

    def __init__(self, gateway: Gateway, site: Site, client: str | None = "admin", key: str = "") -> None:
        self.key = key
        self.answers: list[tuple[str, Answered]] = []
        self._gateway = gateway
        self._site = site
        self._client = client
        self._more = threading.Condition()
        self._stop = False

    @contextmanager
    def calling(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._call, args=(kept,)) for kept in (True, True, False, False)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop = True
            for thread in threads:
                thread.join(DEADLINE)

    def _call(self, kept: bool) -> None:  # noqa: FBT001 - a test's own
        while not self._stop:
            with channel(self._gateway, self._site, self._client) as opened:
                again = True
                while again and not self._stop:
                    key, again = self.key, kept
                    answered = call(opened, LIST, b"", *([("api-key", key)] if key else []))
                    with self._more:
                        self.answers.append((key, answered))
                        self._more.notify_all()

    def wait_for(self, key: str = "", count: int = 20) -> None:
        """That many more answers to calls with this key."""
        with self._more:
            first = len(self.answers)
            enough = self._more.wait_for(
                lambda: sum(sent == key for sent, _ in self.answers[first:]) >= count, timeout=DEADLINE
            )
        assert enough
