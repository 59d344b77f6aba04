"""A client with one kept connection: it never connects again by itself, so that a test sees a connection end."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from support.gateway import Gateway
from support.site import Site


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    fields: dict[str, str]
    body: str


class Caller:
    """Has shaken hands by the time it is made (in TLS 1.3: for its own part)."""

    def __init__(self, gateway: Gateway, context: ssl.SSLContext, port: int | None = None) -> None:
        self.sock = gateway.connect(context, port=port)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sock.close()

    def ask(self, path: str = "/collections", method: str = "GET", **fields: str) -> Answer:
        """``api_key="k"`` is the header `api-key`. Raises EOFError where the connection has ended."""
        lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        first, *pairs = head.decode().split("\r\n")
        answered = {name.lower(): value.strip() for name, value in (pair.split(":", 1) for pair in pairs)}
        size = int(answered.get("content-length", "0"))
        while len(self._buffer) < size:
            self._receive()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return Answer(int(first.split(" ")[1]), answered, body.decode())

    def _receive(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self._buffer += data

    @property
    def server_serial(self) -> int:
        """Of the certificate that this connection was shown."""
        shown = self.sock.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)

    def is_closed(self) -> bool:
        """Whether the gateway ends the connection as TLS should, with a close_notify: an error is raised for a cut."""
        return not self._buffer and self.sock.recv(1) == b""


def enters(gateway: Gateway, site: Site, name: str = "admin") -> bool:
    """Whether a request of this client is answered with 200."""
    with Caller(gateway, site.client(name)) as caller:
        try:
            return caller.ask().status == 200
        except (EOFError, ConnectionError, ssl.SSLError):
            return False
