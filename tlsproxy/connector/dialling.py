"""Dialling: the addresses of the targets one after the other, until one is the expected server."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tlsproxy.connector.model import ConnectLimits
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.transport.dial import Address, DialHandler, DialledStream
from tlsproxy.tls.client_context import ServerRefused
from tlsproxy.tls.negotiated import Negotiated

NO_DESCRIPTORS: Final = frozenset((errno.EMFILE, errno.ENFILE))
_REASONS: Final = (
    (socket.gaierror, "unresolved"),
    (TimeoutError, "timeout"),
    (ConnectionRefusedError, "refused"),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address of a target; None where none is known. ``last``: of its target."""

    listen: str
    target: str
    address: Address | None
    last: bool


def failure_reason(error: Exception) -> str:
    """Slug of a failed connection, for metrics."""
    if isinstance(error, ServerRefused):
        return error.reason
    return next((slug for kind, slug in _REASONS if isinstance(error, kind)), "unreachable")


def failure_text(error: Exception) -> str:
    """The same in words, without the number of a system error."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


class Dialler(Protocol):
    """The part of the connector that dialling needs."""

    @property
    def limits(self) -> ConnectLimits: ...
    def dial(self, candidate: Candidate, handler: DialHandler) -> DialledStream:
        """Raises OSError."""

    def is_current(self, candidate: Candidate, stream: DialledStream) -> bool:
        """Whether it would be dialled so now: a publication may have come meanwhile."""

    def agreed(self, negotiated: Negotiated | None) -> None:
        """A TLS handshake with a target has ended well."""

    def failed(self, candidate: Candidate, error: Exception) -> None: ...


class Dialling:
    """Handler of the streams that are being dialled. ``connected`` gets each that stands, ``exhausted`` the last error
    once no candidate is left.
    """

    def __init__(
        self,
        dialler: Dialler,
        candidates: Sequence[Candidate],
        stands: Callable[[Candidate, DialledStream], None],
        exhausted: Callable[[Exception], None],
    ) -> None:
        self._dialler = dialler
        self._left = list(candidates)
        self._stands = stands
        self._exhausted = exhausted
        self._candidate: Candidate | None = None
        self._stream: DialledStream | None = None
        self._begun = 0.0

    def next(self, error: Exception | None = None) -> None:
        """Dials the next candidate. ``error`` is that of the last one."""
        failure = error or socket.gaierror("there is no target")
        while self._left:
            self._candidate = candidate = self._left.pop(0)
            self._begun = time.monotonic()
            try:
                stream = self._dialler.dial(candidate, self)
            except OSError as refused:
                failure = refused
                if refused.errno in NO_DESCRIPTORS:  # of our own making, whatever the target
                    break
                self._dialler.failed(candidate, refused)
                continue
            stream.deadline = self._begun + self._dialler.limits.connect_timeout
            self._stream = stream
            return
        self._exhausted(failure)

    def cancel(self) -> None:
        self._left.clear()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.abort()

    def connected(self) -> None:
        stream, candidate = self._stream, self._candidate
        if stream is None or candidate is None:
            return
        self._stream = None
        self._dialler.agreed(stream.negotiated)
        if self._dialler.is_current(candidate, stream):
            stream.deadline = NEVER
            self._stands(candidate, stream)
        else:
            stream.abort()
            self._left.insert(0, candidate)
            self.next()

    def deadline_passed(self) -> None:
        stream, limits = self._stream, self._dialler.limits
        if stream is None:
            return
        end = self._begun + limits.connect_timeout + limits.handshake_timeout
        if not stream.reached:
            stream.abort(TimeoutError(f"no TCP connection within {limits.connect_timeout:g} s"))
        elif time.monotonic() < end:
            stream.deadline = end
        else:
            stream.abort(TimeoutError(f"no TLS handshake within {limits.handshake_timeout:g} s"))

    def connection_lost(self, error: Exception | None) -> None:
        candidate = self._candidate
        if self._stream is None or candidate is None:
            return  # cancelled
        self._stream = None
        failure = error or ConnectionAbortedError("the server ended the connection")
        self._dialler.failed(candidate, failure)
        self.next(failure)

    def data_received(self, data: bytes) -> None:
        raise RuntimeError(f"{len(data)} bytes of a server before its handshake")

    def pause_writing(self) -> None:
        """Nothing is written yet."""

    def resume_writing(self) -> None:
        """Nothing is written yet."""

    def rearm(self) -> None:
        """Changed limits count from the next candidate on."""
