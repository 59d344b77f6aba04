"""The memory of bodies, messages and answers that are read: what each holds of the budget of all.

The budget is ``limits.inspection_memory_mb`` for each process. What came is charged, what it decodes to, its copies and
a bound of what is made of it, before it is made. A job that does not fit waits, in number bounded and for at most
``limits.inspection_timeout``, where its caller has less than a fair share, or where its work has begun and that of
others will end; otherwise it is refused at once. Shares and waiting places are max-min fair
(:mod:`tlsproxy.proxy.limits.fair_shares`).
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
    """A request or a call. ``later`` and ``crowded`` are as of a :class:`tlsproxy.proxy.core.scheduler.SlicedJob`."""

    @property
    def crowded(self) -> bool: ...
    def later(self, go_on: Work) -> None: ...


class MemoryShare:
    """The share of one reader, which it must :meth:`release`, once or more often.

    It is the worker of what the reader has done in steps: those go on once there is the memory that they ask for.
    """

    __slots__ = ("_base", "_gateway", "_late", "_reader", "_share", "_too_large")

    def __init__(
        self, gateway: Gateway, account: Account, reader: BodyReader, too_large: Callable[[int], RequestError]
    ) -> None:
        """``too_large`` is what is raised where the budget of all, in bytes, would not do."""
        self._gateway = gateway
        self._reader: BodyReader | None = reader
        self._share = Share(gateway.memory, account, reader)
        self._too_large = too_large
        self._base = 0
        self._late: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        return self._share.wanted > 0

    @property
    def crowded(self) -> bool:
        return self._reader is not None and self._reader.crowded

    def keep(self, size: int, go_on: Work) -> bool:
        """Holds ``size`` bytes of what has come. False where its reader must wait for that: ``go_on`` is its next work.

        Raises :class:`NoMemory`, and what is too large.
        """
        self._base = size
        return self._has(size, go_on, begun=False)

    def need(self, size: int) -> None:
        """The same without a wait. Raises :class:`NoMemory`, and what is too large."""
        if not self.keep(size, self.release):
            raise NoMemory("Too many bodies are being read at once")

    def reserve(self, size: int, go_on: Work) -> bool:
        """The same of ``size`` bytes beside what is kept, for work that has begun."""
        return self._has(self._base + size, go_on, begun=True)

    def settle(self, size: int) -> None:
        """Keeps ``size`` bytes from now on, of those that were reserved."""
        self._base = size
        self._share.shrink(size)

    def _has(self, size: int, go_on: Work, *, begun: bool) -> bool:
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
        self._late = self._gateway.loop.call_later(self._gateway.bounds.inspection_timeout, self._waited_too_long)
        return False

    def _ready(self, go_on: Work) -> None:
        self._stop_waiting()
        self.later(go_on)

    def _waited_too_long(self) -> None:
        self._share.give_way(NoMemory("No memory to read this became free in time"))

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def later(self, go_on: Work) -> None:
        if self._reader is not None:
            self._reader.later(go_on)

    def release(self) -> None:
        self._stop_waiting()
        self._share.release()
        self._reader = None
