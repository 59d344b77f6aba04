"""TLS in front of plaintext upstreams, as of a proxy beside Qdrant: client certificates are remembered."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from cryptography import x509

from support.gateway import DEADLINE


class TlsFront:
    """``port`` leads to ``target``. ``serials`` are those of the client certificates, one for each connection.

    ``present`` replaces the server's side for new connections.
    """

    def __init__(self, context: ssl.SSLContext, target: int) -> None:
        self._target = target
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._running: set[asyncio.Task[None]] = set()
        self.port = 0
        self.serials: list[int] = []
        self._came = threading.Condition()

    def __enter__(self) -> Self:
        self._thread.start()
        self.present(self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def present(self, context: ssl.SSLContext) -> None:
        asyncio.run_coroutine_threadsafe(self._start(context), self._loop).result(DEADLINE)

    def wait(self, serial: int, count: int = 1) -> None:
        """Until so many connections have come with this certificate."""
        with self._came:
            assert self._came.wait_for(lambda: self.serials.count(serial) >= count, DEADLINE), self.serials

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def _start(self, context: ssl.SSLContext) -> None:
        if self.port:
            self._server.close()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)
        self.port = int(self._server.sockets[0].getsockname()[1])

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
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        with self._came:
            self.serials.append(x509.load_der_x509_certificate(certificate).serial_number if certificate else 0)
            self._came.notify_all()
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            pumps = [asyncio.create_task(_pump(*pair)) for pair in ((reader, far_writer), (far_reader, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                for each in (writer, far_writer):
                    each.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
