"""A worker process seen from its supervisor: requests over the control channel, liveness, and end."""

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
from collections.abc import Sequence
from typing import Any, Final, Self

import orjson

from tlsproxy.errors import FailureKind, TlsproxyError
from tlsproxy.proxy.core.gateway import Notice
from tlsproxy.proxy.core.impact import Consequences
from tlsproxy.service.workers.channel import Body, Channel, ChannelError, ChannelMessage
from tlsproxy.service.workers.snapshot_codec import EncodedGeneration
from tlsproxy.threads import in_thread

PING: Final = 1.0
"""Seconds between two pings."""
SILENCE: Final = 10.0
"""Seconds without an answer after which a worker counts as stuck: its loop is never busy for that long."""
ATTENTION: Final = 3.0
"""Seconds for one iteration of a worker's loop on a busy machine."""
BUILDING: Final = 60.0
"""Seconds for a worker to start or to build a generation: the CRL of a large authority takes a while."""
LAST_WORDS: Final = 3.0
"""Seconds for a worker that does not answer to write its audit lines, before it is killed."""
LAST: Final = 5.0
"""Seconds for a process to end by itself once its channel has ended."""
_OURS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""Signals for the supervisor alone, even if a terminal or a service manager sends them to all processes."""

_log = logging.getLogger(__name__)


class WorkerLost(TlsproxyError):
    """The worker has ended, or does not answer."""

    kind = FailureKind.ENVIRONMENT


class WorkerRefused(TlsproxyError):
    """The worker answered with an error. The supervisor built from the same bytes, so they are not the cause."""

    kind = FailureKind.ENVIRONMENT


class WorkerProcess:
    """``committed`` is the generation that it was last ordered to serve, None before the first.

    ``notice`` is called for each event that it sends unasked.
    """

    def __init__(self, number: int, process: subprocess.Popen[bytes], channel: Channel, notice: Notice) -> None:
        self.number = number
        self.committed: EncodedGeneration | None = None
        self._prepared: EncodedGeneration | None = None
        self.started_at = time.time()
        self._process = process
        self._channel = channel
        self._notice = notice
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[ChannelMessage]] = {}
        self._ended = asyncio.Event()
        self._killing: asyncio.TimerHandle | None = None
        self._unanswered_since: float | None = None
        self.building_time = 0.0
        self._receiver = asyncio.create_task(self._receive())

    @classmethod
    async def start(cls, number: int, descriptors: Sequence[int], notice: Notice) -> Self:
        """Start by exec of the same interpreter, with these descriptors of ours open and no others. Raises OSError."""
        own, remote = socket.socketpair()
        try:
            with remote:
                process = _spawned(remote.fileno(), descriptors)
            return cls(number, process, await Channel.over(own), notice)
        except BaseException:
            own.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stopped(self) -> bool:
        """Whether a signal has stopped it: it does nothing until SIGCONT."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return False

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    @property
    def ending(self) -> bool:
        """Whether it has ended, or is being killed: it will do nothing more."""
        return self._ended.is_set() or self._killing is not None

    @property
    def silence(self) -> float:
        """Seconds since the oldest unanswered ping."""
        return 0.0 if self._unanswered_since is None else time.monotonic() - self._unanswered_since

    async def begin(self, started: Sequence[bytes], **facts: Any) -> None:
        """``started`` are the bytes of the configuration's state at the service's start."""
        await self.ask("begin", started, deadline=BUILDING, sizes=list(map(len, started)), **facts)

    async def prepare(self, encoded: EncodedGeneration) -> None:
        """Let it build the generation, unless it has. Nothing changes yet. Raises WorkerRefused, WorkerLost."""
        if self._prepared is not encoded:
            begun = time.monotonic()
            await self.ask("prepare", encoded.data, deadline=BUILDING)
            self._prepared, self.building_time = encoded, time.monotonic() - begun

    async def consider(self, encoded: EncodedGeneration, patience: float) -> Consequences:
        """Consequences of a publication there. The built generation is kept until it is committed or dismissed.

        ``patience``: seconds for the answer to a first ping. Raises WorkerRefused, WorkerLost.
        """
        await self.ping(patience)
        await self.prepare(encoded)
        return Consequences.decoded(orjson.loads(await self.ask("consider", deadline=SILENCE)))

    async def dismiss(self) -> None:
        self._prepared = None
        await self.ask("dismiss", deadline=ATTENTION)

    async def commit(self, encoded: EncodedGeneration) -> None:
        """Serve the prepared generation. Requests sent after this call are handled under it."""
        self.committed, self._prepared = encoded, None
        digest = await self.ask("commit", deadline=SILENCE)
        if digest.decode() != encoded.digest:
            raise WorkerRefused(f"worker {self.number} serves another generation than it was given")

    async def ping(self, deadline: float = SILENCE) -> None:
        """Returns when its loop has answered. Raises WorkerLost."""
        asked_at = time.monotonic()
        self._unanswered_since = self._unanswered_since or asked_at
        await self.ask("ping", deadline=deadline)
        self._unanswered_since = None

    async def ask(self, do: str, pieces: Sequence[bytes] = (), *, deadline: float, **fields: Any) -> Body:
        """The answer's body. ``pieces`` are the question's. Raises WorkerRefused, WorkerLost."""
        number = next(self._ids)
        answer = self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(deadline):
                if self._ended.is_set():
                    raise WorkerLost(f"worker {self.number} has ended")
                await self._channel.send(ChannelMessage({"id": number, "do": do, **fields}), pieces)
                message = await answer
        except TimeoutError:
            raise WorkerLost(f"worker {self.number} has not answered within {deadline:g} s ({do})") from None
        finally:
            self._pending.pop(number, None)
        if "error" in message.head:
            raise WorkerRefused(str(message.head["error"]))
        return message.body  # type: ignore[no-any-return]

    async def watch(self) -> None:
        """Ping until it ends. Raises WorkerLost when it stops answering."""
        while not self._ended.is_set():
            try:
                async with asyncio.timeout(PING):
                    await self._ended.wait()
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
        await self._ended.wait()

    def kill(self) -> None:
        """SIGABRT, and SIGKILL after :data:`LAST_WORDS`.

        The handler of SIGABRT (:mod:`tlsproxy.service.abort`) writes the audit lines, even if the loop is stuck.
        SIGCONT delivers it to a stopped process.
        """
        if self._process.poll() is None and self._killing is None:
            self._process.send_signal(signal.SIGABRT)
            self._process.send_signal(signal.SIGCONT)
            self._killing = asyncio.get_running_loop().call_later(LAST_WORDS, self._process.kill)

    async def end(self) -> str:
        """Wait for its end, and kill it if that does not come. Returns its exit status or signal."""
        if not self._ended.is_set():
            self.kill()
        try:
            await in_thread(self._process.wait, LAST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await in_thread(self._process.wait)
        if self._killing is not None:
            self._killing.cancel()
        self._receiver.cancel()
        await asyncio.gather(self._receiver, return_exceptions=True)
        self._channel.close()
        code = self._process.returncode
        return f"exit status {code}" if code >= 0 else signal.Signals(-code).name

    async def _receive(self) -> None:
        try:
            while (message := await self._channel.receive()) is not None:
                number = message.head.get("id")
                if number is None:
                    self._notice(message.head["event"])
                elif (answer := self._pending.get(number)) is not None and not answer.done():
                    answer.set_result(message)
        except ChannelError:
            _log.exception("worker %d", self.number)
        finally:
            self._ended.set()
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(WorkerLost(f"worker {self.number} has ended"))


def _spawned(channel: int, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Returns once exec has succeeded: milliseconds.

    The supervisor's signals are blocked in it, since a mask outlives exec: they must not end it before it ignores them.
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
