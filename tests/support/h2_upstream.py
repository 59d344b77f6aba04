"""A plaintext HTTP/2 upstream that sees parts of messages: what of a stream came, and how the stream ended.

It is the h2 library's, and answers every stream that its client ends.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.events

from support.gateway import DEADLINE
from support.upstream import PROBE

MAX_FRAME = 16_384
OK = [(":status", "200"), ("content-type", "application/grpc")]
ENDED_WELL = [("grpc-status", "0")]


def _is_open(sock: socket.socket) -> bool:
    """Whether its other end has not closed it, whatever of that was read here."""
    if sock.fileno() < 0:
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01"  # TCP_ESTABLISHED


@dataclass(slots=True)
class Seen:
    """One stream: its fields, what of its DATA came, whether its client ended it, and the code of a RST_STREAM."""

    fields: list[tuple[str, str]]
    data: bytes = b""
    ended: bool = False
    reset: int | None = None


@dataclass(slots=True)
class H2Upstream:
    """``streams`` are those of all connections, in the order in which they began. ``answer`` is what each is sent.

    ``port`` is 0 for one that the system chooses. It ends as a process does that is killed. ``accepted`` are the
    connections that there ever were, each with all that came on it, ``most`` is how many were open at once. The
    gateway's own questions, whether it can be reached, are not among them.
    """

    answer: bytes = bytes(5)
    port: int = 0
    streams: list[Seen] = field(default_factory=list)
    accepted: list[bytearray] = field(default_factory=list)
    most: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _listener: socket.socket = field(init=False)
    _open: list[socket.socket] = field(default_factory=list)
    _counted: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with suppress(OSError):  # the gateway was faster
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE)

    @property
    def bound_port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.bound_port}"

    def wait(self, matches: Callable[[Seen], bool]) -> Seen:
        """The first stream that is so, as soon as there is one."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(matches, self.streams)), DEADLINE), self.streams
            return next(filter(matches, self.streams))

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # the test is over
            while True:
                sock, _ = self._listener.accept()
                self._open.append(sock)
                self._start(self._serve, sock)

    def _count(self, sock: socket.socket, came: bytearray) -> None:
        self._counted.append(sock)
        self.accepted.append(came)
        self.most = max(self.most, sum(map(_is_open, self._counted)))

    def _serve(self, sock: socket.socket) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        known: dict[int, Seen] = {}
        came = bytearray()
        with sock, suppress(OSError):
            sock.sendall(connection.data_to_send())
            while data := sock.recv(65536):
                if not came and PROBE.encode() not in data:
                    self._count(sock, came)
                came += data
                for event in connection.receive_data(data):
                    self._on(connection, known, event)
                sock.sendall(connection.data_to_send())
                with self._changed:
                    self._changed.notify_all()

    def _on(self, connection: h2.connection.H2Connection, known: dict[int, Seen], event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            seen = known[event.stream_id] = Seen([(str(name), str(value)) for name, value in event.headers])
            if ("user-agent", PROBE) not in seen.fields:
                self.streams.append(seen)
        elif isinstance(event, h2.events.DataReceived):
            known[event.stream_id].data += event.data
            connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            known[event.stream_id].reset = int(event.error_code)
        elif isinstance(event, h2.events.StreamEnded):
            known[event.stream_id].ended = True
            connection.send_headers(event.stream_id, OK)
            for at in range(0, len(self.answer), MAX_FRAME):
                connection.send_data(event.stream_id, self.answer[at : at + MAX_FRAME])
            connection.send_headers(event.stream_id, ENDED_WELL, end_stream=True)
