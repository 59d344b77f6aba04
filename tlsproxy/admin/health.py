"""The health listener: `/livez`, `/readyz` and, where configured, `/metrics`, for whoever can connect; nothing else.

It stands on a network and knows nobody, so everything is bounded: one request for each connection, which has
:data:`DEADLINE` seconds in all, and :data:`MAX_CONNECTIONS` at a time. Beyond them the oldest one is ended: probes take
milliseconds, and whoever holds connections shuts out no probe. Answers name parts of the readiness and no reasons,
which may hold names of files and callers. With TLS no client certificate is asked for. With `health.proxy_protocol` a
header comes first, within as long and with the same bounds, and who is not listed is closed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from tlsproxy.config.networks import Network, listed
from tlsproxy.proxy.frontend.listener import Acceptor, Address
from tlsproxy.proxy.frontend.proxy_header import SILENT, HeaderReception
from tlsproxy.proxy.rest.responses import response
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.stream import Stream
from tlsproxy.proxy.transport.tls import TlsStream
from tlsproxy.wire.http1 import END, has_bare_lf
from tlsproxy.wire.proxy_protocol import Header

if TYPE_CHECKING:
    from tlsproxy.admin.readiness import Readiness

DEADLINE: Final = 5.0
MAX_CONNECTIONS: Final = 64
MAX_HEAD: Final = 8192
"""Bytes of a request's head."""
_LINGER: Final = 1.0
_LOWEST_RATE: Final = 1024.0
# Probes of HAProxy speak HTTP/1.0 (`option httpchk`). Fields and bodies are ignored: the connection ends.
_REQUEST: Final = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]{0,2048}) HTTP/1\.[01]\r\n")
_log = logging.getLogger(__name__)
_JSON: Final = b"content-type: application/json\r\ncache-control: no-store\r\n"


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """``balancers`` must send a header of the PROXY protocol; None for nobody. ``context`` is for TLS."""

    metrics: bool
    balancers: tuple[Network, ...] | None = None
    context: ssl.SSLContext | None = None


class HealthState(Protocol):
    async def ready(self) -> Readiness:
        """The verdict at this moment."""

    async def metrics(self) -> tuple[bytes, str]:
        """Prometheus exposition and its content type."""


