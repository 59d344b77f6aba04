"""Trial of the targets, for `connect --check`: a connection to each, which carries nothing."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress

from tlsproxy.connector.material import Material
from tlsproxy.connector.names import MOST
from tlsproxy.connector.serving import Serving
from tlsproxy.snapshot.name_resolution import START_DEADLINE


async def tried(material: Material) -> dict[tuple[str, str], str]:
    """Reasons by listener and target, "" for a good one. All waits are limited by `limits`."""
    changed = asyncio.Event()
    with closing(Serving(material, changed)) as serving:
        await serving.names.resolve(START_DEADLINE)
        states = {
            (listen, name): state
            for listen, targets in serving.targets.items()
            for name, state in targets.states.items()
        }
        limits = serving.limits
        with suppress(TimeoutError):
            async with asyncio.timeout(MOST * (limits.connect_timeout + limits.handshake_timeout)):
                while any(state.up is None for state in states.values()):
                    await changed.wait()
                    changed.clear()
        return {place: "no answer in time" if state.up is None else state.reason for place, state in states.items()}
