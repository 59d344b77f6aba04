"""A worker: serves the generation that its supervisor orders, and ends by its order or when its channel ends.

Signals that a terminal or a service manager sends to all processes are ignored here: the supervisor handles them.
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
from tlsproxy.config.listeners import listening
from tlsproxy.config.model import Config
from tlsproxy.errors import TlsproxyError
from tlsproxy.proxy.core.gateway import Event
from tlsproxy.proxy.frontend.listener import Bound
from tlsproxy.proxy.limits.table import LimitTable
from tlsproxy.service import logs
from tlsproxy.service.abort import write_out_and_end
from tlsproxy.service.runtime import loop_factory, tune_collector, tune_threads
from tlsproxy.service.serving import Serving
from tlsproxy.service.slow_callbacks import measured
from tlsproxy.service.workers.channel import Channel, ChannelMessage
from tlsproxy.service.workers.merged_metrics import report
from tlsproxy.service.workers.snapshot_codec import configuration_of, decode
from tlsproxy.snapshot.generation import Generation
from tlsproxy.threads import in_thread

NUMBERS_EACH: Final = 1_000_000
"""Connection numbers reserved for each process of a slot, so that a successor repeats none of its predecessor's."""
NOTICE_INTERVAL: Final = 1.0
"""Seconds between two notices of one event: any request may bring one."""

_log = logging.getLogger(__name__)


class NotServing(TlsproxyError):
    """A request that only a serving worker can answer."""


class Worker:
    """Serves from the first `commit` on, which publishes the generation that `prepare` has built.

    ``setup`` has its number and descriptors, ``started`` is the configuration at the service's start.
    """

    def __init__(self, channel: Channel, setup: Mapping[str, Any], config_path: Path, started: Config) -> None:
        self._channel = channel
        self._stack = ExitStack()
        self._setup = setup
        self._config_path = config_path
        self._started = started
        self._prepared: Generation | None = None
        self._preparing: int | None = None
        self._serving: Serving | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._noticed_at: dict[Event, float] = {}
        self._handlers: Final[Mapping[str, Callable[[ChannelMessage], Awaitable[bytes]]]] = {
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
                receiving = tasks.create_task(self._receive(tasks))
                await self._stopping.wait()
                if self._serving is not None:
                    await self._serving.drain(self._ended)
                receiving.cancel()

    async def _receive(self, tasks: asyncio.TaskGroup) -> None:
        while (message := await self._channel.receive()) is not None:
            tasks.create_task(self._answer(message))
        if not self._stopping.is_set():
            _log.error("the supervisor is gone: draining")
            self._stopping.set()

    async def _answer(self, message: ChannelMessage) -> None:
        head: dict[str, Any] = {"id": message.head["id"]}
        body = b""
        try:
            body = await self._handlers[message.head["do"]](message)
        except TlsproxyError as error:
            head["error"] = str(error)
        except Exception as error:  # noqa: BLE001 - a defect of ours, reported to the supervisor
            _log.critical("a defect in a worker", exc_info=error)
            head["error"] = f"{type(error).__name__}: {error}"
        await self._channel.send(ChannelMessage(head, body))

    async def _prepare(self, message: ChannelMessage) -> bytes:
        former = self._serving.generation if self._serving is not None else None
        self._preparing = message.head["id"]
        generation = await in_thread(decode, message.body, self._config_path, os.environ, self._started, former)
        if self._preparing == message.head["id"]:  # else the supervisor has given it up
            self._prepared = generation
        return b""

    async def _consider(self, message: ChannelMessage) -> bytes:  # noqa: ARG002 - of the prepared generation
        if self._prepared is None:
            raise NotServing("nothing is prepared")
        return orjson.dumps(await self._require_serving().consider(self._prepared))

    async def _dismiss(self, _message: ChannelMessage) -> bytes:
        self._prepared = self._preparing = None
        return b""

    async def _commit(self, _message: ChannelMessage) -> bytes:
        generation, self._prepared = self._prepared, None
        if generation is None:
            raise NotServing("nothing is prepared")
        if self._serving is None:
            self._serving = self._serve(generation)
        else:
            self._serving.adopt(generation)
        logs.set_level(generation.config.log_level)
        return generation.digest.encode()

    def _serve(self, generation: Generation) -> Serving:
        setup, stack = self._setup, self._stack
        number, workers = setup["number"], setup["workers"]
        counts = counters.shared(setup["audit"], number)
        audit = audit_log(generation.started.audit, Turn(setup["audit"]), counts)
        audit.start()
        write_out_and_end(audit)
        stack.callback(audit.close)
        sockets = [stack.enter_context(socket.socket(fileno=descriptor)) for descriptor in setup["sockets"]]
        bound = [Bound.of(sock, one) for sock, one in zip(sockets, listening(generation.started), strict=True)]
        serving = Serving(
            generation,
            bound,
            audit,
            LimitTable.shared(setup["limits"], number - 1, workers, leased=generation.started.shared.used),
            self._notice,
            numbers=itertools.count(number + setup["restarts"] * NUMBERS_EACH * workers, workers),
            affinity_key=bytes.fromhex(setup["affinity_key"]),
            alone=False,
        )
        stack.callback(serving.close)
        return serving

    def _notice(self, event: Event) -> None:
        now = time.monotonic()
        if now - self._noticed_at.get(event, float("-inf")) >= NOTICE_INTERVAL:
            self._noticed_at[event] = now
            self._channel.send_nowait(ChannelMessage({"event": event}))

    async def _ping(self, _message: ChannelMessage) -> bytes:
        return b""

    async def _ready(self, _message: ChannelMessage) -> bytes:
        return orjson.dumps((await self._require_serving().ready()).encoded())

    async def _figures(self, message: ChannelMessage) -> bytes:
        return await in_thread(orjson.dumps, await self._require_serving().figures(message.head["subject"]))

    async def _metrics(self, _message: ChannelMessage) -> bytes:
        return await in_thread(report, self._require_serving().counted.series())

    async def _cut(self, message: ChannelMessage) -> bytes:
        return orjson.dumps(await self._require_serving().cut(message.head["number"]))

    async def _probe(self, message: ChannelMessage) -> bytes:
        address = message.head["address"]
        await self._require_serving().expect_probe(None if address is None else (address[0], address[1]))
        return b""

    async def _drain(self, _message: ChannelMessage) -> bytes:
        self._stopping.set()
        return b""

    async def _end(self, _message: ChannelMessage) -> bytes:
        self._stopping.set()
        self._ended.set()
        return b""

    def _require_serving(self) -> Serving:
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
        ends = [0, *itertools.accumulate(message.head["sizes"])]
        files = [bytes(message.body[start:end]) for start, end in itertools.pairwise(ends)]
        started = (await in_thread(configuration_of, files, config_path, os.environ)).config
        logs.configure(started.logger, started.log_level, os.environ)
        worker = Worker(channel, message.head, config_path, started)
        await channel.send(ChannelMessage({"id": message.head["id"]}))
        await worker.run()
    finally:
        channel.close()


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    write_out_and_end(NoAudit())
    tune_threads()
    tune_collector()
    with asyncio.Runner(loop_factory=measured(loop_factory, os.environ)) as runner:
        runner.run(_run(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
