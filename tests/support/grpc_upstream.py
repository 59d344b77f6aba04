"""A gRPC upstream, in plaintext or over TLS, that keeps every call as it came, and answers as a test tells it to.

It knows no message: bytes come and go. What runs in a call is a coroutine, on a loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from support.gateway import DEADLINE
from support.upstream import PROBE

Metadata = Sequence[tuple[str, str | bytes]]
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    # Beyond the first of these it would refuse now and then, beyond the second always; 8 and 16 KB if it were not told.
    ("grpc.max_metadata_size", 1 << 17),
    ("grpc.absolute_max_metadata_size", 1 << 17),
)


@dataclass(slots=True, eq=False)
class GrpcCall:
    """One call as it came. ``messages`` are those that were read, ``metadata`` has what gRPC does not keep to itself.

    ``ended`` is set when it is over, ``cancelled`` tells that its client, or its deadline, ended it.
    """

    method: str
    metadata: dict[str, str | bytes]
    time_remaining: float | None
    messages: list[bytes] = field(default_factory=list)
    cancelled: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    _requests: AsyncIterator[bytes] = field(default=None, repr=False)
    _context: Any = field(default=None, repr=False)

    async def receive(self) -> bytes | None:
        """The next message; None after the last."""
        message = await anext(self._requests, None)
        if message is not None:
            self.messages.append(message)
        return message

    async def send(self, message: bytes) -> None:
        await self._context.write(message)

    async def begin(self, metadata: Metadata) -> None:
        """Sends the initial metadata now, before any message."""
        await self._context.send_initial_metadata(tuple(metadata))

    def trailing(self, metadata: Metadata) -> None:
        """What comes with the status, besides it."""
        self._context.set_trailing_metadata(tuple(metadata))

    async def fail(self, code: grpc.StatusCode, details: str = "", trailing: Metadata = ()) -> None:
        """Ends the call with this status. Never returns."""
        await self._context.abort(code, details, tuple(trailing))


GrpcAnswer = Callable[[GrpcCall], Awaitable[None]]
"""Has one call from its beginning to its end, which is OK where it returns."""


def replying(*messages: bytes) -> GrpcAnswer:
    """Reads all that comes, then sends these."""

    async def answer(call: GrpcCall) -> None:
        while await call.receive() is not None:
            pass
        for message in messages:
            await call.send(message)

    return answer


def failing(code: grpc.StatusCode, details: str = "", trailing: Metadata = ()) -> GrpcAnswer:
    async def answer(call: GrpcCall) -> None:
        await call.receive()
        await call.fail(code, details, trailing)

    return answer


async def echoing(call: GrpcCall) -> None:
    """Each message comes back as soon as it is there."""
    while (message := await call.receive()) is not None:
        await call.send(message)


async def never(call: GrpcCall) -> None:
    """Takes all that comes and says nothing: until the client goes, or the upstream ends."""
    while await call.receive() is not None:
        pass
    await asyncio.Event().wait()


class GrpcUpstream(grpc.GenericRpcHandler):
    """``answer`` may be replaced at any time; ``calls`` are those that have begun. ``tls``: None for plaintext."""

    def __init__(
        self,
        answer: GrpcAnswer | None = None,
        address: str = "127.0.0.1:0",
        tls: grpc.ServerCredentials | None = None,
    ) -> None:
        self._address = address
        self._tls = tls
        self.probe = replying(b"")
        self.answer = answer or replying(b"")
        self.calls: list[GrpcCall] = []
        self._begun = threading.Condition()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(DEADLINE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        self.loop.close()

    def stop(self) -> None:
        """Ends every call and connection, and takes no more. Again is no error."""
        asyncio.run_coroutine_threadsafe(self._server.stop(None), self.loop).result(DEADLINE)

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://{self._address.rpartition(':')[0]}:{self.port}"

    def wait(self, count: int = 1) -> list[GrpcCall]:
        """All calls, as soon as there are this many."""
        with self._begun:
            assert self._begun.wait_for(lambda: len(self.calls) >= count, DEADLINE), (len(self.calls), self.calls[:9])
        return self.calls

    async def _start(self) -> int:
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers([self])
        if self._tls is None:
            port = int(self._server.add_insecure_port(self._address))
        else:
            port = int(self._server.add_secure_port(self._address, self._tls))
        await self._server.start()
        return port

    async def _probed(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """The gateway's own questions, which are not among the calls."""
        await self.probe(GrpcCall("", {}, None, _requests=requests, _context=context))

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Every method is there, with any number of messages either way: on the wire a unary call looks the same."""
        metadata = {item.key: item.value for item in details.invocation_metadata}
        if str(metadata.get("user-agent")).startswith(PROBE):
            return grpc.stream_stream_rpc_method_handler(self._probed)

        async def handle(requests: AsyncIterator[bytes], context: Any) -> None:
            call = GrpcCall(details.method, metadata, context.time_remaining(), _requests=requests, _context=context)
            with self._begun:
                self.calls.append(call)
                self._begun.notify_all()
            try:
                await self.answer(call)
            except asyncio.CancelledError:
                call.cancelled = True
                raise
            finally:
                call.ended.set()

        return grpc.stream_stream_rpc_method_handler(handle)
