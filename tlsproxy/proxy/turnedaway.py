"""The audit lines of connections that were closed unheard: whoever floods us with them must not flood the log.

They are told once a second: one line for each address and reason, which says how many there were. Of more addresses
than :data:`ADDRESSES` the rest share a line without one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Final

from tlsproxy.authz.audit import Refusal, event_line
from tlsproxy.proxy.gateway import Gateway

ADDRESSES: Final = 256
TICK: Final = 1.0


class TurnedAway:
    """What is to be told yet. Ended by :meth:`tell`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._counts: Counter[tuple[str | None, str]] = Counter()
        self._handle: asyncio.TimerHandle | None = None

    def count(self, address: str, reason: str) -> None:
        self._gateway.metrics.connection(reason)
        known = (address, reason) in self._counts or len(self._counts) < ADDRESSES
        self._counts[address if known else None, reason] += 1
        if self._handle is None:
            self._handle = self._gateway.loop.call_later(TICK, self.tell)

    def tell(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        counts, self._counts = self._counts, Counter()
        for (address, reason), number in counts.items():
            now = time.time()
            self._gateway.metrics.refused(Refusal(now, address or "", "connection", reason))
            line = event_line(
                when=now,
                event="connection",
                remote=address,
                result="denied",
                reason=reason,
                detail={"connections": number},
            )
            self._gateway.audit.write(line)
