"""Steady traffic on a gateway, as a program: `python -m support.load PORT CA CERT KEY KEPT NEW`.

KEPT connections ask again and again, and NEW clients connect anew for each request. Nothing is tried a second time:
what fails is told. A line says each server certificate as it is first seen (`serial HEX`), and when the standard input
is closed one line of JSON says what was done: requests, handshakes, serials, and every failure.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PACE = 0.1
"""Seconds between two requests of one client: there are two cores for the clients, the gateway and the upstream."""
PATIENCE = 10.0
REQUEST = b"GET /collections HTTP/1.1\r\nhost: localhost\r\n\r\n"


@dataclass(slots=True)
class Load:
    port: int
    context: ssl.SSLContext
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    requests: int = 0
    handshakes: int = 0
    serials: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    async def keep(self) -> None:
        """One connection, for as long as there is load."""
        while not self.stop.is_set():
            await self._connected(self.stop.is_set)

    async def renew(self) -> None:
        while not self.stop.is_set():
            await self._connected(lambda: True)
            await self._pause()

    async def _connected(self, enough: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(
                    "localhost", self.port, family=2, ssl=self.context, server_hostname="localhost"
                )
        except (OSError, TimeoutError) as error:
            self._failed("handshake", error)
            return
        try:
            self._saw(writer.get_extra_info("peercert"))
            while True:
                async with asyncio.timeout(PATIENCE):
                    last = await self._ask(reader, writer)
                if last or enough():
                    break
                await self._pause()
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self._failed("request", error)
        finally:
            writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the gateway said that it ends the connection."""
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 ") or b"content-length: 15\r\n" not in head.lower():
            raise ValueError(head)
        await reader.readexactly(15)
        self.requests += 1
        return b"connection: close\r\n" in head.lower()

    async def _pause(self) -> None:
        await asyncio.sleep(PACE)

    def _saw(self, certificate: dict[str, Any]) -> None:
        self.handshakes += 1
        serial = f"{int(certificate['serialNumber'], 16):x}"
        if serial not in self.serials:
            self.serials.add(serial)
            _tell(f"serial {serial}")

    def _failed(self, kind: str, error: BaseException) -> None:
        self.failures.append(f"{kind}: {type(error).__name__}: {error}")
        _tell(self.failures[-1])


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _run(port: int, context: ssl.SSLContext, kept: int, new: int) -> None:
    load = Load(port, context)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as clients:
        for _ in range(kept):
            clients.create_task(load.keep())
        for _ in range(new):
            clients.create_task(load.renew())
        await loop.run_in_executor(None, sys.stdin.read)
        load.stop.set()
    done = {"requests": load.requests, "handshakes": load.handshakes, "failures": load.failures}
    _tell(json.dumps(done | {"serials": sorted(load.serials)}))


if __name__ == "__main__":
    port, authority, certificate, key, kept, new = sys.argv[1:]
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate, key)
    asyncio.run(_run(int(port), context, int(kept), int(new)))
