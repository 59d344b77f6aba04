"""One connection of a local client, relayed to the first target that is the expected server.

No byte of the client goes out before. Then bytes are relayed as fast as the slower side takes them; either side may end
its half and still receive the rest, and a cut (a reset, an end of TLS without close_notify) is passed on as a reset.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal, Protocol

from tlsproxy.connector.dialling import Candidate, Dialler, Dialling
from tlsproxy.proxy.transport.deadlines import NEVER
from tlsproxy.proxy.transport.dial import DialledStream
from tlsproxy.proxy.transport.stream import Stream, StreamHandler, read_both
from tlsproxy.tls.client_context import ServerRefused

LINGER: Final = 1.0
QUIET: Final = 1.0
"""Seconds of silence after a byte of the server's, after which a connection that is to end is between two requests."""

PROMPT: Final = 2.0
"""Seconds after its handshake in which a server that ends or cuts without a byte has refused the connection: a gateway
whose upstream is away, for example."""

Result = Literal["ended", "cut", "idle", "no_target", "drained"]


class Connector(Dialler, Protocol):
    """The part of the connector that a connection needs."""

    def stream(self, sock: socket.socket, handler: StreamHandler) -> Stream: ...
    def candidates(self, listen: str) -> Sequence[Candidate]: ...
    def stood(self, candidate: Candidate) -> None: ...
    def relayed(self, listen: str, direction: Literal["in", "out"], size: int) -> None: ...
    def ended(self, connection: Connection) -> None: ...


class Connection:
    """Handler of the client's stream. ``result`` is known at the end.

    ``candidate`` and ``server`` are those that it stands with, else None. ``leave_by``: the moment (monotonic clock) by
    which it ends; from now on it also ends as soon as it is quiet.
    """

    def __init__(self, connector: Connector, listen: str, sock: socket.socket) -> None:
        self.listen = listen
        self.result: Result = "ended"
        self.candidate: Candidate | None = None
        self.server: DialledStream | None = None
        self.leave_by = NEVER
        self._connector = connector
        self._sock = sock
        self._sent = self._answered = False
        self._stood = 0.0
        self._finishing = self._gone = False
        self._dialling: Dialling | None = None
        self.client = connector.stream(sock, self)
        self.client.when_ended = self._client_ended

    def begin(self) -> None:
        """Dials. The client is not read until a server stands."""
        candidates = self._connector.candidates(self.listen)
        self._dialling = Dialling(self._connector, candidates, self._stands, self._no_target)
        self._dialling.next()

    def _stands(self, candidate: Candidate, server: DialledStream) -> None:
        self.candidate, self.server, self._stood = candidate, server, time.monotonic()
        server.handler = _ServerHandler(self)
        server.when_ended = self._server_ended
        self._restart_idle_time()
        self.client.resume_reading()

    def _no_target(self, _error: Exception) -> None:
        self.cut("no_target")

    # Callbacks of the server's stream

    def answered(self, data: bytes) -> None:
        if not self._answered and self.candidate is not None:
            self._answered = True
            self._connector.stood(self.candidate)
        self._connector.relayed(self.listen, "in", len(data))
        self.client.write(data)
        self._restart_idle_time()

    def _server_ended(self) -> None:
        if self._refused(None) and self.server is not None:
            server, self.server = self.server, None
            server.abort()
            self._redial()
            return
        self.client.shut()
        self._both_ended()

    def server_lost(self, handler: _ServerHandler, error: Exception | None) -> None:
        if self.server is None or self.server.handler is not handler:
            return  # another is dialled in its place
        self.server = None
        if self._gone:
            self._connector.ended(self)
        elif not self._finishing:
            if self._refused(error):
                self._redial()
            else:
                self.cut("cut")

    def _refused(self, error: Exception | None) -> bool:
        """Blames a server that refused the connection. Whether nothing was sent to it, so that another may have it.

        It may refuse our certificate, for example: with TLS 1.3 that is known after the handshake.
        """
        prompt = not (self._answered or self.client.ended) and time.monotonic() - self._stood < PROMPT
        if self.candidate is None or not (prompt or isinstance(error, ServerRefused)):
            return False
        failure = error or ConnectionAbortedError("the server ended the connection at once")
        # Without another address for this client the target is down until a check finds one for the next.
        self._connector.failed(replace(self.candidate, last=self.candidate.last or self._sent), failure)
        return not self._sent

    def _redial(self) -> None:
        self.client.pause_reading()
        self.client.deadline = NEVER
        if self._dialling is not None:
            self._dialling.next()

    # Callbacks of the client's stream

    def data_received(self, data: bytes) -> None:
        self._sent = True
        self._connector.relayed(self.listen, "out", len(data))
        if self.server is not None:
            self.server.write(data)
        self._restart_idle_time()

    def _client_ended(self) -> None:
        self._sent = True
        if self.server is not None:
            self.server.shut()
        self._both_ended()

    def pause_writing(self) -> None:
        self.reading_changed()

    def resume_writing(self) -> None:
        self._restart_idle_time()
        self.reading_changed()

    def reading_changed(self) -> None:
        """Reads from each side as long as the other takes the data."""
        server = self.server
        if server is None:
            return
        if not server.stalled:
            server.deadline = NEVER
        read_both(self.client, server)

    def _restart_idle_time(self) -> None:
        if self.server is not None and not self.client.stalled:
            self.client.deadline = time.monotonic() + self._connector.limits.idle_timeout

    def rearm(self) -> None:
        self._restart_idle_time()

    def deadline_passed(self) -> None:
        self.cut("idle")

    # The end

    def _both_ended(self) -> None:
        if self.server is not None and self.server.ended and self.client.ended:
            self._finish()

    def _finish(self) -> None:
        if not self._finishing and self.server is not None:
            self._finishing = True
            self.server.close(LINGER)
            self.client.close(LINGER)

    def review(self, now: float) -> None:
        """Ends a connection that is to leave, once it is quiet or late."""
        server = self.server
        if now >= self.leave_by:
            self.cut("drained")
        elif server is not None and not (server.unsent or self.client.unsent or self._finishing):
            silent = server.silent_for()
            if silent is not None and silent >= QUIET:
                self._finish()

    def cut(self, result: Result) -> None:
        """Ends the connection at once, for both sides to see."""
        self.result = result
        self.client.reset()
        if result != "cut":
            self.client.cease()

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None  # a reference cycle would wait for the garbage collector
        if self.server is None:
            self._connector.ended(self)
            return
        if not self._finishing:
            self.result = self.result if error is None else "cut"
            self.server.reset()
            if self.result != "cut":
                self.server.cease()


class _ServerHandler:
    """Handler of the server's stream."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.data_received = connection.answered

    def pause_writing(self) -> None:
        self._connection.reading_changed()

    def resume_writing(self) -> None:
        self._connection.reading_changed()

    def connection_lost(self, error: Exception | None) -> None:
        self._connection.server_lost(self, error)

    def deadline_passed(self) -> None:
        """The server takes nothing."""
        self._connection.cut("idle")

    def rearm(self) -> None:
        """The client's deadline counts for both."""
