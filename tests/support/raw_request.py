"""Requests as bytes over TLS, with no library between the test and the wire."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from support.gateway import Gateway

Fields = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Response:
    """``fields`` has lower-case names. ``closing``: the gateway said that it ends the connection."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def closing(self) -> bool:
        return self.fields.get("connection") == "close"

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(method: str, target: str, fields: Fields = (), body: bytes = b"") -> bytes:
    """One request; its length is told where it has a body, unless ``fields`` say how that is framed."""
    lines = [f"{method} {target} HTTP/1.1", "host: localhost", *(f"{name}: {value}" for name, value in fields)]
    if body and not any(name.lower() in {"content-length", "transfer-encoding"} for name, _ in fields):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def read_response(sock: socket.socket, method: str = "GET") -> Response:
    """The next response; nothing may have been pipelined behind it. Raises EOFError where there is none."""
    response = http.client.HTTPResponse(sock, method=method)
    try:
        response.begin()
        return Response(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        )
    except (http.client.RemoteDisconnected, ConnectionResetError):
        raise EOFError from None
    finally:
        response.close()


def ask(
    sock: socket.socket, method: str = "GET", target: str = "/collections", fields: Fields = (), body: bytes = b""
) -> Response:
    sock.sendall(request(method, target, list(fields), body))
    return read_response(sock, method)


class Client:
    """Keeps one connection, and opens a new one when the gateway has ended it."""

    def __init__(self, gateway: Gateway, context: ssl.SSLContext) -> None:
        self._gateway = gateway
        self._context = context
        self._sock: ssl.SSLSocket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def ask(
        self, method: str = "GET", target: str = "/collections", fields: Fields = (), body: bytes = b""
    ) -> Response:
        return self.send(request(method, target, list(fields), body), method)

    def send(self, data: bytes, method: str = "GET") -> Response:
        if self._sock is None:
            self._sock = self._gateway.connect(self._context)
        self._sock.sendall(data)
        try:
            response = read_response(self._sock, method)
        except EOFError:
            self.close()
            raise
        if response.closing:
            self.close()
        return response


def alert(gateway: Gateway, context: ssl.SSLContext) -> str:
    """OpenSSL's name of the alert that ended the handshake.

    In TLS 1.3 a client is done before the server has seen its certificate (RFC 8446 §2), so that the alert comes in the
    place of the first answer.
    """
    try:
        with gateway.connect(context) as sock:
            answer = sock.recv(4096)
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            raise
        return str(error.reason)
    raise AssertionError(f"no alert, but {answer!r}")
