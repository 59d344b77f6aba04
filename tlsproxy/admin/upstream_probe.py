"""Whether the upstream can be reached."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tlsproxy.admin.readiness import OK, Part, not_ready

_DEADLINE: Final = 1.0
_REUSED: Final = 1.0
"""Seconds for which a probe's result is reused, so that probes put no load on the upstream."""

Address = tuple[int, Any]
"""Address family, and address as `socket.connect` takes it."""


class UpstreamProbe:
    """A TCP connect to the upstream, closed at once. ``addresses`` returns the current ones, tried in order."""

    def __init__(self, addresses: Callable[[], Sequence[Address]], clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses = addresses
        self._clock = clock
        self._lock = asyncio.Lock()
        self._answer = OK
        self._probed_at = float("-inf")
        self._probed: Sequence[Address] = ()

    async def __call__(self) -> Part:
        async with self._lock:
            addresses = self._addresses()
            if addresses != self._probed or self._clock() - self._probed_at >= _REUSED:
                self._probed_at, self._probed = self._clock(), addresses
                self._answer = await self._probe(addresses)
            return self._answer

    def doubt(self) -> None:
        """A request has failed since: what was found to be good is asked anew."""
        if self._answer.good:
            self._probed_at = float("-inf")

    def close(self) -> None:
        pass

    async def _probe(self, addresses: Sequence[Address]) -> Part:
        answer = not_ready("no address")
        try:
            async with asyncio.timeout(_DEADLINE):
                for family, address in addresses:
                    answer = await _connect(family, address)
                    if answer == OK:
                        break
        except TimeoutError:
            return not_ready(f"no connection within {_DEADLINE:g} s")
        return answer


async def _connect(family: int, address: Any) -> Part:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            await asyncio.get_running_loop().sock_connect(probe, address)
    except OSError as error:
        # The text of asyncio ("Connect call failed") lacks the cause.
        return not_ready(os.strerror(error.errno) if error.errno else str(error))
    return OK
