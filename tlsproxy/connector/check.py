"""Check of a target that nobody has tried, or whose pause is over: a connection that carries nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Protocol

from tlsproxy.connector.dialling import Candidate, Dialler, Dialling
from tlsproxy.connector.targets import TargetState
from tlsproxy.proxy.transport.dial import DialledStream

REFUSAL: Final = 0.5
"""Seconds for the server to refuse the connection: our certificate, for example, with TLS 1.3 after our handshake."""


class Checker(Dialler, Protocol):
    """The part of the connector that a check needs."""

    def stood(self, candidate: Candidate) -> None: ...
    def checked(self, check: Check) -> None: ...


class Check:
    """Handler of the server's stream once it stands."""

    def __init__(self, checker: Checker, state: TargetState) -> None:
        self._checker = checker
        self._state = state
        self._dialling: Dialling | None = None
        self._candidate: Candidate | None = None
        self._server: DialledStream | None = None

    def begin(self, candidates: Sequence[Candidate]) -> None:
        """``candidates`` are of one target."""
        self._state.checking = True
        self._dialling = Dialling(self._checker, candidates, self._stands, self._over)
        self._dialling.next()

    def cancel(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        self._candidate = None
        if self._server is not None:
            self._server.abort()

    def _stands(self, candidate: Candidate, server: DialledStream) -> None:
        self._candidate, self._server = candidate, server
        server.handler = self
        server.deadline = time.monotonic() + REFUSAL

    def _over(self, _error: Exception | None = None) -> None:
        self._state.checking = False
        self._dialling = self._server = None  # a reference cycle would wait for the garbage collector
        self._checker.checked(self)

    def data_received(self, data: bytes) -> None:
        del data
        self.deadline_passed()

    def deadline_passed(self) -> None:
        """It was not refused."""
        if self._server is not None and self._candidate is not None:
            self._checker.stood(self._candidate)
            self._candidate = None
            self._server.close(REFUSAL)

    def connection_lost(self, error: Exception | None) -> None:
        candidate, self._candidate = self._candidate, None
        if candidate is None or self._dialling is None:
            self._over()
            return
        failure = error or ConnectionAbortedError("the server ended the connection at once")
        self._checker.failed(candidate, failure)
        self._dialling.next(failure)

    def pause_writing(self) -> None:
        """Nothing is written."""

    def resume_writing(self) -> None:
        """Nothing is written."""

    def rearm(self) -> None:
        """Its deadline is fixed."""