class HealthServer:
    """Serves on a listening socket from its creation until :meth:`close`. ``present`` returns the settings in force;
    ``failed`` is called for each error of accepting.
    """

    def __init__(
        self, sock: socket.socket, state: HealthState, present: Callable[[], HealthSettings], failed: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._state = state
        self._present = present
        self._deadlines = Deadlines(self._loop)
        self._open: dict[_Connection, None] = {}
        self._announced: dict[HeaderReception, None] = {}
        # One at a time, so that a flood here leaves the loop to the data path.
        self._acceptor = Acceptor(self._loop, sock, 1, self._accepted, failed, self._log_trouble)

    def close(self) -> None:
        self._acceptor.stop()
        for reception in list(self._announced):
            reception.refuse(SILENT)
        for connection in list(self._open):
            connection.stream.abort()
        self._deadlines.close()

    def _log_trouble(self) -> None:
        if self._acceptor.trouble:
            _log.warning("health listener: %s", self._acceptor.trouble)

    def _accepted(self, sock: socket.socket, address: Address) -> None:
        known = self._present().balancers
        if known is None:
            self._admit(sock)
        elif not listed(address[0].removeprefix("::ffff:"), known):
            sock.close()
        else:
            while len(self._announced) >= MAX_CONNECTIONS:
                next(iter(self._announced)).refuse(SILENT)
            self._announced[HeaderReception(self._loop, sock, self._deadlines, lambda: DEADLINE, self._read)] = None

    def _read(self, reception: HeaderReception, header: Header | str) -> None:
        del self._announced[reception]
        if not isinstance(header, str):
            self._admit(reception.sock)

    def _admit(self, sock: socket.socket) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.stream.abort()
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open[_Connection(self, sock, self._present().context)] = None

    def ended(self, connection: _Connection) -> None:
        self._open.pop(connection, None)

    def stream(self, connection: _Connection, sock: socket.socket, context: ssl.SSLContext | None) -> Stream:
        if context is None:
            stream = Stream(self._loop, sock, connection, self._deadlines, _lowest)
            stream.resume_reading()
            return stream
        return TlsStream(self._loop, sock, connection, self._deadlines, _lowest, context)

    async def answer(self, method: str, path: str) -> tuple[int, bytes, bytes]:
        """Status, header lines and body."""
        if path == "/metrics" and not self._present().metrics:
            return _told(404, "health.metrics is false: no metrics are served here")
        if path not in {"/livez", "/readyz", "/metrics"}:
            return _told(404, "Only /livez, /readyz and /metrics are served here")
        if method not in {"GET", "HEAD"}:
            status, fields, body = _told(405, "Only GET and HEAD are served here")
            return status, fields + b"allow: GET, HEAD\r\n", body
        if path == "/livez":
            return 200, _JSON, orjson.dumps({"alive": True})
        if path == "/metrics":
            body, content_type = await self._state.metrics()
            return 200, b"content-type: %b\r\n" % content_type.encode(), body
        readiness = await self._state.ready()
        return 200 if readiness.ready else 503, _JSON, orjson.dumps(readiness.without_reasons())


class _Connection:
    """One request, and its answer by a task."""

    def __init__(self, server: HealthServer, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._head = b""
        self._answering: asyncio.Task[None] | None = None
        self.stream = server.stream(self, sock, context)
        self.stream.deadline = time.monotonic() + DEADLINE

    def certificate_verified(self, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
        raise RuntimeError(f"{len(verified)} of {len(sent)} certificates that were not asked for")

    def handshake_done(self, tls: ssl.SSLObject) -> None:
        """The request is next, within the same deadline."""

    def handshake_failed(self, reason: str, detail: str, tls: ssl.SSLObject) -> None:
        """The stream has sent its alert, or a sentence to a client without TLS."""

    def data_received(self, data: bytes) -> None:
        if self._answering is not None:
            return
        self._head += data
        if not self._head[:1].isalpha():  # TLS, for example: it would not understand a word
            self.stream.abort()
        elif len(self._head) > MAX_HEAD and END not in self._head[:MAX_HEAD]:
            self._tell(*_told(431, f"A request's head has at most {MAX_HEAD} bytes"), to_head=False)
        elif END in self._head or has_bare_lf(self._head):
            self._asked()

    def _asked(self) -> None:
        request = _REQUEST.match(self._head)
        if request is None:
            self._tell(*_told(400, "Malformed request: HTTP/1.1 is served here"), to_head=False)
            return
        method, path = request[1].decode(), request[2].decode().partition("?")[0]
        self._answering = asyncio.create_task(self._answer(method, path))

    async def _answer(self, method: str, path: str) -> None:
        try:
            answer = await self._server.answer(method, path)
        except Exception:  # noqa: BLE001 - for the log alone: the text may hold a secret
            _log.exception("health: %s %s", method, path)
            answer = _told(500, "internal error; see the log")
        self._tell(*answer, to_head=method == "HEAD")

    def _tell(self, status: int, fields: bytes, body: bytes, *, to_head: bool) -> None:
        self.stream.write(response(status, fields, body, close=True, to_head=to_head))
        self.stream.close(_LINGER)

    def pause_writing(self) -> None:
        """The stream ends a client that does not read."""

    def resume_writing(self) -> None:
        pass

    def rearm(self) -> None:
        """Its deadline is fixed."""

    def deadline_passed(self) -> None:
        self.stream.abort()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if self._answering is not None:
            self._answering.cancel()
        self._server.ended(self)


def _told(status: int, text: str) -> tuple[int, bytes, bytes]:
    return status, _JSON, orjson.dumps({"error": text})


def _lowest() -> tuple[float, float]:
    """Slowest rate at which a client may read."""
    return DEADLINE, _LOWEST_RATE
