"""An upstream, in plaintext or over TLS, that keeps every byte it was sent and answers as a test tells it to."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

PROBE = "tlsproxy-readiness"
"""The user agent of the gateway's questions whether its upstream can be reached."""
OK = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n{"status":"ok"}'

QDRANT = b'HTTP/1.1 200 OK\r\ncontent-length: 60\r\n\r\n{"title":"qdrant - vector search engine","version":"1.20.0"}'
"""The answer of a Qdrant to `GET /`."""


@dataclass(slots=True)
class Received:
    """One request as it came: ``head`` with its empty line, ``body`` decoded."""

    head: bytes
    body: bytes = b""

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode()

    @property
    def fields(self) -> dict[str, str]:
        pairs = (line.split(b":", 1) for line in self.head.split(b"\r\n")[1:-2])
        return {name.decode().lower(): value.strip().decode("latin-1") for name, value in pairs}


@dataclass(slots=True, eq=False)
class Connection:
    """What an answer may use: ``send``, ``read`` (the request's body), ``close``."""

    sock: socket.socket
    buffer: bytes = b""

    def read_until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data
        taken, self.buffer = self.buffer.split(end, 1)
        return taken + end

    def read(self, size: int) -> bytes:
        parts, left = [self.buffer[:size]], size - len(self.buffer[:size])
        self.buffer = self.buffer[size:]
        while left:
            data = self.sock.recv(min(left, 1 << 20))
            if not data:
                raise EOFError
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def read_body(self, request: Received) -> bytes:
        if request.fields.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.read_until(b"\r\n"), 16):
                body += self.read(size)
                assert self.read(2) == b"\r\n"
            while self.read_until(b"\r\n") != b"\r\n":
                pass
            return body
        return self.read(int(request.fields.get("content-length", "0")))


Answer = Callable[[Connection, Received], None]
"""Sends what it likes for one request; the body is unread. Raising EOFError closes the connection."""


def plain(response: bytes = OK) -> Answer:
    def answer(connection: Connection, request: Received) -> None:
        request.body = connection.read_body(request)
        connection.sock.sendall(response)

    return answer


@dataclass(slots=True)
class ScriptedUpstream:
    """``answer`` may be replaced at any time; ``requests`` are those whose heads have come.

    The gateway's own questions, whether it can be reached, get the answer ``probe`` and are not counted.

    ``port`` is 0 for one that the system chooses. ``tls``: None for plaintext; may be replaced too.
    """

    answer: Answer = field(default_factory=plain)
    probe: Answer = field(default_factory=plain)
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    _listener: socket.socket = field(init=False)
    _open: set[socket.socket] = field(default_factory=set)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.create_server((self.host, self.port), backlog=1024)
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with suppress(OSError):  # the other side was faster
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{self.host}:{self.bound_port}"

    @property
    def bound_port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        if self.tls is not None:
            self._open.discard(sock)
            sock = self.tls.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
            self._open.add(sock)
        connection = Connection(sock)
        try:
            with sock:
                if isinstance(sock, ssl.SSLSocket):
                    sock.do_handshake()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                used = False
                while True:
                    request = Received(connection.read_until(b"\r\n\r\n"))
                    if request.fields.get("user-agent") == PROBE:
                        self.probe(connection, request)
                        continue
                    self.connections += not used
                    used = True
                    self.requests.append(request)
                    self.answer(connection, request)
        except (EOFError, OSError):
            pass
        finally:
            self._open.discard(sock)
