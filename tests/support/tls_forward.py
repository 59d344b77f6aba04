"""A plaintext port whose connections reach a gateway over mutual TLS: for programs that have no client certificate."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from support.gateway import DEADLINE


class TlsForward:
    """``port`` is that of the plaintext end, on loopback. ``context`` has the certificate, and the ALPN, of all."""

    def __init__(self, context: ssl.SSLContext, target: int) -> None:
        self._context = context
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._running: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(DEADLINE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    async def _start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _stop(self) -> None:
        self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        far_reader, far_writer = await asyncio.open_connection(
            "127.0.0.1", self._target, ssl=self._context, server_hostname="localhost"
        )
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, far_writer))
                both.create_task(_pump(far_reader, writer))
        finally:
            for end in (writer, far_writer):
                end.close()
                with suppress(OSError):  # it has ended by itself
                    await end.wait_closed()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # one end is gone, and with it what was on its way
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()
