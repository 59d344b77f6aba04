"""A client that sends the very bytes it is told to, and reads responses one by one as RFC 9112 frames them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.gateway import Gateway

GET = b"GET /collections HTTP/1.1\r\nhost: h\r\n\r\n"
UPLOAD = b"POST /collections/docs/snapshots/upload HTTP/1.1\r\nhost: h\r\n"
UPSERT = b"PUT /collections/docs/points HTTP/1.1\r\nhost: h\r\n"
SEARCH = b"POST /collections/docs/points/search HTTP/1.1\r\nhost: h\r\n"


class Truncated(Exception):
    """The connection ended without a close_notify, or in the middle of a response."""


@dataclass(slots=True)
class Response:
    status: int
    fields: dict[str, str]
    body: bytes = b""
    interim: list[int] = field(default_factory=list)


class RawClient:
    def __init__(self, sock: ssl.SSLSocket) -> None:
        sock.suppress_ragged_eofs = False
        self.sock = sock
        self.buffer = b""

    def send(self, *parts: bytes) -> None:
        self.sock.sendall(b"".join(parts))

    def receive(self) -> bytes:
        """What comes next; empty at a clean end."""
        try:
            return self.sock.recv(262_144)
        except (ssl.SSLEOFError, ConnectionError) as error:
            raise Truncated from error

    def _more(self) -> None:
        data = self.receive()
        if not data:
            raise Truncated(f"the connection ended after {self.buffer!r}")
        self.buffer += data

    def _until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            self._more()
        taken, self.buffer = self.buffer.split(end, 1)
        return taken

    def _exactly(self, size: int) -> bytes:
        parts, left = [self.buffer[:size]], size - len(self.buffer[:size])
        self.buffer = self.buffer[size:]
        while left:
            self._more()
            parts.append(self.buffer[:left])
            left -= len(parts[-1])
            self.buffer = self.buffer[len(parts[-1]) :]
        return b"".join(parts)

    def head(self) -> Response:
        """The next final response's head; ``interim`` are the 1xx before it."""
        interim = []
        while True:
            line, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
            status = int(line.split(" ")[1])
            if status >= 200:
                break
            interim.append(status)
        pairs = (each.split(":", 1) for each in lines)
        return Response(status, {name.lower(): value.strip() for name, value in pairs}, interim=interim)

    def response(self, *, to_head: bool = False) -> Response:
        response = self.head()
        if to_head or response.status in {204, 304}:
            return response
        response.body = b"".join(self.body(response))
        return response

    def body(self, response: Response) -> Iterator[bytes]:
        if response.fields.get("transfer-encoding") == "chunked":
            while size := int(self._until(b"\r\n"), 16):
                yield self._exactly(size)
                assert self._exactly(2) == b"\r\n"
            while self._until(b"\r\n"):
                pass
        elif "content-length" in response.fields:
            yield from self._pieces(int(response.fields["content-length"]))
        else:
            yield self.buffer
            self.buffer = b""
            while data := self.receive():
                yield data

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._exactly(min(size, 262_144))
            size -= len(piece)
            yield piece

    def ended(self) -> bool:
        """Waits for the end: True where nothing came before a clean one."""
        return not self.buffer and not self.receive()


@contextmanager
def connected(gateway: Gateway, context: ssl.SSLContext) -> Iterator[RawClient]:
    with gateway.connect(context) as sock:
        yield RawClient(sock)


def memory(gateway: Gateway, line: str = "VmHWM") -> int:
    """Bytes: the most that the gateway ever had resident (``VmHWM``), or has now (``VmRSS``)."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) << 10


def sockets(gateway: Gateway) -> int:
    """Of clients, of the upstream, and its own."""
    count = 0
    for descriptor in Path(f"/proc/{gateway.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            count += str(descriptor.readlink()).startswith("socket:")
    return count
