"""Name resolution for aiohttp in daemon threads: those of the loop's own resolver are joined at exit, and may hang."""

from __future__ import annotations

import socket
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

from tlsproxy.threads import in_thread

_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class HttpResolver(AbstractResolver):
    """The system's resolver, for TCP."""

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
