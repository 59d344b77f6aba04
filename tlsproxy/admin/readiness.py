"""Parts of `/readyz`, each `ok` or the reason why not.

Readiness changes nothing: a gateway that is not ready goes on serving as far as it can.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tlsproxy.snapshot.generation import Generation

OK: Final = "ok"

INPUTS: Final = "inputs"
"""The part that lists files which are not in force. It does not count: their last good state serves."""

WORKERS: Final = "workers"
"""The part that lists workers which do not serve. It does not count: the others take their clients."""

_DEADLINE: Final = 1.0
_MAX_NAMED: Final = 3
"""Inputs in a part's text."""
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
        self._answer = ""
        self._probed_at = float("-inf")
        self._probed: Sequence[Address] = ()

    async def __call__(self) -> str:
        async with self._lock:
            addresses = self._addresses()
            if addresses != self._probed or self._clock() - self._probed_at >= _REUSED:
                self._answer = await self._probe(addresses)
                self._probed_at, self._probed = self._clock(), addresses
            return self._answer

    async def _probe(self, addresses: Sequence[Address]) -> str:
        answer = "no address"
        try:
            async with asyncio.timeout(_DEADLINE):
                for family, address in addresses:
                    answer = await _connect(family, address)
                    if answer == OK:
                        break
        except TimeoutError:
            return f"no connection within {_DEADLINE:g} s"
        return answer


async def _connect(family: int, address: Any) -> str:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            await asyncio.get_running_loop().sock_connect(probe, address)
    except OSError as error:
        # The text of asyncio ("Connect call failed") lacks the cause.
        return os.strerror(error.errno) if error.errno else str(error)
    return OK


def generation_part(generation: Generation, now: float) -> str:
    """Not `ok` with an expired server certificate, or an expired CRL whose clients are refused (`tls.crl_expired`)."""
    material = generation.material
    if material.leaf.not_after <= now:
        return "the server certificate has expired"
    deny = material.trust.policy.deny_expired
    outdated = sorted({crl.issuer for crl in material.crls if deny and crl.next_update <= now})
    return f"the CRL of {outdated[0]} is out of date" if outdated else OK


def inputs_part(faults: Sequence[str]) -> str:
    more = f"and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
    return "; ".join(filter(None, [*(" ".join(fault.split()) for fault in faults[:_MAX_NAMED]), more]))


def is_ready(parts: Mapping[str, str]) -> bool:
    return all(part == OK for name, part in parts.items() if name not in {INPUTS, WORKERS})


def audit_part(*, healthy: bool, accepts: bool, last_error: str) -> str:
    if not healthy:
        return last_error or "not writing"
    return OK if accepts else "the queue is full"
