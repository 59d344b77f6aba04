"""Connections of aiohttp for one fetch: names resolved in daemon threads, and nothing left open at its end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Final, Literal

from aiohttp import TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from tlsproxy.threads import in_thread

if TYPE_CHECKING:
    from aiohttp import ClientTimeout
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class HttpConnector(TCPConnector):
    """Remembers its connections.

    One over TLS that is closed waits for its peer, up to 30 s, and the process cannot end well meanwhile.
    """

    def __init__(self, context: ssl.SSLContext | Literal[True]) -> None:
        super().__init__(resolver=HttpResolver(), ssl=context)
        self._opened: list[asyncio.WriteTransport] = []

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> Connection:  # noqa: ASYNC109 - as aiohttp has it
        connection = await super().connect(req, traces, timeout)
        if connection.transport is not None:
            self._opened.append(connection.transport)
        return connection

    def abort(self) -> None:
        """Cut all connections at once."""
        for transport in self._opened:
            transport.abort()


class HttpResolver(AbstractResolver):
    """The system's resolver, for TCP. The threads of the loop's own are joined at exit, and may hang."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Addresses of a host. Raises OSError."""
        found = await in_thread(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=int(address[1]), family=kind, proto=proto, flags=_NUMERIC
            )
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None: ...
