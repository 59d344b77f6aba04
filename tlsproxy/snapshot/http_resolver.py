"""Name resolution for aiohttp that nobody waits for at the end: the loop's own resolves in threads that are joined."""

from __future__ import annotations

import socket
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

from tlsproxy.threads import in_thread

_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class HttpResolver(AbstractResolver):
    """Asks the system's resolver, for TCP."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError."""
        found = await in_thread(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=int(address[1]), family=kind, proto=proto, flags=_NUMERIC
            )
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None: ...
