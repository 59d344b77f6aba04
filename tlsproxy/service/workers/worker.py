"""A worker: a process that serves what its supervisor tells it to, and ends when it is told to, or is left alone.

Signals are the supervisor's business. What a terminal or a service manager sends to all processes is ignored here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import orjson

from tlsproxy.audit import counters
from tlsproxy.audit.files import Turn
from tlsproxy.audit.log import NoAudit, audit_log
from tlsproxy.config import loader
from tlsproxy.config.listeners import listening
from tlsproxy.config.model import Config
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.frontend.listener import Bound
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.service import logs
from tlsproxy.service.abort import write_out_and_end
from tlsproxy.service.event_loop import loop_factory
from tlsproxy.service.serving import Serving
from tlsproxy.service.workers.channel import Channel, ChannelMessage
from tlsproxy.service.workers.merging import told
from tlsproxy.service.workers.snapshot_codec import built
from tlsproxy.snapshot.generation import Generation
from tlsproxy.threads import in_thread

ASIDE: Final = 1_000_000
"""Numbers of connections that a worker leaves to the one whose place it takes, so that none is given twice."""
KEY_MISSING: Final = 1.0
"""Seconds between two words to the supervisor that a token's key is missing: anybody can send such a token."""

_log = logging.getLogger(__name__)


class NotServing(TlsproxyError):
    """It was asked for what only a worker that serves has."""


class Worker:
    """Serves from the first `commit` on; `prepare` builds what that publishes.

    ``begun`` has its place among the workers and its descriptors, ``started`` is what the service was started with.
    """

    def __init__(self, channel: Channel, begun: Mapping[str, Any], config_path: Path, started: Config) -> None:
        self._channel = channel
        self._stack = ExitStack()
        self._begun = begun
        self._config_path = config_path
        self._started = started
        self._prepared: Generation | None = None
        self._asked: int | None = None
        self._serving: Serving | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._missed = float("-inf")
        self._does: Final[Mapping[str, Callable[[ChannelMessage], Awaitable[bytes]]]] = {
            "prepare": self._prepare,
            "consider": self._consider,
            "dismiss": self._dismiss,
            "commit": self._commit,
            "ping": self._ping,
            "ready": self._ready,
            "figures": self._figures,
            "metrics": self._metrics,
            "cut": self._cut,
            "probe": self._probe,
            "drain": self._drain,
            "end": self._end,
        }

    async def run(self) -> None:
        with self._stack:
            async with asyncio.TaskGroup() as tasks:
                taking = tasks.create_task(self._take(tasks))
                await self._stopping.wait()
                if self._serving is not None:
                    await self._serving.drain(self._ended)
                taking.cancel()

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        while (message := await self._channel.receive()) is not None:
            tasks.create_task(self._answer(message))
        if not self._stopping.is_set():
            _log.error("the supervisor is gone: draining")
            self._stopping.set()

    async def _answer(self, message: ChannelMessage) -> None:
        head: dict[str, Any] = {"id": message.head["id"]}
        body = b""
        try:
            body = await self._does[message.head["do"]](message)
        except TlsproxyError as error:
            head["error"] = str(error)
        except Exception as error:  # noqa: BLE001 - a defect of ours, told to whoever asked
            _log.critical("a defect in a worker", exc_info=error)
            head["error"] = f"{type(error).__name__}: {error}"
        await self._channel.send(ChannelMessage(head, body))

    async def _prepare(self, message: ChannelMessage) -> bytes:
        former = self._serving.generation if self._serving is not None else None
        self._asked = message.head["id"]
        generation = await in_thread(built, message.body, self._config_path, os.environ, self._started, former)
        if self._asked == message.head["id"]:  # nobody waits any more for one that took too long
            self._prepared = generation
        return b""

    async def _consider(self, message: ChannelMessage) -> bytes:  # noqa: ARG002 - what is prepared is meant
        if self._prepared is None:
            raise NotServing("nothing is prepared")
        return orjson.dumps(await self._served().consider(self._prepared))

    async def _dismiss(self, _message: ChannelMessage) -> bytes:
        self._prepared = self._asked = None
        return b""

    async def _commit(self, _message: ChannelMessage) -> bytes:
        generation, self._prepared = self._prepared, None
        if generation is None:
            raise NotServing("nothing is prepared")
        if self._serving is None:
            self._serving = self._serve(generation)
        else:
            self._serving.adopt(generation)
        logs.set_level(generation.config)
        return generation.digest.encode()

    def _serve(self, generation: Generation) -> Serving:
        begun, stack = self._begun, self._stack
        number, workers = begun["number"], begun["workers"]
        counts = counters.shared(begun["audit"], number)
        audit = audit_log(generation.started.audit, Turn(begun["audit"]), counts)
        audit.start()
        write_out_and_end(audit)
        stack.callback(audit.close)
        sockets = [stack.enter_context(socket.socket(fileno=descriptor)) for descriptor in begun["sockets"]]
        bound = [Bound.of(sock, one) for sock, one in zip(sockets, listening(generation.started), strict=True)]
        serving = Serving(
            generation,
            bound,
            audit,
            LimitTable.shared(begun["limits"], number - 1, workers),
            self._key_missing,
            numbers=itertools.count(number + begun["restarts"] * ASIDE * workers, workers),
            alone=False,
        )
        stack.callback(serving.close)
        return serving

    def _key_missing(self) -> None:
        now = time.monotonic()
        if now - self._missed >= KEY_MISSING:
            self._missed = now
            self._channel.tell(ChannelMessage({"event": "key_missing"}))

    async def _ping(self, _message: ChannelMessage) -> bytes:
        return b""

    async def _ready(self, _message: ChannelMessage) -> bytes:
        return orjson.dumps(await self._served().ready())

    async def _figures(self, _message: ChannelMessage) -> bytes:
        return orjson.dumps(await self._served().figures())

    async def _metrics(self, _message: ChannelMessage) -> bytes:
        return told(self._served().counted.families())

    async def _cut(self, message: ChannelMessage) -> bytes:
        return orjson.dumps(await self._served().cut(message.head["number"]))

    async def _probe(self, message: ChannelMessage) -> bytes:
        address = message.head["address"]
        await self._served().expect_probe(None if address is None else (address[0], address[1]))
        return b""

    async def _drain(self, _message: ChannelMessage) -> bytes:
        self._stopping.set()
        return b""

    async def _end(self, _message: ChannelMessage) -> bytes:
        self._stopping.set()
        self._ended.set()
        return b""

    def _served(self) -> Serving:
        if self._serving is None:
            raise NotServing("it does not serve yet")
        return self._serving


async def _run(control: socket.socket) -> None:
    channel = await Channel.over(control)
    try:
        message = await channel.receive()
        if message is None:
            return
        config_path = Path(message.head["config_path"])
        started = loader.parse(message.body, config_path, os.environ).config
        logs.configure(started, os.environ)
        worker = Worker(channel, message.head, config_path, started)
        await channel.send(ChannelMessage({"id": message.head["id"]}))
        await worker.run()
    finally:
        channel.close()


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    write_out_and_end(NoAudit())
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_run(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
