"""A port on loopback that leads to another server, with TLS on either side: for programs and servers without it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from support.gateway import DEADLINE


class Forwarding:
    """``port`` leads to ``target``, in a thread with a loop of its own.

    ``near`` is the TLS context towards clients, ``far`` the one towards the target; None for plaintext. ``accepted`` is
    called with each connection's client, in that thread.
    """

    def __init__(
        self,
        target: int,
        *,
        near: ssl.SSLContext | None = None,
        far: ssl.SSLContext | None = None,
        accepted: Callable[[asyncio.StreamWriter], None] = lambda _client: None,
    ) -> None:
        self._target = target
        self._near = near
        self._far = far
        self._accepted = accepted
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._running: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.listen(self._near)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def listen(self, near: ssl.SSLContext | None) -> None:
        """Takes new connections by this context from now on, at the same port."""
        asyncio.run_coroutine_threadsafe(self._start(near), self._loop).result(DEADLINE)

    async def _start(self, near: ssl.SSLContext | None) -> None:
        if self.port:
            self._server.close()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=near)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _stop(self) -> None:
        self._server.close()
        running = dict(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for client in running.values():  # that of a task that had not begun, or was connecting, is open
            client.transport.abort()
        await asyncio.sleep(0)  # then what was just accepted has its transport
        for transport in list(self._loop._transports.values()):  # type: ignore[attr-defined]
            transport.abort()  # of a handshake under way, which has no task yet
        await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """No coroutine, so that its task is known before it begins."""
        task = self._loop.create_task(self._serve(reader, writer))
        self._running[task] = writer
        task.add_done_callback(self._running.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted(writer)
        name = None if self._far is None else "localhost"
        try:
            far_reader, far_writer = await asyncio.open_connection(
                "127.0.0.1", self._target, ssl=self._far, server_hostname=name
            )
        except OSError:  # the target is gone
            writer.close()
            return
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
