"""Memory budget of bodies, messages and answers that the gateway reads: ``limits.inspection_memory_mb`` a process.

Charged are the bytes received, their decoded form, copies, and an upper bound of the result, each before it exists. A
job that does not fit waits for at most ``limits.inspection_timeout`` (and a bounded number of jobs wait) if its caller
has less than a fair share, or if its work has begun and that of others will end; otherwise it is refused at once.
Example: of 64 MiB one caller holds 60. Another caller's body of 10 MiB waits, since its fair share is 32; a further
body of the first caller is refused. Shares are max-min fair (:mod:`tlsproxy.proxy.limits.fair_shares`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tlsproxy.errors import NoMemory, RequestError
from tlsproxy.proxy.core.gateway import Gateway
from tlsproxy.proxy.core.scheduler import Work
from tlsproxy.proxy.limits.fair_shares import Account, Holder, Share


class BodyReader(Holder, Protocol):
    """Request or call. ``later`` and ``crowded`` as in :class:`tlsproxy.proxy.core.scheduler.SlicedJob`."""

    @property
    def crowded(self) -> bool: ...
    def later(self, go_on: Work) -> None: ...


class MemoryShare:
    """Share of one reader, which must :meth:`release` it, once or more often.

    It is the job of the reader's work in steps: a step that asks for memory goes on once there is some.
    """

    __slots__ = ("_gateway", "_reader", "_received", "_share", "_timeout", "_too_large")

    def __init__(
        self, gateway: Gateway, account: Account, reader: BodyReader, too_large: Callable[[int], RequestError]
    ) -> None:
        """``too_large`` makes the error for a body larger than the whole budget, given that budget in bytes."""
        self._gateway = gateway
        self._reader: BodyReader | None = reader
        self._share = Share(gateway.memory, account, reader)
        self._too_large = too_large
        self._received = 0
        self._timeout: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        return self._share.wanted > 0

    @property
    def crowded(self) -> bool:
        return self._reader is not None and self._reader.crowded

    def keep(self, size: int, go_on: Work) -> bool:
        """Holds ``size`` bytes of received data. False if the reader must wait: ``go_on`` is its next work then.

        Raises :class:`NoMemory`, and the error of a body that is too large.
        """
        self._received = size
        return self._claim(size, go_on, begun=False)

    def need(self, size: int) -> None:
        """:meth:`keep` without a wait. Raises the same."""
        if not self.keep(size, self.release):
            raise NoMemory("Too many bodies are being read at once")

    def reserve(self, size: int, go_on: Work) -> bool:
        """:meth:`keep` for ``size`` bytes more, for work that has begun."""
        return self._claim(self._received + size, go_on, begun=True)

    def settle(self, size: int) -> None:
        """Keeps ``size`` bytes, and gives back the rest of those that were reserved."""
        self._received = size
        self._share.shrink(size)

    def _claim(self, size: int, go_on: Work, *, begun: bool) -> bool:
        share, memory = self._share, self._gateway.memory
        if size <= share.size:
            share.shrink(size)
            return True
        if size > memory.capacity:
            raise self._too_large(memory.capacity)
        more = size - share.size
        crowded = memory.waiting > 0 or memory.held + more > memory.capacity
        if share.take(more, patient=begun and crowded and memory.is_at_work(share)):
            return True
        share.ready = partial(self._ready, go_on)
        self._timeout = self._gateway.loop.call_later(self._gateway.bounds.inspection_timeout, self._timed_out)
        return False

    def _ready(self, go_on: Work) -> None:
        self._stop_waiting()
        self.later(go_on)

    def _timed_out(self) -> None:
        self._share.give_way(NoMemory("No memory to read this became free in time"))

    def _stop_waiting(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def later(self, go_on: Work) -> None:
        if self._reader is not None:
            self._reader.later(go_on)

    def release(self) -> None:
        self._stop_waiting()
        self._share.release()
        self._reader = None
