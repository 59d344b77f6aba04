"""The parts that `/readyz` names, each `ok` or the reason why it is not: what serving needs, and what it is told by.

Nothing here serves or changes anything: a gateway that is not ready goes on as well as it can.
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
"""The part that is there while files are not in force. With their last good state the gateway is as ready as it was."""

WORKERS: Final = "workers"
"""The part that is there while a worker does not serve as it should. The others have its clients."""

_DEADLINE: Final = 1.0
_MOST: Final = 3
"""Inputs that a part names."""
_KEPT: Final = 1.0
"""Seconds for which a probe's answer is given again: probes of ours must not become the upstream's load."""

Address = tuple[int, Any]
"""(address family, the address that `socket.connect` takes)"""


class UpstreamProbe:
    """A TCP connect to the upstream, closed at once. `addresses` gives those of the present, tried in order."""

    def __init__(self, addresses: Callable[[], Sequence[Address]], clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses = addresses
        self._clock = clock
        self._lock = asyncio.Lock()
        self._answer = ""
        self._asked = float("-inf")
        self._of: Sequence[Address] = ()

    async def __call__(self) -> str:
        async with self._lock:
            addresses = self._addresses()
            if addresses != self._of or self._clock() - self._asked >= _KEPT:
                self._answer = await self._probe(addresses)
                self._asked, self._of = self._clock(), addresses
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
    except OSError as error:  # no descriptor is left for a probe, or nobody answers
        # asyncio words it otherwise ("Connect call failed"), and says less.
        return os.strerror(error.errno) if error.errno else str(error)
    return OK


def generation_part(generation: Generation, now: float) -> str:
    """`now` is seconds since the epoch. An outdated server certificate, or CRL that refuses by then, serves nobody."""
    material = generation.material
    if material.leaf.not_after <= now:
        return "the server certificate has expired"
    deny = material.trust.policy.deny_expired
    outdated = sorted({crl.issuer for crl in material.crls if deny and crl.next_update <= now})
    return f"the CRL of {outdated[0]} is out of date" if outdated else OK


def inputs_part(faults: Sequence[str]) -> str:
    more = f"and {len(faults) - _MOST} more" if len(faults) > _MOST else ""
    return "; ".join(filter(None, [*(" ".join(fault.split()) for fault in faults[:_MOST]), more]))


def is_ready(parts: Mapping[str, str]) -> bool:
    return all(part == OK for name, part in parts.items() if name not in {INPUTS, WORKERS})


def audit_part(*, healthy: bool, accepts: bool, last_error: str) -> str:
    if not healthy:
        return last_error or "not writing"
    return OK if accepts else "the queue is full"
