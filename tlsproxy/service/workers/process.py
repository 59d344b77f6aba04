"""One worker as its supervisor sees it: a process to ask, to watch, and to end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import orjson

from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.proxy.core.impact import Consequences
from tlsproxy.service.workers.channel import Channel, ChannelError, ChannelMessage
from tlsproxy.service.workers.snapshot_codec import Order
from tlsproxy.threads import in_thread

PING: Final = 1.0
"""Seconds between two pings."""
SILENCE: Final = 10.0
"""Seconds in which a worker answers, or is taken to be stuck: its loop never does anything for that long."""
ATTENTION: Final = 3.0
"""Seconds in which a worker's loop turns once, on a machine that is busy with other things."""
BUILDING: Final = 60.0
"""Seconds in which a worker has started or built a generation. Reading the CRL of a large authority takes some."""
LAST_WORDS: Final = 3.0
"""Seconds in which a worker that does not answer writes down what it has, before it is killed."""
LAST: Final = 5.0
"""Seconds that a process has to end by itself once its channel has ended."""
_OURS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""Signals for the supervisor alone, also where a terminal or a service manager sends them to all processes."""

_log = logging.getLogger(__name__)


class WorkerLost(TlsproxyError):
    """It has ended, or does not answer."""

    kind = FailureKind.ENVIRONMENT


class WorkerRefused(TlsproxyError):
    """It answered, and cannot do it. The supervisor could, with the same bytes: it is no fault of theirs."""

    kind = FailureKind.ENVIRONMENT


class WorkerProcess:
    """``order`` is what it was last told to serve, None before that. ``told`` is called for each event of it."""

    def __init__(
        self, number: int, process: subprocess.Popen[bytes], channel: Channel, told: Callable[[], None]
    ) -> None:
        self.number = number
        self.order: Order | None = None
        self._prepared: Order | None = None
        self.started_at = time.time()
        self._process = process
        self._channel = channel
        self._told = told
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[ChannelMessage]] = {}
        self._over = asyncio.Event()
        self._killing: asyncio.TimerHandle | None = None
        self._asked_at: float | None = None
        self.building_time = 0.0
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, number: int, descriptors: Sequence[int], told: Callable[[], None]) -> Self:
        """By exec of the same interpreter, with nothing open of ours but these descriptors. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = _spawned(theirs.fileno(), descriptors)
            return cls(number, process, await Channel.over(ours), told)
        except BaseException:
            ours.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stopped(self) -> bool:
        """By a signal: it does nothing until it is continued."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return False

    @property
    def has_ended(self) -> bool:
        return self._over.is_set()

    @property
    def ending(self) -> bool:
        """It has ended, or is about to by a signal: nothing that it is asked will be done."""
        return self._over.is_set() or self._killing is not None

    @property
    def silence(self) -> float:
        """Seconds for which it has not answered a ping."""
        return 0.0 if self._asked_at is None else time.monotonic() - self._asked_at

    async def begin(self, started: bytes, **facts: Any) -> None:
        """``started`` is the configuration that the service was started with."""
        await self.ask("begin", started, deadline=BUILDING, **facts)

    async def prepare(self, order: Order) -> None:
        """It builds, unless it has, and changes nothing. Raises WorkerRefused, WorkerLost."""
        if self._prepared is not order:
            begun = time.monotonic()
            await self.ask("prepare", order.encoded, deadline=BUILDING)
            self._prepared, self.building_time = order, time.monotonic() - begun

    async def consider(self, order: Order, patience: float) -> Consequences:
        """It keeps what it has built for that until it is committed, or dismissed. Raises WorkerRefused, WorkerLost.

        ``patience``: seconds for its loop to turn, before anything else is asked of it.
        """
        await self.ping(patience)
        await self.prepare(order)
        return Consequences.decoded(orjson.loads(await self.ask("consider", deadline=SILENCE)))

    async def dismiss(self) -> None:
        self._prepared = None
        await self.ask("dismiss", deadline=ATTENTION)

    async def commit(self, order: Order) -> None:
        """It serves what it has prepared, before it does anything that it is asked after this was called."""
        self.order, self._prepared = order, None
        digest = await self.ask("commit", deadline=SILENCE)
        if digest.decode() != order.digest:
            raise WorkerRefused(f"worker {self.number} serves something else than it was given")

    async def ping(self, deadline: float = SILENCE) -> None:
        """Returns when its loop has turned. Raises WorkerLost."""
        asked_at = time.monotonic()
        self._asked_at = self._asked_at or asked_at
        await self.ask("ping", deadline=deadline)
        self._asked_at = None

    async def ask(self, do: str, body: bytes = b"", *, deadline: float, **fields: Any) -> bytes:
        """Raises WorkerRefused, WorkerLost."""
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(deadline):
                if self._over.is_set():
                    raise WorkerLost(f"worker {self.number} has ended")
                await self._channel.send(ChannelMessage({"id": number, "do": do, **fields}, body))
                message = await answer
        except TimeoutError:
            raise WorkerLost(f"worker {self.number} has not answered within {deadline:g} s ({do})") from None
        finally:
            self._waiting.pop(number, None)
        if "error" in message.head:
            raise WorkerRefused(str(message.head["error"]))
        return message.body  # type: ignore[no-any-return]

    async def watch(self) -> None:
        """Until it ends. Raises WorkerLost where it does not answer any more."""
        while not self._over.is_set():
            try:
                async with asyncio.timeout(PING):
                    await self._over.wait()
            except TimeoutError:
                await self._answer()

    async def _answer(self) -> None:
        """Raises WorkerLost where there is none, sooner where it is stopped: a busy loop may still turn."""
        pinging = asyncio.create_task(self.ping())
        try:
            await asyncio.wait([pinging], timeout=ATTENTION)
            if not pinging.done() and self.stopped:
                raise WorkerLost(f"worker {self.number} is stopped by a signal")
            await pinging
        finally:
            pinging.cancel()

    async def ended(self) -> None:
        await self._over.wait()

    def kill(self) -> None:
        """It serves nothing more, whatever its loop does, and has written its audit lines if it runs Python at all.

        It is gone within :data:`LAST_WORDS`. One that was stopped hears of both signals at once when it is continued.
        """
        if self._process.poll() is None and self._killing is None:
            self._process.send_signal(signal.SIGABRT)
            self._process.send_signal(signal.SIGCONT)
            self._killing = asyncio.get_running_loop().call_later(LAST_WORDS, self._process.kill)

    async def end(self) -> str:
        """Gives it a moment if it is ending by itself, else kills it; how it ended."""
        if not self._over.is_set():
            self.kill()
        try:
            await in_thread(self._process.wait, LAST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await in_thread(self._process.wait)
        if self._killing is not None:
            self._killing.cancel()
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._channel.close()
        code = self._process.returncode
        return f"exit status {code}" if code >= 0 else signal.Signals(-code).name

    async def _listen(self) -> None:
        try:
            while (message := await self._channel.receive()) is not None:
                number = message.head.get("id")
                if number is None:
                    self._told()
                elif (answer := self._waiting.get(number)) is not None and not answer.done():
                    answer.set_result(message)
        except ChannelError:
            _log.exception("worker %d", self.number)
        finally:
            self._over.set()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(WorkerLost(f"worker {self.number} has ended"))


def _spawned(channel: int, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Returns once the program is there: milliseconds.

    Signals that are the supervisor's are blocked in it, since a mask outlives exec: they do not end it either before it
    has come to ignore them.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    try:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "tlsproxy.service.workers.worker", str(channel)],
            stdin=subprocess.DEVNULL,
            pass_fds=(channel, *descriptors),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
