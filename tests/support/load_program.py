"""Steady traffic on a gateway, as a program: `python -m support.load_program SPEC`, where SPEC is :class:`Spec` as
JSON.

Nothing is tried a second time: a failure is told. A line says each server certificate as it is first seen (`serial
HEX`). When the standard input is closed, one line of JSON says what was done: the count of each kind of operation, the
serials, and every failure.
"""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACE = 0.1
"""Seconds between two requests of one client: there are two cores for the clients, the gateway and the upstream."""
PATIENCE = 10.0
REQUEST = b"GET /collections HTTP/1.1\r\nhost: localhost\r\n\r\n"
LIST = "/qdrant.Collections/List"
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@dataclass(frozen=True, slots=True)
class Spec:
    """``clients`` are names of NAME.pem and NAME.key in ``directory``; each has ``kept`` and ``new`` REST clients.

    With a ``grpc_port`` each has unary calls on one channel, a stream on another, and channels for one call each. With
    a ``tcp_port``, which is to lead to the REST upstream, it has a connection that is kept, and others for one request.
    """

    directory: str
    port: int
    clients: tuple[str, ...]
    kept: int
    new: int
    pace: float = PACE
    grpc_port: int = 0
    tcp_port: int = 0


@dataclass(slots=True)
class Load:
    spec: Spec
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    done: Counter[str] = field(default_factory=Counter)
    serials: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    _files: dict[str, bytes] = field(default_factory=dict)

    def clients(self) -> Iterator[Callable[[], Awaitable[None]]]:
        """Each goes on for as long as there is load. All files are read here, and not again."""
        spec = self.spec
        for name in spec.clients:
            contexts = [self._context(name, version) for version in VERSIONS]
            for file in ("ca.pem", f"{name}.key", f"{name}.pem"):
                self._files[file] = Path(spec.directory, file).read_bytes()
            for number in range(spec.kept):
                yield functools.partial(self._again, self._asking, contexts[number % 2], spec.port, once=False)
            for number in range(spec.new):
                yield functools.partial(self._again, self._asking, contexts[number % 2], spec.port, once=True)
            if spec.tcp_port:
                yield functools.partial(self._again, self._asking, contexts[0], spec.tcp_port, once=False)
                yield functools.partial(self._again, self._asking, contexts[1], spec.tcp_port, once=True)
            if spec.grpc_port:
                yield functools.partial(self._again, self._calling, name, once=False)
                yield functools.partial(self._again, self._calling, name, once=True)
                yield functools.partial(self._again, self._streaming, name)

    async def _again(self, client: Callable[..., Awaitable[None]], *arguments: object, **options: object) -> None:
        while not self.stop.is_set():
            try:
                await client(*arguments, **options)
            except Exception as error:  # noqa: BLE001 - whatever it is, it has failed
                self._failed(type(error).__name__, error)
            await asyncio.sleep(self.spec.pace)

    def _context(self, name: str, version: ssl.TLSVersion) -> ssl.SSLContext:
        directory = Path(self.spec.directory)
        context = ssl.create_default_context(cafile=directory / "ca.pem")
        context.load_cert_chain(directory / f"{name}.pem", directory / f"{name}.key")
        context.minimum_version = context.maximum_version = version
        return context

    async def _asking(self, context: ssl.SSLContext, port: int, *, once: bool) -> None:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(
                "localhost", port, family=2, ssl=context, server_hostname="localhost"
            )
        kind = "requests" if port == self.spec.port else "tunnelled"
        try:
            self._saw(writer.get_extra_info("peercert"))
            while True:
                async with asyncio.timeout(PATIENCE):
                    last = await self._ask(reader, writer)
                self.done[kind] += 1
                if last or once or self.stop.is_set():
                    return
                await asyncio.sleep(self.spec.pace)
        finally:
            writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the gateway said that it ends the connection."""
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 ") or b"content-length: 15\r\n" not in head.lower():
            raise ValueError(head)
        await reader.readexactly(15)
        return b"connection: close\r\n" in head.lower()

    def _channel(self, name: str) -> Any:
        import grpc.aio  # noqa: PLC0415 - half a second that the other loads do not need

        files = [self._files[file] for file in ("ca.pem", f"{name}.key", f"{name}.pem")]
        options = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))
        return grpc.aio.secure_channel(
            f"localhost:{self.spec.grpc_port}", grpc.ssl_channel_credentials(*files), options
        )

    async def _calling(self, name: str, *, once: bool) -> None:
        async with self._channel(name) as channel:
            while True:
                await channel.unary_unary(LIST)(b"", timeout=PATIENCE)
                self.done["calls"] += 1
                if once or self.stop.is_set():
                    return
                await asyncio.sleep(self.spec.pace)

    async def _streaming(self, name: str) -> None:
        """One call for as long as there is load, of which each message comes back."""
        async with self._channel(name) as channel:
            call = channel.stream_stream(LIST)()
            while not self.stop.is_set():
                async with asyncio.timeout(PATIENCE):
                    await call.write(b"echo")
                    if (answer := await call.read()) != b"echo":
                        raise ValueError(f"{answer!r}, {await call.code()}")
                self.done["messages"] += 1
                await asyncio.sleep(self.spec.pace)
            call.cancel()

    def _saw(self, certificate: dict[str, Any]) -> None:
        self.done["handshakes"] += 1
        serial = f"{int(certificate['serialNumber'], 16):x}"
        if serial not in self.serials:
            self.serials.add(serial)
            _tell(f"serial {serial}")

    def _failed(self, kind: str, error: BaseException) -> None:
        self.failures.append(f"{kind}: {error}")
        _tell(self.failures[-1])


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _run(load: Load) -> None:
    async with asyncio.TaskGroup() as clients:
        for client in load.clients():
            clients.create_task(client())
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        load.stop.set()
    _tell(json.dumps(load.done | {"failures": load.failures, "serials": sorted(load.serials)}))


if __name__ == "__main__":
    asyncio.run(_run(Load(Spec(**json.loads(sys.argv[1])))))
